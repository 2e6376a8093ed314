"""CUDA graphs of decoding steps: the launches of a step are recorded once. Later one call gives them to the GPU.

    key   what the launches depend on: number of tokens, blocks for the sequence's length, whether logits are wanted

Tokens, rows and positions are in device memory, so that one graph serves every step of its key. The first step of a key
is launched kernel by kernel, which also loads the kernels. The second one is recorded. If CUDA refuses, all steps are
launched kernel by kernel, and problem says why. The graphs that were used last are kept, of all caches together: the
plan of the memory counts so many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from .cache import CudaKVCache


@dataclass
class _Step:
    """A key that was seen. graph is None before the second time. used is the time of its last use."""

    graph: Any
    used: int


class StepGraphs:
    """The graphs of each cache. They are dropped with it: a graph has addresses, and keeps no memory alive.

    Args:
        cupy: the module, or a stand-in.
        stream: where steps are launched.
        most: number of graphs that are kept.

    Attributes:
        n_captured: number of graphs recorded so far.
        problem: None while graphs work, else why they do not.
    """

    def __init__(self, cupy: Any, stream: Any, most: int) -> None:
        self._cupy, self._stream, self._most = cupy, stream, most
        self._steps: WeakKeyDictionary[CudaKVCache, dict[Hashable, _Step]] = WeakKeyDictionary()
        self._time = 0
        self._thread = threading.local()
        self.n_captured = 0
        self.problem: str | None = None

    def run(self, cache: CudaKVCache, key: Hashable, launch: Callable[[], None]) -> None:
        """Run a step: launch it, record it, or run its graph.

        Args:
            cache: the cache that the step uses.
            key: what the launches depend on.
            launch: launches the step on the stream, which must be the current one and not the default one.
        """
        steps = self._steps.setdefault(cache, {})
        known = steps.pop(key, None)
        graph = known.graph if known else None
        if known and graph is None and self.problem is None:
            self._evict(self._most - 1)  # before the new one takes memory
            graph = self._capture(launch)
        self._time += 1
        steps[key] = _Step(graph, self._time)  # at the end: it was used last
        self._evict(self._most)
        if graph is None or self.problem is not None:
            launch()
        else:
            graph.launch(self._stream)
        self._thread.has_launched = True

    @property
    def n_kept(self) -> int:
        """Number of keys that are kept. One that was seen once has no graph yet."""
        return sum(map(len, self._steps.values()))

    def clear(self) -> None:
        """Drop all graphs: the arrays that they use will be freed."""
        self._steps.clear()

    def _evict(self, most: int) -> None:
        """Drop the steps that were not used for the longest time, until there are at most so many."""
        while self.n_kept > most:
            oldest = min(filter(None, self._steps.values()), key=lambda steps: next(iter(steps.values())).used)
            del oldest[next(iter(oldest))]

    def _capture(self, launch: Callable[[], None]) -> Any:
        """Record launch() without running it. Returns the graph, or None if CUDA refuses."""
        try:
            runtime = self._cupy.cuda.runtime
            # In this mode, other threads of the program may allocate meanwhile. With the first launch of a thread, CuPy
            # asks for the free memory, which only the other mode allows.
            has_launched = getattr(self._thread, "has_launched", False)
            mode = runtime.streamCaptureModeThreadLocal if has_launched else runtime.streamCaptureModeRelaxed
            self._stream.begin_capture(mode)
        except (AttributeError, RuntimeError) as error:  # CuPy's CUDARuntimeError is a RuntimeError
            self._give_up(error)
            return None
        graph = None
        try:
            launch()
        except RuntimeError as error:
            self._give_up(error)
        finally:  # also after Ctrl-C: the stream must not go on recording
            try:
                graph = self._stream.end_capture()
            except RuntimeError as error:
                self._give_up(error)
        if self.problem is not None:
            return None
        self.n_captured += 1
        return graph

    def _give_up(self, error: Exception) -> None:
        if self.problem is None:
            self.problem = str(error).splitlines()[0] if str(error) else type(error).__name__
