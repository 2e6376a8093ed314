// A text as its tokens, coloured by their probabilities. The alternatives of a token are shown on hover, and by arrow keys.

import { $, el, fill, number } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // of probability, between the five colours

/** {text, p, top: [[text, p], ...]} of the entries of a chat's logprobs; a character in parts is in its last token. */
export function fromChat(entries, decoder) {
  return entries.map((entry) => ({
    text: entry.bytes ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token,
    p: Math.exp(entry.logprob),
    top: entry.top_logprobs.map((other) => [other.token, Math.exp(other.logprob)]),
  }));
}

/** The same of a completion's logprobs. */
export function fromCompletion(logprobs) {
  return logprobs.tokens.map((text, i) => ({
    text,
    p: Math.exp(logprobs.token_logprobs[i] ?? 0),
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([token, value]) => [token, Math.exp(value)]),
  }));
}

const level = (p) => LEVELS.filter((bound) => p < bound).length;
const percent = (p) => (p < 0.001 ? "< 0.1%" : `${number(100 * p, 1)}%`);
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "(part of a character)";

/** An element with the tokens. */
export function tokenView(tokens) {
  const view = el("div", {
    class: "tokens", tabindex: "0", role: "group",
    "aria-label": "Tokens by probability. Arrow keys move between them.", "aria-describedby": "alternatives",
  });
  let current = -1;
  tokens.forEach((token, i) => {
    const span = el("span", { class: `token p${level(token.p)}`, "data-i": i, text: token.text });
    view.append(span);
    if (/\n$/.test(token.text)) view.append(el("wbr"));
  });
  const spans = view.querySelectorAll(".token");
  const show = (i) => {
    spans[current]?.classList.remove("current");
    current = i;
    const token = tokens[i];
    if (!token) return hide();
    spans[i].classList.add("current");
    place($("alternatives"), spans[i], token);
  };
  const hide = () => {
    spans[current]?.classList.remove("current");
    $("alternatives").hidden = true;
  };
  const over = (event) => {
    const i = event.target.dataset?.i;
    if (i !== undefined) show(Number(i));
  };
  view.addEventListener("pointerover", over);
  view.addEventListener("click", over);
  view.addEventListener("pointerleave", hide);
  view.addEventListener("focus", () => show(Math.max(0, current)));
  view.addEventListener("blur", hide);
  view.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -tokens.length, End: tokens.length }[event.key];
    if (step) {
      event.preventDefault();
      show(Math.min(tokens.length - 1, Math.max(0, current + step)));
      spans[current].scrollIntoView({ block: "nearest" });
    } else if (event.key === "Escape" && !$("alternatives").hidden) {
      event.stopPropagation();
      hide();
    }
  });
  return view;
}

function place(box, span, token) {
  const rows = token.top.map(([text, p]) => el(
    "tr", { class: text === token.text || (token.text && text.trim() === token.text.trim()) ? "chosen" : null },
    el("td", { class: "name", text: visible(text) }), el("td", {}, bar(p)), el("td", { class: "p", text: percent(p) }),
  ));
  const table = el("table", {}, el("caption", {}, el("b", { text: visible(token.text) }), ` ${percent(token.p)}`), el("tbody", {}, ...rows));
  box.replaceChildren(table);
  box.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const below = at.bottom + 6 + height < innerHeight;
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  box.style.top = `${Math.max(8, below ? at.bottom + 6 : at.top - height - 6)}px`;
}

function bar(p) {
  const gauge = el("span", { class: "gauge", "aria-hidden": "true" }, el("span"));
  fill(gauge, p);
  return gauge;
}

/** Tokens without what need not be kept. */
export const compact = (tokens) => tokens.map(({ text, p, top }) => ({ text, p: round(p), top: top.map(([name, q]) => [name, round(q)]) }));
const round = (p) => Number(p.toPrecision(3));
