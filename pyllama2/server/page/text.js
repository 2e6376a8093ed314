// A text that the model continues, for models and people that do not chat.

import { Clock, Refusal, stream } from "./api.js";
import { $, Speaker, copy, notice, number, say } from "./dom.js";
import { fieldsOf } from "./settings.js";
import { fromCompletion, tokenView } from "./tokens.js";

const KEY = "pyllama2.text";
const TOKENS = 200; // when the settings do not say
const ALTERNATIVES = 5;

export class TextTool {
  constructor(app) {
    this.app = app;
    this.controller = null;
    this.before = []; // texts that can be gone back to
    const raw = $("raw");
    raw.value = localStorage.getItem(KEY) ?? "";
    raw.addEventListener("input", () => this.#keep());
    raw.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.go();
    });
    $("continue").addEventListener("click", () => this.go());
    $("raw-stop").addEventListener("click", () => this.stop());
    $("raw-copy").addEventListener("click", () => copy(raw.value));
    $("raw-undo").addEventListener("click", () => {
      raw.value = this.before.pop() ?? raw.value;
      $("raw-undo").disabled = !this.before.length;
      $("raw-tokens").replaceChildren();
      $("raw-facts").textContent = "";
      this.#keep();
    });
  }

  stop() {
    this.controller?.abort();
  }

  async go() {
    const raw = $("raw");
    if (this.controller) return;
    const prompt = raw.value;
    const { settings, showsTokens } = this.app;
    this.controller = new AbortController();
    this.#state(true);
    notice($("text-notice"), "");
    $("raw-tokens").replaceChildren();
    const clock = new Clock();
    const speaker = new Speaker();
    const tokens = [];
    let text = "";
    let usage = null;
    let seen = 0;
    let end = "";
    try {
      const body = { prompt, max_tokens: TOKENS, ...fieldsOf(settings, this.before.length) };
      if (showsTokens) body.logprobs = ALTERNATIVES;
      for await (const event of stream("v1/completions", body, this.controller.signal)) {
        usage = event.usage ?? usage;
        const choice = event.choices[0];
        if (!choice) continue;
        if (choice.text) {
          const atEnd = raw.scrollHeight - raw.scrollTop - raw.clientHeight < 40;
          text += choice.text;
          raw.value += choice.text;
          if (atEnd) raw.scrollTop = raw.scrollHeight;
          clock.tick();
          seen += 1;
          speaker.update(text, false);
        }
        if (choice.logprobs) tokens.push(...fromCompletion(choice.logprobs));
        if (choice.finish_reason === "length") end = " · at the limit";
      }
      say("The text is complete");
    } catch (error) {
      if (error.name === "AbortError") {
        end = " · stopped";
        say("Stopped");
      } else {
        if (!(error instanceof Refusal)) console.error(error);
        notice($("text-notice"), error instanceof Refusal ? error.message : "Something on this page has failed; its console says what.");
      }
    }
    speaker.update(text, true);
    this.controller = null;
    if (text) this.before.push(prompt);
    const facts = clock.facts(usage, seen);
    const rate = facts.rate ? ` · ${number(facts.rate, 1)} tokens/s` : "";
    $("raw-facts").textContent = text ? `${number(facts.tokens)} tokens${rate}${end}` : "";
    if (tokens.length) $("raw-tokens").replaceChildren(tokenView(tokens));
    this.#state(false);
    this.#keep();
  }

  #state(running) {
    const focused = [$("continue"), $("raw-stop")].includes(document.activeElement);
    $("raw").readOnly = running;
    $("continue").hidden = running;
    $("raw-stop").hidden = !running;
    $("raw-undo").disabled = running || !this.before.length;
    if (focused) $(running ? "raw-stop" : "continue").focus();
  }

  #keep() {
    try {
      localStorage.setItem(KEY, $("raw").value);
    } catch {
      // too long to be kept: it stays in the page
    }
  }
}
