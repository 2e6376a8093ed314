// The server's own interface. Paths are relative: the app may live below a path of another one.

import { $ } from "./dom.js";

/** What the server refuses, or what went wrong on the way, in one sentence. */
export class Refusal extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const KEY = "pyllama2.key";
const SENTENCES = {
  429: "The server is busy: too many requests are waiting. Try again in a moment.",
  503: "The server is ending.",
};

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** Ask for a key in a dialog. Rejects if the dialog is closed without one. */
function askForKey(wasWrong) {
  const dialog = $("key-dialog");
  $("key-error").textContent = wasWrong ? "The server does not know this key." : "";
  $("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      const key = $("key").value.trim();
      $("key").value = "";
      if (!key) return reject(new Refusal("The server asks for an API key.", 401));
      sessionStorage.setItem(KEY, key);
      resolve();
    }, { once: true });
    $("key-form").onsubmit = () => dialog.close();
    dialog.oncancel = () => ($("key").value = "");
  });
}

async function send(path, body, signal) {
  for (;;) {
    let response;
    const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    try {
      response = await fetch(path, { ...options, headers: headers(), signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    if (response.status === 401) {
      await askForKey(sessionStorage.getItem(KEY) !== null);
      continue;
    }
    const error = said?.error ?? {};
    throw new Refusal(sentence(response.status, error), response.status, error.code ?? null);
  }
}

function sentence(status, error) {
  const text = SENTENCES[status] ?? error.message ?? `The server has answered with status ${status}.`;
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

export const getJson = async (path) => (await send(path)).json();
export const postJson = async (path, body) => (await send(path, body)).json();

/** Name and context of the model, and whether it can chat. */
export async function model() {
  const { data } = await getJson("v1/models");
  const { id, max_model_len: context } = data[0];
  let chats = true;
  try {
    await postJson("tokenize", { messages: [{ role: "user", content: "Hello" }] });
  } catch (error) {
    if (error.status !== 400) throw error;
    chats = false;
  }
  return { id, context, chats };
}

/** The events of a stream, parsed. An error event, or an end without [DONE], is a Refusal. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The connection to the server has ended.");
    }
    if (part.done) throw new Refusal("The connection to the server has ended.");
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Refusal(sentence(0, parsed.error), 0, parsed.error.code);
      yield parsed;
    }
  }
}

/** Counts the speed of a stream. */
export class Clock {
  constructor() {
    this.sent = performance.now();
    this.first = this.last = null;
  }

  tick() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  /** {tokens, prompt, rate, first} from the usage of the stream; what is unknown is null. */
  facts(usage, seen) {
    const tokens = usage?.completion_tokens ?? seen;
    const seconds = this.first === null ? 0 : (this.last - this.first) / 1000;
    return {
      tokens,
      prompt: usage?.prompt_tokens ?? null,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      first: this.first === null ? null : (this.first - this.sent) / 1000,
    };
  }
}
