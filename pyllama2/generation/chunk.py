"""The parts of what generation gives back: chunks of a stream, log-probabilities, numbers of tokens, times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class Chunk:
    """A piece of a text that is being generated; mostly one token, and the text it made certain, often none.

    finish_reason is None until the last chunk.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
