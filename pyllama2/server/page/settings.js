// The drawer: what an answer is asked for.

import { $, el } from "./dom.js";

// name, label, hint, lowest, highest, step; the empty value leaves the choice to the server
const NUMBERS = [
  ["temperature", "Temperature", "0 always takes the likeliest token", 0, 2, 0.05],
  ["top_p", "Top-p", "the likeliest tokens up to this mass; 1 is off", 0, 1, 0.01],
  ["top_k", "Top-k", "the likeliest so many tokens; 0 is off", 0, 1000, 1],
  ["min_p", "Min-p", "no token below this share of the likeliest", 0, 1, 0.01],
  ["repetition_penalty", "Repetition penalty", "1 is off", 0.1, 3, 0.05],
  ["presence_penalty", "Presence penalty", "0 is off", -2, 2, 0.1],
  ["frequency_penalty", "Frequency penalty", "0 is off", -2, 2, 0.1],
  ["max_tokens", "Most tokens", "empty: to the end of the context", 1, 1_000_000, 1],
  ["seed", "Seed", "the same seed gives the same text", 0, Number.MAX_SAFE_INTEGER, 1],
];
const MAIN = 2; // so many are shown without a click

export const DEFAULTS = { system: "", temperature: 0.7, top_p: 0.95, stop: "" };

/** Settings from anything, such as a file of someone else. */
export function cleaned(settings) {
  const found = { system: "", stop: "" };
  for (const name of ["system", "stop"]) if (typeof settings?.[name] === "string") found[name] = settings[name].slice(0, 100_000);
  for (const [name, , , low, high] of NUMBERS) {
    const value = settings?.[name];
    if (typeof value === "number" && value >= low && value <= high) found[name] = value;
  }
  return found;
}

/** The fields of a request. */
export function fieldsOf(settings, variant = 0) {
  const fields = {};
  for (const [name] of NUMBERS) if (settings[name] !== undefined) fields[name] = settings[name];
  if (fields.seed !== undefined) fields.seed += variant; // another text is wanted
  const stops = settings.stop.split("\n").filter(Boolean).map((stop) => stop.replaceAll("\\n", "\n"));
  if (stops.length) fields.stop = stops;
  return fields;
}

/** Fill the drawer. changed(settings) is called with every change that is valid. */
export class Drawer {
  constructor(changed) {
    this.changed = changed;
    this.settings = { ...DEFAULTS };
    this.inputs = {};
    const form = $("fields");
    const rows = NUMBERS.map((row) => this.#number(...row));
    form.append(
      this.#text("system", "System prompt", "what the assistant should know and do", 5),
      ...rows.slice(0, MAIN),
      el("details", {}, el("summary", { text: "More sampling" }), ...rows.slice(MAIN), this.#text("stop", "Stop at", "a text a line; \\n is a line break", 2)),
      el("button", { type: "button", class: "quiet", text: "Reset to the defaults", on: { click: () => this.#reset() } }),
    );
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  show(settings) {
    this.settings = { ...settings };
    for (const [name, { input, range }] of Object.entries(this.inputs)) {
      input.value = settings[name] ?? "";
      input.setCustomValidity("");
      this.#mark(input);
      if (range) range.value = settings[name] ?? range.dataset.off;
    }
  }

  #text(name, label, hint, rows) {
    const id = `set-${name}`;
    const input = el("textarea", { id, rows, "aria-describedby": `${id}-hint`, on: { input: () => this.#set(name, input.value) } });
    this.inputs[name] = { input };
    return el("div", { class: "field" }, el("label", { for: id, text: label }), input, el("p", { id: `${id}-hint`, class: "hint", text: hint }));
  }

  #number(name, label, hint, low, high, step) {
    const id = `set-${name}`;
    const input = el("input", {
      id, type: "number", min: low, max: high, step: "any", inputmode: "decimal", "aria-describedby": `${id}-hint`,
      placeholder: "default", on: { input: () => this.#take(name, input, low, high, step) },
    });
    let range = null;
    if (high <= 3) {
      const off = { temperature: 1, top_p: 1, repetition_penalty: 1 }[name] ?? 0;
      range = el("input", {
        type: "range", min: low, max: high, step, tabindex: "-1", "aria-hidden": "true", "data-off": off,
        on: { input: () => { input.value = range.value; this.#take(name, input, low, high, step); } },
      });
      range.value = off;
    }
    this.inputs[name] = { input, range };
    return el(
      "div", { class: "field row" }, el("label", { for: id, text: label }), input, range ?? "",
      el("p", { id: `${id}-hint`, class: "hint", text: hint }),
    );
  }

  #take(name, input, low, high, step) {
    const { range } = this.inputs[name];
    const value = input.value.trim() === "" ? undefined : Number(input.value);
    const wrong = input.validity.badInput || (value !== undefined && (!(value >= low && value <= high) || (step === 1 && !Number.isInteger(value))));
    input.setCustomValidity(wrong ? `${step === 1 ? "A whole number" : "A number"} from ${low} to ${high}` : "");
    this.#mark(input);
    if (wrong) return;
    if (range) range.value = value ?? range.dataset.off;
    this.#set(name, value);
  }

  /** Say what is wrong with a field beside it. */
  #mark(input) {
    const hint = $(`${input.id}-hint`);
    hint.dataset.hint ??= hint.textContent;
    const message = input.validationMessage;
    hint.textContent = message || hint.dataset.hint;
    hint.classList.toggle("wrong", Boolean(message));
    input.toggleAttribute("aria-invalid", Boolean(message));
    if (message) input.setAttribute("aria-invalid", "true");
  }

  #set(name, value) {
    this.settings = { ...this.settings, [name]: value };
    if (value === undefined) delete this.settings[name];
    this.changed(this.settings);
  }

  #reset() {
    this.show({ ...DEFAULTS, system: this.settings.system });
    this.changed(this.settings);
  }
}
