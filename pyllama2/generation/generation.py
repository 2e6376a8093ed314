"""One text that is being generated: its sampler, its stop strings, its end, and what was delivered of it.

    logits -> Sampler -> token -> Detokenizer -> StopMatcher -> Chunk, inside an Update -> deliver() -> Completion

A text may be a few tokens ahead of what was delivered. scheduler.py decodes texts together. No text depends on the
others.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..constraints.matcher import Grammar
from ..errors import ConstraintError
from ..sampling.params import SamplingParams
from ..sampling.sampler import Draw, Sampler
from ..sampling.stop_strings import StopMatcher
from ..tokenizer.base import Tokenizer
from ..tokenizer.detokenizer import Detokenizer
from .chunk import Chunk, FinishReason, Timings, Usage
from .completion import Completion
from .logprobs import token_logprob
from .prompt_lookup import PromptLookup

# A context that rolls keeps its first tokens, which attention relies on (arXiv:2309.17453), and the newest half.
_KEPT_FIRST = 4
_ENDLESS = 1 << 62


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        prompt_ids: tokens of the prompt.
        params: checked parameters. Their seed is not used.
        seed: seed of the random numbers.
        stop_ids: tokens that end the text.
        echo_text: what the text begins with; "" without echo.
        continues: whether the text continues that of the prompt, and keeps its leading space. A chat's answer does not.
        grammar: what the text must be. None: anything.
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    stop_ids: Collection[int]
    echo_text: str = ""
    continues: bool = True
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Update:
    """A chunk, and the state of its text.

    Attributes:
        chunk: what is new.
        n_generated: tokens so far, with the one that ended the text.
        stop_reason: as in Completion.
        seconds: time of the model's steps that the text was in since the last update.
        n_cached: tokens of the prompt that were found in the cache.
    """

    chunk: Chunk
    n_generated: int
    stop_reason: str | int | None
    seconds: float
    n_cached: int


class Generation:
    """One text. It takes logits and makes updates until it has a finish_reason.

    Args:
        request: what to generate.
        tokenizer: the model's.
        n_ctx: longest sequence in tokens.
        rolls: whether the text goes on when it fills the context.
        guesses: whether it guesses its next tokens (prompt_lookup.py).

    Attributes:
        ids: prompt and generated tokens, without the one that ended the text.
        context: those of ids that the model is to see: all, unless the text rolls and they are more than n_ctx.
        limit: most tokens that it may generate.
        finish_reason: None until the last update was made.
        n_cached: tokens of the prompt that were found in the cache.
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, n_ctx: int, *, rolls: bool = False, guesses: bool = False
    ) -> None:
        params = request.params
        room = _ENDLESS if rolls else n_ctx - len(request.prompt_ids)
        self.ids = list(request.prompt_ids)
        self.context = list(self.ids) if rolls else self.ids
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self.finish_reason: FinishReason | None = None
        self.n_cached = 0
        self._n_ctx = n_ctx
        self._request = request
        self._tokenizer = tokenizer
        self._constraint = None if request.grammar is None else request.grammar.matcher(request.stop_ids)
        self._sampler = Sampler(params, request.seed, self._constraint)
        self._lookup = PromptLookup(self.ids) if guesses else None
        self._guess_is_forced = False  # by the grammar, which says nothing about what the lookup would find
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids if request.continues else ())
        self._matcher = StopMatcher(params.stop_strings)
        self._stop_reason: str | int | None = None
        self._n_generated = 0  # with the token that ended the text, which is not in ids
        self._n_guessed = self._n_true = 0
        self._seconds = 0.0
        self._delivered: list[Update] = []

    @property
    def n_positions(self) -> int:
        """Length of the cache row that it needs. Its last token is not fed to the model."""
        return min(self._n_ctx, len(self._request.prompt_ids) + max(0, self.limit - 1))

    @property
    def has_processors(self) -> bool:
        """Whether sampling calls functions of the user."""
        return self._request.params.has_processors

    def start(self) -> Update | None:
        """Return the only update of a text that may not generate anything; None for others."""
        if self._constraint is not None and self._constraint.ended:
            return self._make_update("", [], None, "stop")
        return self._make_update("", [], None, "length") if self.limit == 0 else None

    def draws(self, n: int) -> list[Draw] | None:
        """How to sample the next n tokens on the device.

        None if that takes more than their logits, or if logprobs are wanted.
        """
        return self._sampler.draws(n)

    def advance(self, result: NDArray[np.float32] | int) -> Update:
        """Take one token.

        Args:
            result: logits (vocab_size,) after the last of ids, or the token that the device sampled as draws() says.

        Raises:
            NumericalError: logits are not finite, or no token can follow. Logits processors may raise anything.
        """
        request = self._request
        if isinstance(result, int):
            logits, token = None, self._sampler.accept(result, len(self.ids))
        else:
            logits, token = result, self._sampler.sample(result, self.ids, len(request.prompt_ids))
        self._n_generated += 1
        if token in request.stop_ids:
            self._stop_reason = token
            return self._end("", [], "stop", logits)
        self._append(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        text, matched = self._matcher.feed(self._detokenizer.push(token))
        if matched is not None:
            self._stop_reason = matched
            return self._make_update(text, [token], logits, "stop")
        if self._constraint is not None and self._constraint.ended:
            return self._end(text, [token], "stop", logits)
        if self._n_generated == self.limit:
            return self._end(text, [token], "length", logits)
        return self._make_update(text, [token], logits, None)

    @property
    def room_for_guesses(self) -> int:
        """How many tokens after the next one the text may have."""
        return min(self.limit - self._n_generated, self._n_ctx - len(self.context)) - 1

    def would_end(self, token: int) -> bool:
        """Whether a token would end the text."""
        return token in self._request.stop_ids

    def guess(self, most: int) -> list[int]:
        """Return at most most tokens that may come next, and not more than there is room for."""
        most = min(most, self.room_for_guesses)
        if self._lookup is None:
            return []
        if self._constraint is None:
            return self._lookup.guess(most)
        try:
            forced = self._constraint.forced(most)
            self._guess_is_forced = bool(forced)
            if forced:
                return forced
            guesses = self._lookup.guess(most)
            return guesses[: self._constraint.n_allowed(guesses)]
        except ConstraintError:  # the next token meets it again, and ends this text only
            return []

    def learn(self, n_guessed: int, n_true: int, *, by_draft: bool = False) -> None:
        """Learn that of n_guessed guesses, n_true came true before the first wrong one."""
        self._n_guessed += n_guessed
        self._n_true += n_true
        if self._lookup is not None and not by_draft and not self._guess_is_forced:
            self._lookup.learn(n_guessed, n_true)
        self._guess_is_forced = False

    def add_time(self, seconds: float) -> None:
        """Count the time of a step of the model that this text was in."""
        self._seconds += seconds

    def add_cached(self, n_tokens: int) -> None:
        """Count tokens of the prompt that were found in the cache, but not those found after the text lost a row."""
        if self._n_generated == 0:
            self.n_cached += n_tokens

    def deliver(self, update: Update) -> None:
        """Add an update to the completion. Updates must come in order."""
        self._delivered.append(update)

    def completion(self) -> Completion:
        """Return all that was delivered. finish_reason is "cancelled" if that is not up to the end."""
        updates = self._delivered
        chunks = [update.chunk for update in updates]
        n_prompt = len(self._request.prompt_ids)
        last = updates[-1] if updates else Update(Chunk("", [], None, None), 0, None, 0.0, 0)
        prompt_s = updates[0].seconds if updates else 0.0
        decode_s = sum(update.seconds for update in updates[1:])
        return Completion(
            "".join(chunk.text for chunk in chunks),
            [token for chunk in chunks for token in chunk.token_ids],
            None if self._request.params.logprobs is None else [e for chunk in chunks for e in chunk.logprobs or ()],
            last.chunk.finish_reason or "cancelled",
            last.stop_reason,
            Usage(n_prompt, last.n_generated, last.n_cached),
            Timings(
                prompt_s,
                decode_s,
                (n_prompt - last.n_cached) / prompt_s if prompt_s else 0.0,
                (last.n_generated - 1) / decode_s if decode_s else 0.0,
                self._n_guessed,
                self._n_true,
            ),
            len(self._request.echo_text) if updates else 0,
        )

    def _append(self, token: int) -> None:
        self.ids.append(token)
        if self.context is not self.ids:
            self.context.append(token)
            if len(self.context) > self._n_ctx:
                first, newest = min(_KEPT_FIRST, self._n_ctx // 4), max(1, self._n_ctx // 2)
                self.context = self.context[:first] + self.context[len(self.context) - newest :]

    def _end(self, text: str, tokens: list[int], reason: FinishReason, logits: NDArray[np.float32] | None) -> Update:
        """End the text: what was held back belongs to it now, up to a stop string."""
        for more, matched in (self._matcher.feed(self._detokenizer.finish()), self._matcher.flush()):
            text += more
            if matched is not None:
                reason, self._stop_reason = "stop", matched
        return self._make_update(text, tokens, logits, reason)

    def _make_update(
        self, text: str, tokens: list[int], logits: NDArray[np.float32] | None, reason: FinishReason | None
    ) -> Update:
        if self._n_generated <= 1:
            text = self._request.echo_text + text
        logprobs = None
        if self._request.params.logprobs is not None:
            n_top = self._request.params.logprobs
            logprobs = [] if logits is None else [token_logprob(self._tokenizer, t, logits, n_top) for t in tokens]
        self.finish_reason = reason
        seconds, self._seconds = self._seconds, 0.0
        return Update(
            Chunk(text, tokens, logprobs, reason), self._n_generated, self._stop_reason, seconds, self.n_cached
        )
