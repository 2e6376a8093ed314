"""The result of generate() and chat(). A stream's chunks add up to it: text, token_ids and logprobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .chunk import FinishReason, Timings, TokenLogprob, Usage
from .completion_html import completion_html


@dataclass(frozen=True)
class Completion:
    """A generated text.

    A notebook shows the text. With logprobs, each token has the more colour the less it was expected.

    Attributes:
        text: the text without what ended it. With echo, the prompt comes first.
        token_ids: all generated tokens, without an end-of-text or stop token.
        logprobs: one for each of token_ids. None unless asked for.
        finish_reason: "stop"; "length": max_tokens or the end of the context was reached; "cancelled": the stream was
            closed.
        stop_reason: the stop string, or the id of the token, that ended the text. None for other endings.
        usage: numbers of tokens.
        timings: seconds and rates.
        n_echoed: number of characters at the beginning of text that are the prompt's. 0 without echo.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings
    n_echoed: int = 0

    def __str__(self) -> str:
        """The text."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of strings, numbers, lists and dicts, which json.dumps() takes."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """HTML for IPython. All text of the model is escaped."""
        return self.html_with(self.finish_reason)

    def html_with(self, reason: str) -> str:
        """HTML for IPython, where reason says why the text ends."""
        if isinstance(self.stop_reason, str):
            reason = f"{reason} at {self.stop_reason!r}"
        notes = [
            reason,
            f"{self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens",
            f"{self.timings.decode_tokens_per_s:,.0f} tokens/s",
        ]
        # A stop string cuts the text. In a stream that goes on, the text may be behind its tokens.
        is_cut = isinstance(self.stop_reason, str) or self.finish_reason == "cancelled"
        prompt, generated = self.text[: self.n_echoed], self.text[self.n_echoed :]
        return completion_html(prompt, generated, self.logprobs, is_cut=is_cut, notes=notes)


class Completions(list[Completion]):
    """A list of completions. A notebook shows each of them."""

    def _repr_html_(self) -> str:
        """HTML for IPython. All text of the model is escaped."""
        return "<hr>".join(completion._repr_html_() for completion in self)
