"""The engines that the benchmarks compare. Each runs in a benchmarking.Worker, and has the same methods.

    configure(n_ctx, n_sequences, n_threads)    makes a new, empty cache
    prompt(n)                                   seconds to process n tokens from position 0, with logits of the last
    decode(n, position)                         seconds to decode n tokens from a position on
    decode_together(n, n_sequences)             seconds to decode n tokens of each sequence at the same time
    bytes_per_token(position)                   bytes of weights, and of keys and values, that decoding reads there

pyllama2's engines are here, those of llama.cpp in llama_cpp_engine.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pyllama2.analysis.benchmark import fill_cache, random_tokens
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.loading import load_model
from pyllama2.memory import weight_bytes_per_token
from pyllama2.storage.model_file import StoredModel


class OurEngine:
    """A model file on the CPU backend."""

    def __init__(self, path: str) -> None:
        from pyllama2._cpu import CpuBackend

        self._backend_class = CpuBackend
        self._model = _load(path)
        self._backend: CpuBackend | None = None
        self._cache: KVCache | None = None
        self._filled = 0

    def configure(self, n_ctx: int, n_sequences: int, n_threads: int) -> None:
        """Make a new backend on the same weights, and an empty cache."""
        if self._cache is not None:
            self._cache.close()
        if self._backend is None or self._backend.n_threads != n_threads:
            if self._backend is not None:
                self._backend.close()
            self._backend = self._backend_class(self._model, n_threads=n_threads)
        self._cache = self._backend.new_cache(n_sequences, n_ctx)
        self._filled = 0

    def prompt(self, n: int) -> float:
        """Return the seconds for a prompt of n tokens."""
        return self._seconds([Batch.of_sequence(self._tokens(n))])

    def decode(self, n: int, position: int) -> float:
        """Return the seconds for n tokens, one after the other. The keys and values before them are made up."""
        assert self._backend is not None
        assert self._cache is not None
        if self._filled != position:
            fill_cache(self._backend, self._cache, position)
            self._filled = position
        return self._seconds(
            [Batch.of_sequence([token], start=position + i) for i, token in enumerate(self._tokens(n))]
        )

    def decode_together(self, n: int, n_sequences: int) -> float:
        """Return the seconds for n steps of n_sequences tokens."""
        rows = np.arange(n_sequences, dtype=np.int32)
        tokens = np.asarray(self._tokens(n_sequences), np.int32)
        return self._seconds([Batch(tokens, rows, np.full_like(rows, i), rows) for i in range(n)])

    def bytes_per_token(self, position: float) -> tuple[int, int]:
        """Return the bytes of weights, and of keys and values, that decoding reads."""
        assert self._cache is not None
        per_position = sum(array.nbytes for array in self._cache.save_row(0, 1).values())
        return weight_bytes_per_token(self._model.config, self._model.quantization), round(
            per_position * (position + 1)
        )

    def describe(self) -> dict[str, Any]:
        """Return facts for the report."""
        assert self._backend is not None
        return self._backend.describe().known()

    def _tokens(self, n: int) -> list[int]:
        return random_tokens(self._model.config.vocab_size, n)

    def _seconds(self, batches: list[Batch]) -> float:
        assert self._backend is not None
        assert self._cache is not None
        started = time.perf_counter()
        for batch in batches:
            self._backend.forward(batch, self._cache)
        return time.perf_counter() - started


class OurApi:
    """The class Llama on the model smollm2, with its weights converted to quant."""

    def __init__(self, quant: str, n_ctx: int, n_threads: int) -> None:
        import pyllama2

        self._llm = pyllama2.Llama("smollm2", quant=quant, n_ctx=n_ctx, n_threads=n_threads)

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self._llm.tokenize(text)

    def generate(self, tokens: list[int], n: int, seed: int, sampling: dict[str, float]) -> tuple[float, float]:
        """Return the seconds from the call to the first token, and for each token after it."""
        started = time.perf_counter()
        counts, times = [], []
        for chunk in self._llm.stream(tokens, max_tokens=n, ignore_eos=True, seed=seed, **sampling):
            counts.append(len(chunk.token_ids))
            times.append(time.perf_counter())
        return times[0] - started, (times[-1] - times[0]) / (sum(counts) - counts[0])


def _load(path: str) -> StoredModel:
    return load_model(path, quant=None, tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)
