"""The generation loop: texts that are decoded together, each with its own sampler, stop strings and end.

    waiting texts -> free rows of a KV cache -> one forward pass a step: a piece of each prompt that is not
    in the cache yet, and the newest token of every other text -> each samples its next token -> chunks

A text that ends leaves its row to one that waits. What a text says does not depend on the others.
Used by llama.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backend import Batch, KVCache
from .completion import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from .detokenizer import Detokenizer
from .sampling import Sampler, SamplingParams, largest, log_probabilities
from .stop_strings import StopMatcher
from .tokenizer import Tokenizer

# Texts at a time: more would not be faster, and each has a row of the cache.
_MAX_ROWS = 32
# Prompt tokens a step; between two steps, other threads and texts that are further on get their turn.
_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Request:
    """What is asked for.

    seed       of its random numbers
    stop_ids   tokens that end the text
    echo_text  what the text begins with, "" without echo
    continues  the text continues the prompt's, and keeps its leading space; a chat's answer does not
    """

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    stop_ids: Collection[int]
    echo_text: str = ""
    continues: bool = True


class Text:
    """One request on its way: it takes logits and gives chunks until it has a finish_reason.

    ids        prompt and generated tokens, without the one that ended the text
    limit      most tokens it may generate
    n_cached   how many of ids have their keys and values in the cache
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, n_ctx: int) -> None:
        params = request.params
        room = n_ctx - len(request.prompt_ids)
        self.ids = list(request.prompt_ids)
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self.n_cached = 0
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._tokenizer = tokenizer
        self._sampler = Sampler(params, request.seed)
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids if request.continues else ())
        self._matcher = StopMatcher(tuple(params.stop))
        self._stop_reason: str | int | None = None
        self._n_generated = 0  # one more than in ids when a token ended the text
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._prompt_s = self._decode_s = 0.0

    @property
    def n_positions(self) -> int:
        """Length of the cache row it needs; the last token it generates is not fed to the model."""
        return len(self._request.prompt_ids) + max(0, self.limit - 1)

    def start(self) -> Chunk | None:
        """The only chunk of a text that may not generate anything; None for others."""
        return self._chunk("", [], "length") if self.limit == 0 else None

    def advance(self, logits: NDArray[np.float32]) -> Chunk:
        """Sample one token from logits (vocab_size,), those of the last of ids."""
        request = self._request
        token = self._sampler.sample(logits, self.ids, len(request.prompt_ids))
        self._n_generated += 1
        if token in request.stop_ids:
            self._stop_reason = token
            return self._end("", [], "stop")
        self.ids.append(token)
        if self._logprobs is not None:
            self._logprobs.append(self._logprob(token, logits))
        text, matched = self._matcher.feed(self._detokenizer.push(token))
        if matched is not None:
            self._stop_reason = matched
            return self._chunk(text, [token], "stop")
        if self._n_generated == self.limit:
            return self._end(text, [token], "length")
        return self._chunk(text, [token], None)

    def add_time(self, seconds: float) -> None:
        """Count a step of the model that this text took part in, before or with its first token or after it."""
        if self._n_generated <= 1:
            self._prompt_s += seconds
        else:
            self._decode_s += seconds

    def completion(self) -> Completion:
        """All of it so far; cancelled if it has not come to its end."""
        n_prompt = len(self._request.prompt_ids)
        return Completion(
            "".join(self._parts),
            self.ids[n_prompt:],
            None if self._logprobs is None else list(self._logprobs),
            self.finish_reason or "cancelled",
            self._stop_reason,
            Usage(n_prompt, self._n_generated),
            Timings(
                self._prompt_s,
                self._decode_s,
                n_prompt / self._prompt_s if self._n_generated and self._prompt_s else 0.0,
                (self._n_generated - 1) / self._decode_s if self._decode_s else 0.0,
            ),
        )

    def _end(self, text: str, tokens: list[int], reason: FinishReason) -> Chunk:
        """End here: what was held back is text now, unless a stop string is in it."""
        for more, matched in (self._matcher.feed(self._detokenizer.finish()), self._matcher.flush()):
            text += more
            if matched is not None:
                reason, self._stop_reason = "stop", matched
        return self._chunk(text, tokens, reason)

    def _chunk(self, text: str, tokens: list[int], reason: FinishReason | None) -> Chunk:
        if not self._parts:
            text = self._request.echo_text + text
        self._parts.append(text)
        self.finish_reason = reason
        logprobs = None if self._logprobs is None else self._logprobs[len(self._logprobs) - len(tokens) :]
        return Chunk(text, tokens, logprobs, reason)

    def _logprob(self, token: int, logits: NDArray[np.float32]) -> TokenLogprob:
        logprobs, piece = log_probabilities(logits), self._tokenizer.piece
        best = largest(logprobs, self._request.params.logprobs or 0)
        top = tuple((int(id), piece(int(id)), float(logprobs[id])) for id in best)
        return TokenLogprob(token, piece(token), float(logprobs[token]), top)


