"""A Completion as HTML, for notebooks: its text, where each token has the more colour the less it was expected.

The colours are transparent, so that text can be read on light and on dark pages. All text of the model is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import escape

from .chunk import FinishReason, Timings, TokenLogprob, Usage

_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;max-width:60em"
_NOTE = "font-size:85%;opacity:.75;margin-top:.4em"
_COLOUR = "255,90,30"  # orange, as red, green, blue
_MOST = 0.6  # opacity of a token that could not have been expected
_BITS = 8.0  # surprise, in bits, that gets this opacity
_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")  # how Tokenizer.piece() writes bytes that are no character by themselves


def completion_html(
    text: str,
    logprobs: list[TokenLogprob] | None,
    finish_reason: FinishReason,
    stop_reason: str | int | None,
    usage: Usage,
    timings: Timings,
) -> str:
    """Return a fragment without scripts or style sheets.

    A token's title has its probability and the likeliest tokens. Arguments are the fields of Completion.
    """
    if logprobs is None:
        body = escape(text)
    else:
        # A stop string cuts the text. In a stream that goes on, the text may be behind its tokens.
        is_cut = isinstance(stop_reason, str) or finish_reason == "cancelled"
        body = _coloured(text, is_cut, list(_characters(logprobs)))
    note = _note(logprobs, finish_reason, stop_reason, usage, timings)
    return f'<div><div style="{_BOX}">{body}</div><div style="{_NOTE}">{escape(note)}</div></div>'


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
    """What comes before the tokens, the tokens, and faintly the tokens that a stop string cut off."""
    prompt, kept = _split(text, is_cut, "".join(token for token, _ in parts))
    spans, place = [escape(prompt)], 0
    for token, entries in parts:
        place += len(token)
        spans.append(_token(token, entries, faint=place > kept))
    return "".join(spans)


def _split(text: str, is_cut: bool, generated: str) -> tuple[str, int]:
    """The text that echo puts before the generated text, and how many characters of the latter are in text."""
    # A text that does not continue a prompt has no leading space.
    starts = (0, 1) if generated.startswith(" ") else (0,)
    for end in range(len(generated), -1 if is_cut else len(generated) - 1, -1):
        for start in starts:
            if start <= end and text.endswith(generated[start:end]):
                return text[: len(text) - (end - start)], end
    return "", len(generated)


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


def _note(
    logprobs: list[TokenLogprob] | None,
    finish_reason: FinishReason,
    stop_reason: str | int | None,
    usage: Usage,
    timings: Timings,
) -> str:
    reason: str = finish_reason
    if isinstance(stop_reason, str):
        reason = f"{reason} at {stop_reason!r}"
    parts = [
        reason,
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"{timings.decode_tokens_per_s:,.0f} tokens/s",
    ]
    if logprobs:
        mean = -sum(entry.logprob for entry in logprobs) / len(logprobs) / math.log(2)
        parts.append(f"{mean:.2f} bits a token; the more colour, the less expected")
    return " · ".join(parts)
