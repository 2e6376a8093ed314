"""Short measurements of what limits decoding on this machine.

bandwidth     reading every weight once for a token takes at least bytes / bandwidth
step's cost   what a token takes besides, however small the weights are: threads that synchronize, the call itself
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..memory import available_bytes
from ..storage.model_file import StoredModel
from ..storage.weights import Quantization, Weight

BUFFER_BYTES = 512 << 20  # much larger than the caches, yet quickly filled
_PASSES = 3
_SHORT_PASS_S = 0.02  # a shorter pass is repeated until this time is over; its time is then the mean
_WORDS_PER_ROW = 32  # bandwidth.pyx reads rows of this width
_STEPS_S = 0.1  # how long the steps of a model are timed
_POSITIONS = 16


class ReadBandwidth:
    """A buffer in memory, and the rate at which threads of the CPU backend read it.

    A buffer that fits in the processor's last cache measures the cache.
    """

    def __init__(self, n_threads: int, n_bytes: int | None = None) -> None:
        """Allocate the buffer.

        Args:
            n_threads: threads that read.
            n_bytes: size of the buffer; None: 512 MiB. It is at most half of the memory that is available.
        """
        from .._cpu.bandwidth import read, touch

        available = available_bytes()
        n_bytes = BUFFER_BYTES if n_bytes is None else n_bytes
        n_bytes = n_bytes if available is None else min(n_bytes, available // 2)
        rows = max(n_threads, n_bytes // (8 * _WORDS_PER_ROW))
        self._buffer = np.empty((rows, _WORDS_PER_ROW), np.uint64)
        self._n_threads = n_threads
        self._read = read
        touch(self._buffer, n_threads)

    def measure(self) -> list[float]:
        """Read the buffer a few times; returns the GB/s (10^9 bytes) of each pass."""
        return [self._buffer.nbytes / seconds / 1e9 for seconds in _timed(self._pass, _PASSES)]

    def _pass(self) -> None:
        self._read(self._buffer, self._n_threads)


def _timed(function: Callable[[], None], n: int) -> list[float]:
    """Measure the seconds of a call n times. Short calls are repeated, and their mean is taken."""
    results = []
    for _ in range(n):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < _SHORT_PASS_S or not calls:
            function()
            calls += 1
        results.append(elapsed / calls)
    return results


def step_seconds(n_layers: int, n_threads: int) -> float:
    """Measure what decoding a token takes besides reading weights.

    This is the time that a model with n_layers layers and tiny matrices takes for a token.
    """
    from .._cpu import CpuBackend
    from ..backend.base import Batch

    config = ModelConfig(32, 32, n_layers, 1, 1, 32, vocab_size=32, max_seq_len=_POSITIONS, tied_embeddings=True)
    model = StoredModel(config, Quantization.of("float32"))
    for name, shape in config.tensor_shapes().items():
        model.weights[name] = Weight(name, "float32", shape, np.zeros(shape, np.float32))
    with closing(CpuBackend(model, n_threads=n_threads)) as backend, closing(backend.new_cache(1, _POSITIONS)) as cache:
        seconds: list[float] = []
        while sum(seconds) < _STEPS_S:
            batch = Batch.of_sequence([0], start=len(seconds) % _POSITIONS)
            started = time.perf_counter()
            backend.forward(batch, cache)
            seconds.append(time.perf_counter() - started)
    return min(seconds)  # the minimum, since other processes only add time


def last_cache_bytes() -> int | None:
    """Size in bytes of the first processor's largest cache; None where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):  # unreadable, or in an unknown format
            return None
    return max(sizes, default=None)
