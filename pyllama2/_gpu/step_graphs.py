"""CUDA graphs of decoding steps: the launches of a step are recorded once. Later one call gives them to the GPU.

    key   what the launches depend on: number of tokens, blocks for the sequence's length, whether logits are wanted

Tokens, rows and positions are in device memory, so that one graph serves every step of its key. The first step of a key
is launched kernel by kernel, which also loads the kernels. The second one is recorded. If CUDA refuses, all steps are
launched kernel by kernel, and problem says why. The graphs of each cache that were used last are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from .cache import CudaKVCache


class StepGraphs:
    """The graphs of each cache. They are dropped with it: a graph has addresses, and keeps no memory alive.

    Args:
        cupy: the module, or a stand-in.
        stream: where steps are launched.
        most: number of graphs of a cache that are kept.

    Attributes:
        n_captured: number of graphs recorded so far.
        problem: None while graphs work, else why they do not.
    """

    def __init__(self, cupy: Any, stream: Any, most: int) -> None:
        self._cupy, self._stream, self._most = cupy, stream, most
        self._graphs: WeakKeyDictionary[CudaKVCache, dict[Hashable, Any]] = WeakKeyDictionary()
        self.n_captured = 0
        self.problem: str | None = None

    def run(self, cache: CudaKVCache, key: Hashable, launch: Callable[[], None]) -> None:
        """Run a step: launch it, record it, or run its graph.

        Args:
            cache: the cache that the step uses.
            key: what the launches depend on.
            launch: launches the step on the stream, which must be the current one and not the default one.
        """
        graphs = self._graphs.setdefault(cache, {})
        is_known, graph = key in graphs, graphs.pop(key, None)
        if is_known and graph is None and self.problem is None:
            graph = self._capture(launch)
        graphs[key] = graph  # at the end: it was used last
        if len(graphs) > self._most:
            del graphs[next(iter(graphs))]
        if graph is None or self.problem is not None:
            launch()
        else:
            graph.launch(self._stream)

    def n_kept(self, cache: CudaKVCache) -> int:
        """Return the number of keys that are kept of a cache. One that was seen once has no graph yet."""
        return len(self._graphs.get(cache, ()))

    def clear(self) -> None:
        """Drop all graphs: the arrays that they use will be freed."""
        self._graphs.clear()

    def _capture(self, launch: Callable[[], None]) -> Any:
        """Record launch() without running it. Returns the graph, or None if CUDA refuses."""
        try:
            # In this mode, other threads of the program may allocate meanwhile.
            self._stream.begin_capture(self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
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
