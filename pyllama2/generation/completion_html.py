"""A Completion as HTML, for notebooks: its text, each token the more coloured the less it was expected.

Colours are laid over the notebook's own, thinly enough to read on light and on dark pages. Everything that a model
said is escaped. Used by completion.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .completion import Completion, TokenLogprob

_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;max-width:60em"
_NOTE = "font-size:85%;opacity:.75;margin-top:.4em"
_COLOUR = "255,90,30"  # orange, as red, green, blue
_MOST = 0.6  # opacity of a token that could not have been expected
_BITS = 8.0  # surprise at which that is reached
_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")  # how Tokenizer.piece() spells what is no character by itself


def completion_html(completion: Completion) -> str:
    """A fragment without scripts or style sheets. A token's title has its probability and the likeliest tokens."""
    if completion.logprobs is None:
        body = escape(completion.text)
    else:
        body = _coloured(completion, list(_characters(completion.logprobs)))
    return f'<div><div style="{_BOX}">{body}</div><div style="{_NOTE}">{escape(_note(completion))}</div></div>'


def _characters(entries: list[TokenLogprob]) -> Iterator[tuple[str, list[TokenLogprob]]]:
    """The text of each token; tokens that are bytes of one character together, with that as their text."""
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


def _coloured(completion: Completion, parts: list[tuple[str, list[TokenLogprob]]]) -> str:
    """What the text begins with before its tokens, the tokens, and faintly what a stop string cut off."""
    prompt, kept = _split(completion, "".join(text for text, _ in parts))
    spans, place = [escape(prompt)], 0
    for text, entries in parts:
        place += len(text)
        spans.append(_token(text, entries, faint=place > kept))
    return "".join(spans)


def _split(completion: Completion, generated: str) -> tuple[str, int]:
    """The text before the generated one, which echo puts there, and how much of the latter is in the text."""
    text = completion.text
    # A stop string cuts the text; of a stream that goes on, the text may lag behind its tokens.
    cut = isinstance(completion.stop_reason, str) or completion.finish_reason == "cancelled"
    # The leading space is left out of a text that continues nothing.
    starts = (0, 1) if generated.startswith(" ") else (0,)
    for end in range(len(generated), -1 if cut else len(generated) - 1, -1):
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


def _note(completion: Completion) -> str:
    reason: str = completion.finish_reason
    if isinstance(completion.stop_reason, str):
        reason = f"{reason} at {completion.stop_reason!r}"
    usage, timings = completion.usage, completion.timings
    parts = [
        reason,
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"{timings.decode_tokens_per_s:,.0f} tokens/s",
    ]
    if completion.logprobs:
        mean = -sum(entry.logprob for entry in completion.logprobs) / len(completion.logprobs) / math.log(2)
        parts.append(f"{mean:.2f} bits a token; the more colour, the less expected")
    return " · ".join(parts)
