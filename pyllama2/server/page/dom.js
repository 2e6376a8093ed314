// Elements, and what is said to people who listen rather than look.

export const $ = (id) => document.getElementById(id);

/** An element with properties (class, text, on, data, or attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, f] of Object.entries(value)) element.addEventListener(event, f);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A small button with an icon, whose name is spoken and shown on hover. */
export function iconButton(name, label, action) {
  return el("button", { type: "button", class: "icon small", "aria-label": label, title: label, on: { click: action } }, icon(name));
}

/** Fill a gauge up to a share from 0 to 1. */
export function fill(gauge, share) {
  gauge.firstElementChild.style.width = `${100 * Math.min(1, share)}%`;
}

export function say(text) {
  $("status").textContent = "";
  setTimeout(() => ($("status").textContent = text), 30);
}

/** Speaks a text that grows, sentence by sentence. */
export class Speaker {
  constructor() {
    this.spoken = 0;
    $("spoken").replaceChildren();
  }

  update(text, ended) {
    let end = text.length;
    if (!ended) {
      const rest = text.slice(this.spoken);
      const sentences = [...rest.matchAll(/[.!?:]["')\]]*\s|\n/g)];
      if (!sentences.length) return;
      const last = sentences.at(-1);
      end = this.spoken + last.index + last[0].length;
    }
    const sentence = text.slice(this.spoken, end).trim();
    this.spoken = end;
    if (sentence) $("spoken").append(el("p", { text: sentence.slice(0, 2000) }));
    while ($("spoken").childElementCount > 40) $("spoken").firstElementChild.remove();
  }
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Clipboards need https or localhost.
    const area = el("textarea", { class: "hidden", value: text, "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied");
}

/** Show a sentence of what went wrong, with actions [label, function]. Without a sentence, show none. */
export function notice(place, sentence, ...actions) {
  place.replaceChildren();
  if (!sentence) return;
  const buttons = actions.map(([label, f]) => el("button", { type: "button", class: "quiet", text: label, on: { click: f } }));
  const close = iconButton("close", "Close the message", () => place.replaceChildren());
  place.append(el("div", { class: "wrong" }, el("p", { text: sentence }), ...buttons, close));
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
