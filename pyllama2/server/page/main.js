// The page: conversations at the left, settings at the right, a chat or a text between them.

import { model as askForModel } from "./api.js";
import { Chat } from "./chat.js";
import { $, el, iconButton, notice, number, say } from "./dom.js";
import { DEFAULTS, Drawer, cleaned } from "./settings.js";
import { Store, newConversation } from "./store.js";
import { TextTool } from "./text.js";

const SETTINGS = "pyllama2.settings";
const TOKENS = "pyllama2.tokens";
const LAST = "pyllama2.last";
const DRAFT = "pyllama2.draft"; // of the conversation that has not begun
const THEMES = ["auto", "light", "dark"];
const KEEP_MS = 400;

/** What is kept between visits, where the browser allows it. */
const kept = {
  get: (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set: (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch {
      // it lasts as long as the page
    }
  },
};

class App {
  model = null;
  showsTokens = kept.get(TOKENS) === "true";
  timers = new Map();
  removed = new Set(); // ids of conversations that must not come back by an answer or a draft that ends later

  async start() {
    this.store = await Store.open();
    this.settings = this.#storedSettings();
    this.drawer = new Drawer((settings) => this.#set(settings));
    this.chat = new Chat(this);
    this.text = new TextTool(this);
    this.#connect();
    this.#showTheme();
    $("view-tokens").setAttribute("aria-pressed", String(this.showsTokens));
    this.open(this.store.conversations.get(kept.get(LAST)) ?? this.#fresh());
    this.#route();
    if (!this.store.keeps) notice($("chat-notice"), "This browser keeps no conversations for this page: they end with the tab.");
    await this.#loadModel();
  }

  open(conversation) {
    this.conversation = conversation;
    this.settings = conversation.settings;
    kept.set(LAST, conversation.id);
    this.drawer.show(conversation.settings);
    this.chat.show(conversation);
    this.#drawList();
  }

  /** A conversation has other messages. */
  changed(conversation) {
    this.#save(conversation);
    this.#drawList();
  }

  /** Keep a conversation soon: its draft changes with every key. */
  keep(conversation) {
    if (!conversation.messages.length) return kept.set(DRAFT, conversation.draft);
    clearTimeout(this.timers.get(conversation.id));
    this.timers.set(conversation.id, setTimeout(() => this.#save(conversation), KEEP_MS));
  }

  async #save(conversation) {
    clearTimeout(this.timers.get(conversation.id));
    if (this.removed.has(conversation.id)) return;
    try {
      if (conversation.messages.length) await this.store.save(conversation);
    } catch {
      notice($("chat-notice"), "The conversation could not be kept: this browser has no room for it. Export it, or delete others.");
    }
  }

  async #loadModel() {
    try {
      this.model = await askForModel();
    } catch (error) {
      for (const place of ["chat-notice", "text-notice"]) notice($(place), error.message, ["Try again", () => this.#loadModel()]);
      return;
    }
    const { id, context, chats } = this.model;
    $("model").textContent = id;
    $("model").title = `${id}, a context of ${number(context)} tokens`;
    for (const place of ["chat-notice", "text-notice"]) if (this.store.keeps) notice($(place), "");
    if (!chats && !location.hash) location.hash = "#text";
    this.chat.draw();
  }

  #storedSettings() {
    try {
      return cleaned(JSON.parse(kept.get(SETTINGS)) ?? DEFAULTS);
    } catch {
      return { ...DEFAULTS };
    }
  }

  #set(settings) {
    this.settings = this.conversation.settings = settings;
    kept.set(SETTINGS, JSON.stringify(settings));
    this.keep(this.conversation);
  }

  #connect() {
    addEventListener("hashchange", () => this.#route());
    addEventListener("pagehide", () => this.#save(this.conversation));
    $("new").addEventListener("click", () => this.#new());
    $("view-tokens").addEventListener("click", () => this.#toggleTokens());
    $("theme").addEventListener("click", () => this.#nextTheme());
    $("export").addEventListener("click", () => this.#export());
    $("import").addEventListener("click", () => $("file").click());
    $("file").addEventListener("change", () => this.#import());
    document.addEventListener("keydown", (event) => {
      const open = document.querySelector("dialog[open], #settings:popover-open");
      if (event.key !== "Escape" || event.defaultPrevented || open || event.isComposing) return;
      if (location.hash === "#text") this.text.stop();
      else this.chat.stop();
    });
  }

  #route() {
    const text = location.hash === "#text";
    $("chat").hidden = text;
    $("text").hidden = !text;
    $("to-chat").toggleAttribute("aria-current", !text);
    $("to-text").toggleAttribute("aria-current", text);
    $(text ? "to-text" : "to-chat").setAttribute("aria-current", "page");
    document.body.dataset.tool = text ? "text" : "chat";
    if (matchMedia("(pointer: fine)").matches) $(text ? "raw" : "input").focus();
    this.#drawTitle();
  }

  #drawTitle() {
    const title = location.hash === "#text" ? "Text" : this.conversation.title || "New conversation";
    $("title").textContent = title;
    document.title = `${title} · pyllama2`;
  }

  /** A conversation that has not begun, with what was written for it already. */
  #fresh() {
    return { ...newConversation(this.settings), draft: kept.get(DRAFT) ?? "" };
  }

  #new() {
    this.open(this.#fresh());
    location.hash = "#chat";
    hideList();
    $("input").focus();
  }

  #drawList() {
    this.#drawTitle();
    const rows = this.store.list().map((conversation) => {
      const current = conversation === this.conversation;
      const title = conversation.title || "Untitled";
      const open = el("button", {
        type: "button", class: "name", text: title, title, "aria-current": current ? "true" : null,
        on: { click: () => { this.open(conversation); location.hash = "#chat"; hideList(); } },
      });
      const row = el("li", { class: current ? "current" : null }, open);
      row.append(
        iconButton("edit", `Rename ${title}`, () => this.#rename(conversation, row)),
        iconButton("delete", `Delete ${title}`, () => this.#remove(conversation)),
      );
      return row;
    });
    $("list").replaceChildren(...rows);
  }

  #rename(conversation, row) {
    const input = el("input", { type: "text", "aria-label": "Name of the conversation", value: conversation.title, maxlength: 200 });
    let done = false;
    const end = (keeps) => {
      if (done) return;
      done = true;
      if (keeps && input.value.trim()) conversation.title = input.value.trim();
      this.changed(conversation);
    };
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      end(event.key === "Enter" && !event.isComposing);
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.select();
  }

  async #remove(conversation) {
    this.removed.add(conversation.id);
    clearTimeout(this.timers.get(conversation.id));
    this.chat.runs.get(conversation.id)?.controller.abort();
    await this.store.remove(conversation.id);
    if (conversation === this.conversation) this.open(this.store.list()[0] ?? newConversation(this.settings));
    else this.#drawList();
    toast(`Deleted “${(conversation.title || "Untitled").slice(0, 40)}”`, async () => {
      this.removed.delete(conversation.id);
      await this.store.save(conversation);
      this.open(conversation);
    });
    $("new").focus();
  }

  #export() {
    const url = URL.createObjectURL(new Blob([this.store.export()], { type: "application/json" }));
    el("a", { href: url, download: `conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("Exported");
  }

  async #import() {
    const [file] = $("file").files;
    $("file").value = "";
    if (!file) return;
    try {
      const n = await this.store.import(file);
      this.#drawList();
      toast(n === 1 ? "1 conversation imported" : `${n} conversations imported`);
    } catch (error) {
      hideList();
      location.hash = "#chat";
      notice($("chat-notice"), error.message);
    }
  }

  #toggleTokens() {
    this.showsTokens = !this.showsTokens;
    kept.set(TOKENS, String(this.showsTokens));
    $("view-tokens").setAttribute("aria-pressed", String(this.showsTokens));
    if (this.chat.run) return; // the answer under way goes on as it began
    this.chat.draw();
    const known = this.conversation.messages.some((message) => message.tokens?.length);
    if (this.showsTokens && !known) toast("New texts are coloured by the probability of their tokens");
  }

  #nextTheme() {
    const theme = document.documentElement.dataset.theme ?? "auto";
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    kept.set("pyllama2.theme", next);
    this.#showTheme();
    say(`Theme: ${next}`);
  }

  #showTheme() {
    const theme = document.documentElement.dataset.theme ?? "auto";
    $("theme").querySelector("span").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
    $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  }
}

function hideList() {
  if ($("sidebar").matches(":popover-open")) $("sidebar").hidePopover();
}

let toastTimer = null;

function toast(text, undo) {
  const box = $("toast");
  const [words, button] = box.children;
  words.textContent = text;
  button.hidden = !undo;
  button.onclick = () => {
    box.hidden = true;
    undo();
  };
  box.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (box.hidden = true), undo ? 8000 : 4000);
}

new App().start();
