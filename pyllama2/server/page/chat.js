// A conversation: its messages, and the answer that is being written.

import { Clock, Refusal, stream } from "./api.js";
import { $, Speaker, copy, el, fill, iconButton, notice, number, say } from "./dom.js";
import { Growing, render } from "./markdown.js";
import { fieldsOf } from "./settings.js";
import { compact, fromChat, tokenView } from "./tokens.js";

const UPDATE_MS = 50; // between two times that a growing answer is drawn
const AT_END = 48; // pixels from the end that still count as the end
const ALTERNATIVES = 5;

export class Chat {
  /** app has model, store, showsTokens, changed(conversation): it has other messages, keep(conversation): another draft. */
  constructor(app) {
    this.app = app;
    this.conversation = null;
    this.runs = new Map(); // conversation id -> what is being answered
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("input").addEventListener("keydown", (event) => {
      const composing = event.isComposing || event.keyCode === 229; // Enter chooses a word of an input method
      if (event.key === "Enter" && !event.shiftKey && !composing) {
        event.preventDefault();
        this.send();
      }
    });
    $("input").addEventListener("input", () => {
      this.conversation.draft = $("input").value;
      this.app.keep(this.conversation);
      this.#fit();
    });
    $("stop").addEventListener("click", () => this.stop());
    $("newest").addEventListener("click", () => this.#toEnd());
    $("scroller").addEventListener("scroll", () => ($("newest").hidden = isAtEnd()));
  }

  get run() {
    return this.runs.get(this.conversation?.id);
  }

  show(conversation) {
    this.conversation = conversation;
    $("input").value = conversation.draft ?? "";
    notice($("chat-notice"), "");
    this.draw();
    this.#toEnd();
    this.#fit();
  }

  /** Draw all messages. */
  draw() {
    const { messages } = this.conversation;
    $("log").replaceChildren(...messages.map((message, i) => this.#article(message, i)));
    if (!messages.length) $("log").append(this.#welcome());
    this.#state();
  }

  send() {
    const text = $("input").value.trim();
    if (!text || this.run) return;
    const { conversation } = this;
    const before = [...conversation.messages];
    $("input").value = conversation.draft = "";
    if (!before.length) this.app.keep(conversation); // it begins: the next one has a draft of its own
    this.#fit();
    conversation.messages.push({ role: "user", content: text });
    conversation.title ||= titleOf(text);
    this.#answer(conversation, 0, () => {
      conversation.messages = before;
      conversation.draft = text;
      if (this.conversation === conversation) {
        $("input").value = text;
        this.app.keep(conversation);
        this.#fit();
      }
    });
  }

  stop() {
    this.run?.controller.abort();
  }

  #again(i) {
    if (this.run) return;
    const { conversation } = this;
    const before = [...conversation.messages];
    const variant = (before[i].variant ?? 0) + 1;
    conversation.messages = before.slice(0, i);
    this.#answer(conversation, variant, () => (conversation.messages = before));
  }

  /** Ask for the next message. restore() puts back what was there, if not even a first token comes. */
  async #answer(conversation, variant, restore) {
    const { settings } = conversation;
    const asked = conversation.messages.map(({ role, content }) => ({ role, content }));
    if (settings.system.trim()) asked.unshift({ role: "system", content: settings.system });
    const message = { role: "assistant", content: "" };
    if (variant) message.variant = variant;
    if (this.app.showsTokens) message.tokens = [];
    conversation.messages.push(message);
    const run = { controller: new AbortController(), message, clock: new Clock(), speaker: new Speaker(), drawn: 0, timer: null };
    this.runs.set(conversation.id, run);
    notice($("chat-notice"), "");
    this.draw();
    this.#toEnd();
    let usage = null;
    let refusal = null;
    const decoder = new TextDecoder();
    try {
      const body = { messages: asked, ...fieldsOf(settings, variant) };
      if (message.tokens) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
      for await (const event of stream("v1/chat/completions", body, run.controller.signal)) {
        usage = event.usage ?? usage;
        const choice = event.choices[0];
        if (!choice) continue;
        if (choice.delta.content) {
          message.content += choice.delta.content;
          run.clock.tick();
          run.seen = (run.seen ?? 0) + 1;
        }
        if (choice.logprobs && message.tokens) message.tokens.push(...fromChat(choice.logprobs.content, decoder));
        message.finish = choice.finish_reason ?? message.finish;
        run.speaker.update(message.content, false);
        this.#drawSoon(conversation, run);
      }
    } catch (error) {
      if (error.name === "AbortError") {
        message.finish = "stopped";
      } else {
        refusal = error;
        message.finish = "error";
      }
    }
    clearTimeout(run.timer);
    this.runs.delete(conversation.id);
    message.facts = run.clock.facts(usage, run.seen ?? 0);
    if (message.tokens) message.tokens = compact(message.tokens);
    if (!message.content && message.finish !== "stop" && message.finish !== "length") {
      if (refusal) restore();
      else conversation.messages.pop();
    }
    conversation.updated = Date.now();
    run.speaker.update(message.content, true);
    this.app.changed(conversation);
    if (this.conversation !== conversation) return;
    const follows = isAtEnd();
    this.draw();
    if (follows) this.#toEnd();
    if (refusal) this.#refused(refusal, message);
    else say(message.finish === "stopped" ? "Stopped" : "The answer is complete");
  }

