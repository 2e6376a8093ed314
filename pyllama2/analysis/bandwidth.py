"""What this machine's processor and memory give, measured in a moment: the limits of decoding.

    bandwidth      reading every weight once for a token takes at least bytes / bandwidth
    a step's cost  what a token takes besides, however small the weights are: threads that meet, the call itself

Used by bench.py, which reports the share of the bandwidth that a model reaches, and by inspection.py, which says what
speed to expect.
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

BUFFER_BYTES = 512 << 20  # well above the caches, yet soon touched
_PASSES = 3
_SHORT_PASS_S = 0.02  # passes over less than this are repeated, and the whole is taken as one
_WORDS_PER_ROW = 32  # of the buffer that bandwidth.pyx reads
_STEPS_S = 0.1  # for how long steps of a model are timed
_POSITIONS = 16


class ReadBandwidth:
    """A buffer of n_bytes, which n_threads threads of the CPU backend's team read. With less than the processor's
    last cache holds, it is the cache that is measured.
    """

    def __init__(self, n_threads: int, n_bytes: int | None = None) -> None:
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
        """GB/s of some passes over the buffer."""
        return [self._buffer.nbytes / seconds / 1e9 for seconds in _timed(self._pass, _PASSES)]

    def _pass(self) -> None:
        self._read(self._buffer, self._n_threads)


def _timed(function: Callable[[], None], n: int) -> list[float]:
    """Seconds of a call, n times; short ones are means over as many calls as make a time that can be measured."""
    found = []
    for _ in range(n):
        calls, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < _SHORT_PASS_S or not calls:
            function()
            calls += 1
        found.append(elapsed / calls)
    return found


def step_seconds(n_layers: int, n_threads: int) -> float:
    """What decoding a token takes besides reading its weights: the time of a model of n_layers with next to none."""
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
    return min(seconds)  # what others on the machine add is not part of it


def last_cache_bytes() -> int | None:
    """Size of the first processor's largest cache; None where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):  # a file system that is made up otherwise
            return None
    return max(sizes, default=None)
