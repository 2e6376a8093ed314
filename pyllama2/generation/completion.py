"""The result of generate() and chat(). A stream's chunks add up to it: text, token_ids and logprobs."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings

    def _repr_html_(self) -> str:
        """HTML for IPython. All text of the model is escaped."""
        return completion_html(self.text, self.logprobs, self.finish_reason, self.stop_reason, self.usage, self.timings)
