"""Parts of the results of generation: chunks of a stream, log-probabilities, numbers of tokens, times."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was by the model's raw logits. Logarithms are natural.

    Attributes:
        token_id: its id.
        token: its text.
        logprob: its log-probability.
        top: the most likely tokens as (id, text, logprob), most likely first, as many as SamplingParams.logprobs.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens.

    Attributes:
        prompt_tokens: tokens of the prompt, with BOS.
        completion_tokens: generated tokens, with the one that ended the text.
        cached_tokens: tokens of the prompt that were computed earlier, for a sequence that began the same way.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one text, and tokens per second. They are 0 where nothing was done.

    Attributes:
        prompt_s: seconds until the first token was sampled.
        decode_s: seconds for all later tokens, in steps that are shared with other texts.
        prompt_tokens_per_s: rate of the prompt tokens that were computed, without those found in the cache.
        decode_tokens_per_s: rate of the tokens after the first.
        guesses: tokens that were guessed by prompt lookup or a draft, and checked several in a step.
        guesses_true: those that came true.
    """

    prompt_s: float
    decode_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    guesses: int = 0
    guesses_true: int = 0


@dataclass(frozen=True)
class Chunk:
    """A part of a text that is being generated: usually one token.

    Attributes:
        text: the text that became certain with it, often none.
        token_ids: its tokens.
        logprobs: one for each of token_ids. None unless asked for.
        finish_reason: None until the last chunk.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None

    def __str__(self) -> str:
        """The text."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of strings, numbers, lists and dicts, which json.dumps() takes."""
        return asdict(self)
