"""What generation gives back. Made by generation.py; text, token_ids and logprobs of a stream's chunks add up to the
completion's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .completion_html import completion_html

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model's raw logits; natural logarithms.

    top  the most likely tokens as (id, text, logprob), most likely first, as many as SamplingParams.logprobs
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens.

    prompt_tokens      of the prompt, BOS included
    completion_tokens  generated, the one that ended the text included
    cached_tokens      of the prompt, that were computed before, for a sequence that began the same way
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one text, and tokens per second; 0 where nothing was done.

    prompt_s             until the first token was chosen
    decode_s             for all later tokens; steps are shared with the other texts that are decoded
    prompt_tokens_per_s  of the tokens that were computed, not those found in the cache
    """

    prompt_s: float
    decode_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Completion:
    """A generated text.

    text           without what ended it; with echo, after the prompt
    token_ids      all generated, without an end-of-text or stop token
    logprobs       one for each of token_ids; None unless asked for
    finish_reason  "stop"; "length": max_tokens or the end of the context; "cancelled": the stream was closed
    stop_reason    the stop string, or the id of the token, that ended the text; None for other endings

    A notebook shows its text, with logprobs each token the more coloured the less it was expected.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    usage: Usage
    timings: Timings

    def _repr_html_(self) -> str:
        """What IPython shows; everything that the model said is escaped."""
        return completion_html(self)


@dataclass(frozen=True)
class Chunk:
    """A piece of a text that is being generated; mostly one token, and the text it made certain, often none.

    finish_reason is None until the last chunk.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