class Stream(Iterator[Chunk]):
    """The chunks of one text as they come.

    close() ends the generation early and gives its memory back, as dropping the stream does. Generation
    that fails with an exception has ended.
    """

    def __init__(self, text: Text, chunks: Generator[tuple[Text, Chunk], None, None]) -> None:
        self._text = text
        self._chunks = chunks

    def __next__(self) -> Chunk:
        _, chunk = next(self._chunks)
        return chunk

    @property
    def completion(self) -> Completion:
        """All that has come so far, also after an exception; its finish_reason is "cancelled" until the last chunk."""
        return self._text.completion()

    def close(self) -> None:
        """End the generation."""
        self._chunks.close()


def run(
    forward: Callable[[Batch, KVCache], NDArray[np.float32]],
    new_cache: Callable[[int, int], KVCache],
    texts: Iterable[Text],
) -> Generator[tuple[Text, Chunk], None, None]:
    """Generate all texts: each chunk as it comes, with the text it belongs to.

    new_cache(n_rows, n_positions) gives a cache of n_rows rows, or fewer; texts beyond them wait.
    """
    waiting: deque[Text] = deque()
    for text in texts:
        chunk = text.start()
        if chunk is None:
            waiting.append(text)
        else:
            yield text, chunk
    if not waiting:
        return
    cache = new_cache(min(len(waiting), _MAX_ROWS), max(text.n_positions for text in waiting))
    try:
        free = list(range(cache.n_rows))
        active: dict[int, Text] = {}  # by row
        while active or waiting:
            while free and waiting:
                active[free.pop()] = waiting.popleft()
            started = time.perf_counter()
            batch, fed, sampling = _next_batch(active)
            logits = forward(batch, cache)
            chunks = [(row, active[row].advance(logits[i])) for i, row in enumerate(sampling)]
            elapsed = time.perf_counter() - started  # a stream's consumer takes its time after this
            for row in fed:
                active[row].add_time(elapsed)
            for row, chunk in chunks:
                yield active[row], chunk
                if chunk.finish_reason is not None:
                    del active[row]
                    free.append(row)
    finally:
        cache.close()


def _next_batch(active: dict[int, Text]) -> tuple[Batch, list[int], list[int]]:
    """What the next step computes, the rows that take part, and those whose logits it gives, in their order.

    A text has either its newest token to feed, or a part of its prompt, for which room may have run out.
    """
    room = _PROMPT_TOKENS
    tokens: list[int] = []
    positions: list[int] = []
    fed, lengths, sampling, outputs = [], [], [], []
    for row, text in active.items():
        start = text.n_cached
        end = len(text.ids) if len(text.ids) - start == 1 else min(len(text.ids), start + room)
        if end == start:
            continue
        room -= end - start if end - start > 1 else 0
        tokens += text.ids[start:end]
        positions += range(start, end)
        fed.append(row)
        lengths.append(end - start)
        text.n_cached = end
        if end == len(text.ids):
            sampling.append(row)
            outputs.append(len(tokens) - 1)
    rows = np.repeat(np.asarray(fed, np.int32), lengths)
    batch = Batch(np.array(tokens, np.int32), rows, np.array(positions, np.int32), np.array(outputs, np.int32))
    return batch, fed, sampling
