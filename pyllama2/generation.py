"""The generation loop: sequences that are decoded together, each with its own sampler, text and end.

    all prompts -> one forward pass -> per step: sample each, end some, forward the newest tokens of the rest

Used by llama.py. What a sequence yields does not depend on the others.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Batch
from .completion import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from .detokenizer import Detokenizer
from .sampling import Sampler, SamplingParams, largest, log_probabilities
from .stop_strings import StopMatcher
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """What is asked for.

    seed       of its random numbers
    echo_text  what echo=True puts before the text
    continues  the text continues the prompt's, and keeps its leading space; a chat's answer does not
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    echo_text: str
    continues: bool = True


# (index of the request, what came, and its completion when that was the last)
Event = tuple[int, Chunk, Completion | None]


class Stream(Iterator[Chunk]):
    """The chunks of one text as they come; completion is there once the last has come.

    close() ends the generation early and gives its memory back, as dropping the stream does.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events
        self.completion: Completion | None = None

    def __next__(self) -> Chunk:
        _, chunk, self.completion = next(self._events)
        return chunk

    def close(self) -> None:
        """End the generation."""
        self._events.close()


@dataclass
class _Clock:
    """Seconds of one call, without what the consumer of a stream takes between two chunks."""

    prompt_s: float = 0.0
    decode_s: float = 0.0


class _Text:
    """One request on its way: it takes logits, and gives chunks until it has its finish_reason."""

    def __init__(self, request: Request, tokenizer: Tokenizer, end_ids: Sequence[int], n_ctx: int) -> None:
        params = request.params
        room = n_ctx - len(request.prompt_ids)
        self.n_prompt = len(request.prompt_ids)
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self.finish_reason: FinishReason | None = None
        self.ids = list(request.prompt_ids)  # prompt and generated, with the one that ended the text
        self._params = params
        self._tokenizer = tokenizer
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else end_ids)}
        self._sampler = Sampler(params, request.seed)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids if request.continues else ())
        self._matcher = StopMatcher(tuple(params.stop))
        self._stop_reason: str | int | None = None
        self._text = request.echo_text if params.echo else ""
        self._logprobs: list[TokenLogprob] = []
        self._given = (0, 0, 0)  # characters, tokens and logprobs that chunks have had
        if self.limit == 0:
            self._finish("length")

    def advance(self, logits: NDArray[np.float32]) -> None:
        """Sample one token from logits (vocab_size,) and take up what it means."""
        token = self._sampler.sample(logits, self.ids, self.n_prompt)
        self.ids.append(token)
        if token in self._ends:
            self._stop_reason = token
            self._finish("stop")
            return
        if self._params.logprobs is not None:
            self._logprobs.append(self._logprob(token, logits, self._params.logprobs))
        text, matched = self._matcher.feed(self._detokenizer.push(token))
        self._text += text
        if matched is not None:
            self.finish_reason, self._stop_reason = "stop", matched
        elif len(self.ids) - self.n_prompt == self.limit:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        """End here: what was held back is text now, unless a stop string is in it."""
        self.finish_reason = reason
        for text, matched in (self._matcher.feed(self._detokenizer.finish()), self._matcher.flush()):
            self._text += text
            if matched is not None:
                self.finish_reason, self._stop_reason = "stop", matched

    def _logprob(self, token: int, logits: NDArray[np.float32], k: int) -> TokenLogprob:
        logprobs, piece = log_probabilities(logits), self._tokenizer.piece
        top = tuple((int(id), piece(int(id)), float(logprobs[id])) for id in largest(logprobs, k))
        return TokenLogprob(token, piece(token), float(logprobs[token]), top)

    @property
    def _tokens(self) -> list[int]:
        """Generated, without the one that ended the text."""
        return self.ids[self.n_prompt : len(self.ids) - isinstance(self._stop_reason, int)]

    def chunk(self) -> Chunk:
        """What has come since the last call."""
        n_text, n_tokens, n_logprobs = self._given
        tokens = self._tokens
        self._given = (len(self._text), len(tokens), len(self._logprobs))
        logprobs = None if self._params.logprobs is None else self._logprobs[n_logprobs:]
        return Chunk(self._text[n_text:], tokens[n_tokens:], logprobs, self.finish_reason)

    def completion(self, clock: _Clock) -> Completion | None:
        """All of it, once it has ended."""
        if self.finish_reason is None:
            return None
        n_generated = len(self.ids) - self.n_prompt
        prompt_s, decode_s = (clock.prompt_s, clock.decode_s) if n_generated else (0.0, 0.0)
        timings = Timings(
            prompt_s,
            decode_s,
            self.n_prompt / prompt_s if prompt_s else 0.0,
            (n_generated - 1) / decode_s if decode_s else 0.0,  # the prompt's pass gave the first
        )
        logprobs = None if self._params.logprobs is None else self._logprobs
        usage = Usage(self.n_prompt, n_generated)
        return Completion(self._text, self._tokens, logprobs, self.finish_reason, self._stop_reason, usage, timings)


def run(
    backend: Backend, tokenizer: Tokenizer, end_ids: Sequence[int], requests: Sequence[Request], n_ctx: int
) -> Generator[Event, None, None]:
    """Generate for all requests together, an event for every token; end_ids are the model's own ends of text."""
    texts = [_Text(request, tokenizer, end_ids, n_ctx) for request in requests]
    clock = _Clock()
    active = [row for row, text in enumerate(texts) if text.finish_reason is None]
    for row, text in enumerate(texts):
        if text.finish_reason is not None:
            yield row, text.chunk(), text.completion(clock)
    if not active:
        return
    cache = backend.new_cache(len(texts), max(text.n_prompt + text.limit for text in texts))
    try:
        started = time.perf_counter()
        logits = backend.forward(_prompts(texts, active), cache)
        for row, row_logits in zip(active, logits, strict=True):
            texts[row].advance(row_logits)
        clock.prompt_s = time.perf_counter() - started
        while active:
            for row in active:
                yield row, texts[row].chunk(), texts[row].completion(clock)
            active = [row for row in active if texts[row].finish_reason is None]
            if active:
                started = time.perf_counter()
                logits = backend.forward(_step(texts, active), cache)
                for row, row_logits in zip(active, logits, strict=True):
                    texts[row].advance(row_logits)
                clock.decode_s += time.perf_counter() - started
    finally:
        cache.close()


def _prompts(texts: Sequence[_Text], active: Sequence[int]) -> Batch:
    """The prompts of the active rows one after the other; logits of each one's last token."""
    lengths = [texts[row].n_prompt for row in active]
    return Batch(
        np.concatenate([texts[row].ids for row in active]).astype(np.int32),
        np.repeat(active, lengths).astype(np.int32),
        np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        (np.cumsum(lengths) - 1).astype(np.int32),
    )


def _step(texts: Sequence[_Text], active: Sequence[int]) -> Batch:
    """The newest token of every active row."""
    return Batch(
        np.array([texts[row].ids[-1] for row in active], np.int32),
        np.array(active, np.int32),
        np.array([len(texts[row].ids) - 1 for row in active], np.int32),
        np.arange(len(active), dtype=np.int32),
    )
