"""Targets of what is compiled: the functions that Python calls, with arguments and numbers of every kind.

The bytes are read as arguments (Numbers below). These targets show most when they are built with AddressSanitizer:
scripts/run_sanitized.sh scripts/fuzz.py --plain quantize sample forward weights
"""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import replace
from random import Random

import numpy as np
from helpers.tiny import GQA, quantized_model, random_weights
from numpy.typing import NDArray

from pyllama2._cpu import CpuBackend, quantize_matrix
from pyllama2._cpu.matrix import MatrixProduct
from pyllama2.backend.base import Batch
from pyllama2.errors import CheckpointError, NumericalError
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Sampler, largest
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Weight

from .models import MODELS
from .mutation import mutate_safetensors
from .target import Target, file_of


class Numbers:
    """Bytes read as arguments: small numbers first, then arrays; after the end everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        part = self._data[self._position : self._position + length]
        self._position += length
        return part.ljust(length, b"\0")

    def below(self, stop: int) -> int:
        """A number of 0 .. stop - 1."""
        return int.from_bytes(self.take(2), "little") % stop

    def fraction(self) -> float:
        """A number of 0 .. 1."""
        return int.from_bytes(self.take(2), "little") / 65535

    def floats(self, *shape: int) -> NDArray[np.float32]:
        """Finite and other numbers; with half of the first bytes those of an even spread in -8 .. 8 instead."""
        count = int(np.prod(shape))
        if self.below(2):
            return np.frombuffer(self.take(4 * count), np.float32).reshape(shape).copy()
        return (np.frombuffer(self.take(count), np.int8).astype(np.float32) / 16).reshape(shape)


def _quantize(data: bytes) -> None:
    """quantize_matrix and products with its result: no code beyond its type, every scale finite."""
    numbers = Numbers(data)
    kind = ("q8", "q4")[numbers.below(2)]
    group_size = (32, 64, 128, 0, 7)[numbers.below(5)]
    rows, columns, n_threads = numbers.below(20), numbers.below(200), 1 + numbers.below(3)
    matrix = numbers.floats(rows, columns)
    variant = numbers.below(4)
    if variant == 1:
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float16)
    elif variant == 2:
        matrix = matrix[::-1, ::2]
    codes, scales = quantize_matrix(matrix, kind, group_size, n_threads)
    assert np.isfinite(scales).all()
    if matrix.size:
        weight = Weight("w.weight", kind, matrix.shape, codes, scales, group_size)
        n = 1 + numbers.below(12)
        x = np.abs(numbers.floats(n, matrix.shape[1]))
        result = MatrixProduct(weight, n, n_threads)(np.where(x < 1e6, x, 1))
        assert result.shape == (n, matrix.shape[0])


def _sample(data: bytes) -> None:
    """A token is sampled from logits: one of the vocabulary, or the error that says they are not finite."""
    numbers = Numbers(data)
    params = SamplingParams(
        temperature=numbers.fraction() * 2,
        top_p=max(numbers.fraction(), 1e-4),
        top_k=numbers.below(50),
        min_p=numbers.fraction() if numbers.below(2) else 0.0,
        repetition_penalty=0.5 + numbers.fraction(),
        presence_penalty=numbers.fraction(),
        frequency_penalty=numbers.fraction(),
    )
    n, n_ids = 1 + numbers.below(700), 1 + numbers.below(100)
    ids = [numbers.below(n) for _ in range(n_ids)]
    logits = numbers.floats(n)
    token = Sampler(params, numbers.below(1000)).sample(logits, ids, numbers.below(n_ids + 1))
    assert 0 <= token < n
    k = 1 + numbers.below(n)
    assert np.array_equal(largest(logits, k), np.argsort(-logits, kind="stable")[:k])


@functools.cache
def _backend(kind: str, kv_dtype: str, n_threads: int) -> CpuBackend:
    config = replace(GQA, max_seq_len=40)
    return CpuBackend(quantized_model(config, random_weights(config), kind, 32), n_threads=n_threads, kv_dtype=kv_dtype)


# Threads that wait for each other are slow on a busy machine, so one kind has two.
_KINDS = (("float32", "float32", 1), ("float16", "float16", 1), ("q8", "float16", 1), ("q4", "int8", 2))


def _forward(data: bytes) -> None:
    """Batches of any indices, rows copied, saved and loaded in between. What is out of bounds gives ValueError."""
    numbers = Numbers(data)
    backend = _backend(*_KINDS[numbers.below(len(_KINDS))])
    cache = backend.new_cache(1 + numbers.below(3), 1 + numbers.below(40))
    refused = None
    for _ in range(1 + numbers.below(3)):
        try:
            batch = _batch(numbers, backend.config.vocab_size, cache.n_rows, cache.max_seq_len)
            logits = backend.forward(batch, cache)
            assert logits.shape == (len(batch.outputs), backend.config.vocab_size)
            if numbers.below(2):
                cache.copy_prefix(numbers.below(4), numbers.below(4), numbers.below(50))
                cache.load_row(numbers.below(4), cache.save_row(numbers.below(4), numbers.below(50)))
        except ValueError as error:
            refused = error
    cache.close()
    if refused is not None:
        raise refused


def _batch(numbers: Numbers, vocab_size: int, n_rows: int, n_positions: int) -> Batch:
    """Some tokens of one row after each other, as callers give them; one batch in four has any indices."""
    n, start = numbers.below(24), numbers.below(n_positions)
    if numbers.below(4):
        n = min(n, n_positions - start)
        tokens = np.array([numbers.below(vocab_size) for _ in range(n)], np.int32)
        row, positions = numbers.below(n_rows), np.arange(start, start + n, dtype=np.int32)
        outputs = np.array([numbers.below(n) for _ in range(numbers.below(5) if n else 0)], np.int32)
        return Batch(tokens, np.full(n, row, np.int32), positions, outputs)
    stops = (vocab_size, n_rows, n_positions, n)
    arrays = ([numbers.below(stop + 2) - 1 if numbers.below(9) == 0 else 0 for _ in range(n)] for stop in stops)
    return Batch(*(np.array(array, np.int32) for array in arrays))


def _weights(data: bytes) -> None:
    """The weights of one of our files, whatever numbers they are, run through the forward pass."""
    with file_of(data) as path:
        model = StoredModel.open(path)
        model.weights = {
            name: replace(w, data=w.data.copy(), scales=_copied(w.scales)) for name, w in model.weights.items()
        }
        backend = CpuBackend(model, n_threads=1)
        cache = backend.new_cache(1, 8)
        tokens = [i % model.config.vocab_size for i in range(6)]
        with np.errstate(all="ignore"):
            logits = backend.forward(Batch.of_sequence(tokens, outputs="all"), cache)
        for row in logits:
            with suppress(NumericalError):
                assert 0 <= Sampler(SamplingParams(), 1).sample(row, tokens, 1) < model.config.vocab_size
        cache.close()
        backend.close()


def _copied(scales: NDArray[np.float16] | None) -> NDArray[np.float16] | None:
    """A copy of its own, so that an access beyond its end is seen."""
    return None if scales is None else scales.copy()


def _random_bytes(n: int) -> list[bytes]:
    random = Random(1)
    return [random.randbytes(random.choice((20, 200, 2000))) for _ in range(n)]


COMPILED = (
    Target("quantize", _quantize, (ValueError,), lambda: _random_bytes(16)),
    Target("sample", _sample, (NumericalError,), lambda: _random_bytes(16)),
    Target("forward", _forward, (ValueError,), lambda: _random_bytes(16)),
    Target(
        "weights",
        _weights,
        (CheckpointError,),
        lambda: next(target for target in MODELS if target.name == "own_file").seeds,
        mutate_safetensors,
    ),
)