  #refused(error, message) {
    if (!(error instanceof Refusal)) console.error(error);
    const sentence = error instanceof Refusal ? error.message : "Something on this page has failed; its console says what.";
    const actions = message.content ? [["Try again", () => this.#again(this.conversation.messages.length - 1)]] : [];
    notice($("chat-notice"), sentence, ...actions);
    if (document.activeElement === document.body) $("input").focus();
  }

  #drawSoon(conversation, run) {
    if (run.timer !== null || this.conversation !== conversation) return;
    const wait = Math.max(0, run.drawn + UPDATE_MS - performance.now());
    run.timer = setTimeout(() => {
      run.timer = null;
      if (this.conversation !== conversation || !run.place?.isConnected) return;
      const before = performance.now();
      const follows = isAtEnd(); // a reader who has scrolled up stays there
      if (run.message.tokens) this.#growTokens(run);
      else (run.growing ??= new Growing(run.place)).update(run.message.content);
      if (follows) this.#toEnd();
      const took = performance.now() - before;
      run.drawn = performance.now() + 4 * took; // a slow browser draws less often
    }, wait);
  }

  #growTokens(run) {
    const { tokens } = run.message;
    if (!run.place.classList.contains("tokens")) {
      run.place.className = "tokens";
      run.place.replaceChildren();
      run.shown = 0;
    }
    const more = tokens.slice(run.shown);
    run.shown = tokens.length;
    run.place.append(...tokenView(more).childNodes);
  }

  #article(message, i) {
    const mine = message.role === "user";
    const running = this.run?.message === message;
    const body = el("div", { class: mine ? "bubble" : "prose" });
    const article = el("article", { class: `message ${message.role}` }, el("h2", { class: "hidden", text: mine ? "You" : "Assistant" }), body);
    if (mine) {
      body.textContent = message.content;
    } else if (running) {
      Object.assign(this.run, { place: body, growing: undefined, shown: 0 });
      if (message.content) this.#drawSoon(this.conversation, this.run);
      else body.append(el("span", { class: "waiting", text: "…" }));
      article.setAttribute("aria-busy", "true");
      return article;
    } else if (this.app.showsTokens && message.tokens?.length) {
      body.replaceWith(tokenView(message.tokens));
    } else {
      body.append(render(message.content));
    }
    article.append(this.#actions(message, i, article, mine));
    return article;
  }

  #actions(message, i, article, mine) {
    const actions = el("div", { class: "actions" }, iconButton("copy", mine ? "Copy your message" : "Copy the answer", () => copy(message.content)));
    if (mine) {
      actions.append(iconButton("edit", "Edit your message", () => this.#edit(message, i, article)));
    } else {
      if (i === this.conversation.messages.length - 1) actions.append(iconButton("again", "Answer anew", () => this.#again(i)));
      const facts = factsLine(message);
      if (facts) actions.append(el("span", { class: "facts", text: facts }));
    }
    return actions;
  }

  #edit(message, i, article) {
    if (this.run) return;
    const { conversation } = this;
    const area = el("textarea", { class: "edit", "aria-label": "Your message", value: message.content });
    const cancel = () => {
      this.draw();
      $("log").children[i]?.querySelector("[aria-label^=Edit]")?.focus();
    };
    const save = () => {
      const text = area.value.trim();
      if (!text) return;
      const before = [...conversation.messages];
      conversation.messages = [...before.slice(0, i), { role: "user", content: text }];
      this.#answer(conversation, 0, () => {
        conversation.messages = before;
        if (this.conversation === conversation) setTimeout(() => this.#edit({ content: text }, i, $("log").children[i]));
      });
      $("input").focus();
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        save();
      }
    });
    const bar = el(
      "div", { class: "bar" },
      el("button", { type: "button", class: "main", text: "Send", on: { click: save } }),
      el("button", { type: "button", class: "quiet", text: "Cancel", on: { click: cancel } }),
    );
    const later = conversation.messages.length - i - 1;
    if (later) bar.append(el("span", { class: "facts", text: later === 1 ? "replaces the message after it" : `replaces the ${later} messages after it` }));
    article.replaceChildren(el("div", { class: "editor" }, area, bar));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #welcome() {
    const { model } = this.app;
    const box = el("div", { class: "welcome" });
    if (model && !model.chats) {
      box.append(
        el("p", { class: "large", text: `${model.id} continues texts` }),
        el("p", { text: "It has no chat format, so it cannot answer messages." }),
        el("p", {}, el("a", { href: "#text", class: "main", text: "Write a beginning for it" })),
      );
      return box;
    }
    box.append(el("p", { class: "large", text: "What is on your mind?" }), el("p", { text: "What you write goes to this server only, and stays in this browser." }));
    const ideas = ["Explain how rainbows form, in three sentences.", "Write a Python function that reverses a string.", "Give me five names for a small bakery."];
    box.append(el("div", { class: "ideas" }, ...ideas.map((text) => el("button", { type: "button", text, on: { click: () => this.#take(text) } }))));
    return box;
  }

  #take(text) {
    $("input").value = this.conversation.draft = text;
    this.#fit();
    $("input").focus();
  }

  /** What depends on whether an answer is being written. */
  #state() {
    const running = Boolean(this.run);
    const focused = document.activeElement === $("send") || document.activeElement === $("stop");
    $("send").hidden = running;
    $("stop").hidden = !running;
    if (focused) $(running ? "stop" : "send").focus();
    const last = this.conversation.messages.findLast((message) => message.facts?.prompt);
    const { model } = this.app;
    $("context").hidden = !last || !model;
    if (last && model) {
      const used = last.facts.prompt + last.facts.tokens;
      fill($("meter"), used / model.context);
      $("meter").setAttribute("aria-valuemax", model.context);
      $("meter").setAttribute("aria-valuenow", Math.min(used, model.context));
      $("used").textContent = `${number(used)} of ${number(model.context)} tokens`;
    }
  }

  #fit() {
    const { style } = $("input");
    if (CSS.supports("field-sizing", "content")) return;
    style.height = "auto";
    style.height = `${$("input").scrollHeight}px`;
  }

  #toEnd() {
    const scroller = $("scroller");
    scroller.scrollTop = scroller.scrollHeight;
    $("newest").hidden = true;
  }
}

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroller");
  return scrollHeight - scrollTop - clientHeight < AT_END;
}

function titleOf(text) {
  const line = text.replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 60).replace(/\s\S*$/, "")}…` : line;
}

const ENDS = { length: "at the limit", stopped: "stopped", error: "broken off" };

function factsLine({ facts, finish }) {
  if (!facts) return ENDS[finish] ?? "";
  const words = [`${number(facts.tokens)} ${facts.tokens === 1 ? "token" : "tokens"}`];
  if (facts.rate) words.push(`${number(facts.rate, 1)} tokens/s`);
  if (facts.first !== null) words.push(`first after ${number(facts.first, 2)} s`);
  if (ENDS[finish]) words.push(ENDS[finish]);
  return words.join(" · ");
}
