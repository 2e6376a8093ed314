"""A Completion as HTML, for notebooks: its text, where each token has the more colour the less it was expected.

The colours are transparent, so that text can be read on light and on dark pages. All text of the model is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape

from .chunk import TokenLogprob

_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;max-width:60em"
_NOTE = "font-size:85%;opacity:.75;margin-top:.4em"
_COLOUR = "255,90,30"  # orange, as red, green, blue
_MOST = 0.6  # opacity of a token that could not have been expected
_BITS = 8.0  # surprise, in bits, that gets this opacity
_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")  # how Tokenizer.piece() writes bytes that are no character by themselves


def completion_html(
    prompt: str, generated: str, logprobs: list[TokenLogprob] | None, *, is_cut: bool, notes: Sequence[str]
) -> str:
    """Return a fragment without scripts or style sheets.

    A token's title has its probability and the likeliest tokens.

    Args:
        prompt: the text before the generated text; "" without echo.
        generated: the generated text.
        logprobs: of the generated tokens. None: the text has no colours.
        is_cut: whether tokens may reach beyond the end of the generated text.
        notes: what the last line says.
    """
    if logprobs is None:
        body = escape(prompt + generated)
    else:
        body = escape(prompt) + _coloured(generated, is_cut, list(_characters(logprobs)))
        if logprobs:
            mean = -sum(entry.logprob for entry in logprobs) / len(logprobs) / math.log(2)
            notes = [*notes, f"{mean:.2f} bits a token; the more colour, the less expected"]
    note = escape(" · ".join(notes))
    return f'<div><div style="{_BOX}">{body}</div><div style="{_NOTE}">{note}</div></div>'


def _characters(entries: list[TokenLogprob]) -> Iterator[tuple[str, list[TokenLogprob]]]:
    """Pairs of a text and its tokens. Tokens that are bytes of one character come together, with the character."""
    waiting: list[TokenLogprob] = []
    for entry in entries:
        if not _BYTES.fullmatch(entry.token):
            if waiting:
                yield _bytes_of(waiting).decode("utf-8", "replace"), waiting
            yield entry.token, [entry]
            waiting = []
            continue
        waiting = [*waiting, entry]
        try:
            yield _bytes_of(waiting).decode(), waiting
        except UnicodeDecodeError:  # its end is still to come
            continue
        waiting = []
    if waiting:
        yield _bytes_of(waiting).decode("utf-8", "replace"), waiting


def _bytes_of(entries: list[TokenLogprob]) -> bytes:
    return bytes.fromhex("".join(entry.token for entry in entries).replace("<0x", "").replace(">", ""))


def _coloured(text: str, is_cut: bool, parts: list[tuple[str, list[TokenLogprob]]]) -> str:
    """The tokens; faintly those that reach beyond the end of text, where it was cut."""
    of_tokens = "".join(token for token, _ in parts)
    n_kept = len(of_tokens)
    if is_cut:
        # A text that does not continue a prompt has lost the leading space of its first token.
        n_kept = len(text) + (of_tokens.startswith(" ") and not of_tokens.startswith(text))
    spans, end = [], 0
    for token, entries in parts:
        end += len(token)
        spans.append(_token(token, entries, faint=end > n_kept))
    return "".join(spans)


def _token(text: str, entries: list[TokenLogprob], *, faint: bool) -> str:
    surprise = sum(-entry.logprob for entry in entries) / math.log(2)
    share = min(max(surprise, 0.0) / _BITS, 1.0)
    lines = []
    for entry in entries:
        bits = -entry.logprob / math.log(2) + 0.0  # not -0.0
        lines.append(f"{entry.token!r}  {_percent(entry.logprob)}, {bits:.1f} bits, token {entry.token_id}")
        lines += [f"{_percent(logprob)}  {other!r}" for _, other, logprob in entry.top]
    title = escape("\n".join(lines)).replace("\n", "&#10;")
    style = f"background:rgba({_COLOUR},{_MOST * share:.2f});border-radius:.2em" + (";opacity:.4" if faint else "")
    return f'<span style="{style}" title="{title}">{escape(text)}</span>'


def _percent(logprob: float) -> str:
    return f"{math.exp(min(logprob, 0.0)):.1%}"
