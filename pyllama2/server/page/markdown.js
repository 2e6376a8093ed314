// Text of a model to elements. It may hold anything, so HTML in it is text, and what markdown-it and highlight.js make
// of it goes through DOMPurify.

import MarkdownIt from "./vendor/markdown-it.js";
import DOMPurify from "./vendor/dompurify.js";
import hljs from "./vendor/highlight.js";
import { copy, el, icon } from "./dom.js";

const PLAIN = 200_000; // longer texts are shown as they are
const HIGHLIGHTED = 20_000; // so are longer blocks of code
const SAFE = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a",
    "span", "table", "thead", "tbody", "tr", "th", "td",
  ],
  ALLOWED_ATTR: ["href", "class", "start"],
  ALLOWED_URI_REGEXP: /^https?:\/\//i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true, highlight });
markdown.validateLink = (url) => /^https?:\/\//i.test(url);
// A picture from elsewhere would tell its server what is read here: its address is a link.
markdown.renderer.rules.image = (tokens, i) => {
  const escape = markdown.utils.escapeHtml;
  const source = tokens[i].attrGet("src") ?? "";
  return `<a href="${escape(source)}">${escape(tokens[i].content || source)}</a>`;
};
// The page has the first two levels.
for (const rule of ["heading_open", "heading_close"]) {
  markdown.renderer.rules[rule] = (tokens, i, options, env, self) => {
    tokens[i].tag = `h${Math.min(6, Number(tokens[i].tag[1]) + 2)}`;
    return self.renderToken(tokens, i, options);
  };
}

function highlight(code, language) {
  if (code.length > HIGHLIGHTED || !hljs.getLanguage(language)) return "";
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

/** Elements for a text in Markdown. */
export function render(text) {
  if (text.length > PLAIN) {
    const fragment = document.createDocumentFragment();
    fragment.append(el("pre", { class: "plain", text }));
    return fragment;
  }
  const fragment = DOMPurify.sanitize(markdown.render(text), SAFE);
  for (const element of fragment.querySelectorAll("[class]")) {
    const names = [...element.classList].filter((name) => /^(hljs|language)-[\w-]+$/.test(name));
    element.className = names.join(" ");
  }
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    link.title = link.href;
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = el("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(box);
    box.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) withHead(pre);
  return fragment;
}

/** Put the language and a button to copy over a block of code. */
function withHead(pre) {
  const code = pre.querySelector("code");
  const language = code && /language-(\S+)/.exec(code.className)?.[1];
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  const block = el("div", { class: "code" });
  pre.replaceWith(block);
  const button = el(
    "button",
    { type: "button", class: "quiet tiny", "aria-label": "Copy the code", on: { click: () => copy(pre.textContent) } },
    icon("copy"), "Copy",
  );
  block.append(el("div", { class: "code-head" }, el("span", { text: language ?? "" }), button), pre);
}

/** A text that grows. Blocks that have ended are rendered once, only the last one anew. */
export class Growing {
  constructor(place) {
    this.place = place;
    this.done = 0; // characters that are in finished blocks
    this.kept = 0; // children of the place that hold them
    place.replaceChildren();
  }

  update(text) {
    if (text.length > PLAIN) {
      this.plain ??= this.#asPlain();
      this.plain.textContent = text;
      return;
    }
    const end = endOfBlocks(text, this.done);
    while (this.place.childNodes.length > this.kept) this.place.lastChild.remove();
    if (end > this.done) {
      this.place.append(render(text.slice(this.done, end)));
      this.done = end;
      this.kept = this.place.childNodes.length;
    }
    this.place.append(render(text.slice(this.done)));
  }

  #asPlain() {
    const pre = el("pre", { class: "plain" });
    this.place.replaceChildren(pre);
    return pre;
  }
}

/** Where the last blank line outside of code is, before which nothing changes any more; lists and quotes go on. */
function endOfBlocks(text, start) {
  let fence = null;
  let end = start;
  let at = start;
  for (const line of text.slice(start).split("\n")) {
    const next = at + line.length + 1;
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (mark && fence === null) fence = mark;
    else if (mark && mark[0] === fence?.[0] && mark.length >= fence.length && line.trim() === mark) fence = null;
    const after = text.slice(next, next + 1);
    if (fence === null && line.trim() === "" && next <= text.length && after && !/[\s\-*+>\d|]/.test(after)) end = next;
    at = next;
  }
  return end;
}
