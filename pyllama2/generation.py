"""The generation loop: sequences that are decoded together, each with its own sampler, text and end.

    prompts of all -> one forward pass -> per step: sample each, end some, forward the last tokens of the rest

Used by llama.py. What a sequence yields does not depend on the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Batch
from .completion import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from .detokenizer import Detokenizer
from .sampling import Sampler, SamplingParams
from .stop_strings import StopMatcher
from .tokenizer import Tokenizer


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities (..., vocab_size) of raw logits of that shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class Request:
    """What is asked for.

    echo_text is what echo=True puts before the text; continues says that the text continues the
    prompt's, and so keeps its leading space (a chat's answer does not).
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    echo_text: str
    continues: bool = True


@dataclass
class _Clock:
    """Seconds of one call: all prompts, then all steps."""

    prompt_s: float = 0.0
    decode_s: float = 0.0  # without what the consumer of a stream takes between two chunks


class Generation:
    """One request on its way: it takes logits and gives chunks, until finish_reason is set."""

    def __init__(self, request: Request, tokenizer: Tokenizer, end_ids: Sequence[int], n_ctx: int) -> None:
        params = request.params
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.n_generated = 0  # the token that ended the text included
        self.last_token = -1
        room = n_ctx - len(request.prompt_ids)
        self._limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self._tokenizer = tokenizer
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else end_ids)}
        self._sampler = Sampler(params, request.prompt_ids, request.seed)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids if request.continues else ())
        # The text that a prompt leaves incomplete belongs to the prompt: stop strings see generated text only.
        self._matcher = StopMatcher(params.stop)
        self._text = request.echo_text if params.echo else ""
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        if self._limit == 0:
            self._finish("length")

    @property
    def position(self) -> int:
        """Where the token sampled last stands."""
        return len(self.request.prompt_ids) + self.n_generated - 1

    @property
    def longest(self) -> int:
        """Positions that prompt and generation take at most."""
        return len(self.request.prompt_ids) + self._limit

    def advance(self, logits: NDArray[np.float32]) -> None:
        """Sample one token from logits (vocab_size,) and take up what it means."""
        token = self.last_token = self._sampler.sample(logits)
        self.n_generated += 1
        if token in self._ends:
            self.stop_reason = token
            self._finish("stop")
            return
        self._tokens.append(token)
        if self.request.params.logprobs is not None:
            self._logprobs.append(self._logprob(token, logits, self.request.params.logprobs))
        text, matched = self._matcher.feed(self._detokenizer.push(token))
        self._text += text
        if matched is not None:
            self.stop_reason = matched
            self.finish_reason = "stop"
        elif self.n_generated == self._limit:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        """End here: what was held back is text now, unless a stop string is in it."""
        self.finish_reason = reason
        text, matched = self._matcher.feed(self._detokenizer.finish())
        if matched is None:
            rest, matched = self._matcher.flush()
            text += rest
        self._text += text
        if matched is not None:
            self.finish_reason, self.stop_reason = "stop", matched

    def _logprob(self, token: int, logits: NDArray[np.float32], k: int) -> TokenLogprob:
        logprobs = log_softmax(logits)
        order = np.argsort(-logprobs, kind="stable")[:k]  # lower ids first among equals
        top = tuple((int(i), self._tokenizer.piece(int(i)), float(logprobs[i])) for i in order)
        return TokenLogprob(token, self._tokenizer.piece(token), float(logprobs[token]), top)

    def take(self, clock: _Clock) -> Chunk:
        """What has come since the last call; with usage and timings when it was the end."""
        logprobs = None if self.request.params.logprobs is None else tuple(self._logprobs)
        text, tokens = self._text, tuple(self._tokens)
        self._text, self._tokens, self._logprobs = "", [], []
        if self.finish_reason is None:
            return Chunk(text, tokens, logprobs)
        n_prompt = len(self.request.prompt_ids)
        timings = Timings(
            clock.prompt_s,
            clock.decode_s,
            n_prompt / clock.prompt_s if clock.prompt_s else 0.0,
            (self.n_generated - 1) / clock.decode_s if clock.decode_s else 0.0,  # the prompt gave the first
        )
        usage = Usage(n_prompt, self.n_generated)
        return Chunk(text, tokens, logprobs, self.finish_reason, self.stop_reason, usage, timings)


def run(
    backend: Backend, tokenizer: Tokenizer, end_ids: Sequence[int], requests: Sequence[Request], n_ctx: int
) -> Iterator[tuple[int, Chunk]]:
    """Generate for all requests together; yields (index of the request, chunk) as they come.

    end_ids are the model's own ends of text. A request's last chunk has its finish_reason.
    """
    sequences = [Generation(request, tokenizer, end_ids, n_ctx) for request in requests]
    clock = _Clock()
    active = [row for row, sequence in enumerate(sequences) if sequence.finish_reason is None]
    for row in set(range(len(sequences))) - set(active):
        yield row, sequences[row].take(clock)
    if not active:
        return
    cache = backend.new_cache(len(sequences), max(sequence.longest for sequence in sequences))
    try:
        started = time.perf_counter()
        logits = backend.forward(_prompts(sequences, active), cache)
        clock.prompt_s = time.perf_counter() - started
        while active:
            started = time.perf_counter()
            for row, row_logits in zip(active, logits, strict=True):
                sequences[row].advance(row_logits)
            clock.decode_s += time.perf_counter() - started
            for row in active:
                yield row, sequences[row].take(clock)
            active = [row for row in active if sequences[row].finish_reason is None]
            if active:
                started = time.perf_counter()
                logits = backend.forward(_step(sequences, active), cache)
                clock.decode_s += time.perf_counter() - started
    finally:
        cache.close()


def _prompts(sequences: Sequence[Generation], active: Sequence[int]) -> Batch:
    """The prompts of the active rows one after the other; logits of each one's last token."""
    prompts = [sequences[row].request.prompt_ids for row in active]
    lengths = [len(prompt) for prompt in prompts]
    return Batch(
        np.concatenate(prompts).astype(np.int32),
        np.repeat(active, lengths).astype(np.int32),
        np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        (np.cumsum(lengths) - 1).astype(np.int32),
    )


def _step(sequences: Sequence[Generation], active: Sequence[int]) -> Batch:
    """The newest token of every active row."""
    return Batch(
        np.array([sequences[row].last_token for row in active], np.int32),
        np.array(active, np.int32),
        np.array([sequences[row].position for row in active], np.int32),
        np.arange(len(active), dtype=np.int32),
    )


@dataclass
class Collector:
    """Joins the chunks of one request into its Completion."""

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None

    def add(self, chunk: Chunk) -> Completion | None:
        """Take one chunk; the Completion after the last, else None."""
        self.texts.append(chunk.text)
        self.tokens.extend(chunk.token_ids)
        if chunk.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *chunk.logprobs]
        if chunk.finish_reason is None:
            return None
        assert chunk.usage is not None and chunk.timings is not None
        return Completion(
            "".join(self.texts),
            tuple(self.tokens),
            None if self.logprobs is None else tuple(self.logprobs),
            chunk.finish_reason,
            chunk.stop_reason,
            chunk.usage,
            chunk.timings,
        )
