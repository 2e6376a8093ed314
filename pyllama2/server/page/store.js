// Conversations, in this browser's own database.

import { cleaned } from "./settings.js";

const ROLES = new Set(["user", "assistant"]);
const MOST = 50 << 20; // bytes of a file to import

export class Store {
  /** Open the database; without one, conversations last as long as the tab. */
  static async open() {
    const store = new Store();
    try {
      store.database = await new Promise((resolve, reject) => {
        const request = indexedDB.open("pyllama2", 1);
        request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
      });
      for (const conversation of await store.#run("readonly", (table) => table.getAll())) {
        store.conversations.set(conversation.id, conversation);
      }
    } catch {
      store.database = null;
    }
    return store;
  }

  constructor() {
    this.database = null;
    this.conversations = new Map();
  }

  get keeps() {
    return this.database !== null;
  }

  /** The newest first. */
  list() {
    return [...this.conversations.values()].sort((a, b) => b.updated - a.updated);
  }

  async save(conversation) {
    this.conversations.set(conversation.id, conversation);
    if (this.database) await this.#run("readwrite", (table) => table.put(conversation));
  }

  async remove(id) {
    this.conversations.delete(id);
    if (this.database) await this.#run("readwrite", (table) => table.delete(id));
  }

  #run(mode, use) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction("conversations", mode);
      const request = use(transaction.objectStore("conversations"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error ?? request.error);
    });
  }

  export() {
    return JSON.stringify({ format: "pyllama2.conversations", version: 1, conversations: this.list() }, null, 1);
  }

  /** Add the conversations of a file, as new ones. Returns how many; throws an Error with a sentence. */
  async import(file) {
    if (file.size > MOST) throw new Error("The file is too large.");
    let data;
    try {
      data = JSON.parse(await file.text());
    } catch {
      throw new Error("The file is not JSON.");
    }
    if (data?.format !== "pyllama2.conversations" || !Array.isArray(data.conversations)) {
      throw new Error("The file is no export of conversations.");
    }
    const found = data.conversations.map(checked);
    for (const conversation of found) await this.save(conversation);
    return found.length;
  }
}

export function newConversation(settings) {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", created: now, updated: now, settings: { ...settings }, messages: [], draft: "" };
}

/** A conversation of someone else's file, with the fields that are known here, and an id of its own. */
function checked(one) {
  const wrong = () => new Error("The file has a conversation that cannot be read.");
  if (typeof one !== "object" || one === null || !Array.isArray(one.messages)) throw wrong();
  const messages = one.messages.map((message) => {
    if (!ROLES.has(message?.role) || typeof message.content !== "string") throw wrong();
    const found = { role: message.role, content: message.content };
    if (Array.isArray(message.tokens)) {
      const tokens = message.tokens.map(token);
      if (!tokens.includes(null)) found.tokens = tokens;
    }
    if (Number.isFinite(message.facts?.tokens)) {
      const known = (name) => (Number.isFinite(message.facts[name]) ? message.facts[name] : null);
      found.facts = { tokens: known("tokens"), prompt: known("prompt"), rate: known("rate"), first: known("first") };
    }
    if (["stop", "length", "stopped", "error"].includes(message.finish)) found.finish = message.finish;
    return found;
  });
  const time = (value) => (Number.isFinite(value) ? value : Date.now());
  return {
    ...newConversation(cleaned(one.settings)),
    title: typeof one.title === "string" ? one.title.slice(0, 200) : "",
    created: time(one.created), updated: time(one.updated), messages,
  };
}

function token(one) {
  const fine = typeof one?.text === "string" && Number.isFinite(one.p) && Array.isArray(one.top)
    && one.top.every((pair) => Array.isArray(pair) && typeof pair[0] === "string" && Number.isFinite(pair[1]));
  return fine ? { text: one.text, p: one.p, top: one.top.map(([text, p]) => [text, p]) } : null;
}
