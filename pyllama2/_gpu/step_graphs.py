"""CUDA graphs of decoding steps: the launches of a step, recorded once and given to the GPU by one call.

    key   what the launches depend on: number of tokens, blocks for the sequence's length, what is wanted of logits

Tokens, rows and positions lie in device memory, so that one graph serves every step of its key. A key's first step is
launched kernel by kernel, which also loads the kernels; the second is recorded. Where CUDA refuses, steps go on being
launched kernel by kernel, and problem says why. Of each cache the graphs used last are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from .cache import CudaKVCache


class StepGraphs:
    """Graphs of each cache, dropped with it: a graph holds addresses, and keeps no memory alive."""

    def __init__(self, cupy: Any, stream: Any, most: int) -> None:
        """most: graphs of a cache that are kept."""
        self._cupy, self._stream, self._most = cupy, stream, most
        self._graphs: WeakKeyDictionary[CudaKVCache, dict[Hashable, Any]] = WeakKeyDictionary()
        self.n_captured = 0
        self.problem: str | None = None

    def run(self, cache: CudaKVCache, key: Hashable, launch: Callable[[], None]) -> None:
        """What launch() launches on the stream, which must be the current one and not the default one."""
        graphs = self._graphs.setdefault(cache, {})
        is_known, graph = key in graphs, graphs.pop(key, None)
        if is_known and graph is None and self.problem is None:
            graph = self._capture(launch)
        graphs[key] = graph  # the last, as the one used last
        if len(graphs) > self._most:
            del graphs[next(iter(graphs))]
        if graph is None or self.problem is not None:
            launch()
        else:
            graph.launch(self._stream)

    def n_kept(self, cache: CudaKVCache) -> int:
        """Graphs of a cache, and steps seen once that have none yet."""
        return len(self._graphs.get(cache, ()))

    def clear(self) -> None:
        """Forgets all graphs: the arrays that they name will be freed."""
        self._graphs.clear()

    def _capture(self, launch: Callable[[], None]) -> Any:
        """The graph of launch(), of which nothing is run yet; None where that is not possible."""
        try:
            # Other threads of the program may allocate meanwhile.
            self._stream.begin_capture(self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
        except (AttributeError, RuntimeError) as error:  # CuPy's CUDARuntimeError is a RuntimeError
            self._give_up(error)
            return None
        graph = None
        try:
            launch()
        except RuntimeError as error:
            self._give_up(error)
        finally:  # also after Ctrl-C: the stream must not stay as it is
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
