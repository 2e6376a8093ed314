"""The time of each kernel of the CUDA backend on a GPU, by events: a module cupy whose kernels are timed.

    with timed_backend() as timed:
        ... make a CudaBackend, and run it once, so that all is compiled ...
        with timed.timing() as times:
            backend.forward(batch, cache)
        print("\\n".join(table(times)))

A kernel waits for the host if that launches too slowly, and the events before and after it would count this. So the GPU
is given other work first, during which the kernels queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyllama2._gpu import availability

_BUSY_BYTES, _BUSY_FILLS = 256 << 20, 60  # 15 GiB of zeros, which take 4 ms or more


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel: its name with template arguments, and the microseconds of each launch."""

    name: str
    microseconds: tuple[float, ...]


class TimedCupy:
    """cupy with other RawModules.

    Args:
        cupy: the module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._events: list[tuple[str, Any, Any]] | None = None  # None: nothing is timed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cupy, name)

    def RawModule(self, **arguments: Any) -> TimedModule:
        """Return a module whose kernels are timed."""
        return TimedModule(self, self._cupy.RawModule(**arguments))

    @contextmanager
    def timing(self) -> Iterator[list[KernelTime]]:
        """Time all launches in the block. The list is filled at its end, the slowest kernel first."""
        cuda, times = self._cupy.cuda, []  # type: ignore[var-annotated]
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._busy = self._cupy.empty(min(_BUSY_BYTES, cuda.runtime.memGetInfo()[0] // 4), "uint8")
        self._events = []
        try:
            yield times
        finally:
            events, self._events = self._events, None
            del self._busy
        found: dict[str, list[float]] = {}
        for name, start, end in events:
            end.synchronize()
            found.setdefault(name, []).append(1e3 * cuda.get_elapsed_time(start, end))
        times += [KernelTime(name, tuple(us)) for name, us in found.items()]
        times.sort(key=lambda kernel: -sum(kernel.microseconds))

    def launch(self, name: str, kernel: Any, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel, between two events if it is to be timed."""
        if self._events is None:
            kernel(*arguments)
            return
        if not self._events:
            for _ in range(_BUSY_FILLS):
                self._busy.data.memset_async(0, self._busy.nbytes, self._cupy.cuda.get_current_stream())
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        kernel(*arguments)
        end.record()
        self._events.append((name, start, end))


class TimedModule:
    """A RawModule whose functions go through TimedCupy.launch()."""

    def __init__(self, timed: TimedCupy, module: Any) -> None:
        self._timed, self._module = timed, module

    def get_function(self, name: str) -> Any:
        """Return a kernel."""
        kernel = self._module.get_function(name)
        return lambda *arguments: self._timed.launch(name, kernel, arguments)


@contextmanager
def timed_backend() -> Iterator[TimedCupy]:
    """CUDA backends that are made in the block have timed kernels."""
    timed = TimedCupy(availability.import_cupy())
    before = availability.import_cupy
    availability.import_cupy = lambda: timed
    try:
        yield timed
    finally:
        availability.import_cupy = before


def table(times: Sequence[KernelTime]) -> Iterator[str]:
    """Return lines with the launches, the microseconds and the share of each kernel, and of all together."""
    total = sum(sum(kernel.microseconds) for kernel in times)
    for kernel in times:
        us, n = sum(kernel.microseconds), len(kernel.microseconds)
        yield f"{kernel.name:44} {n:4} launches {us:10.1f} us {us / total if total else 0:6.1%}"
    yield f"{'all':44} {sum(len(kernel.microseconds) for kernel in times):4} launches {total:10.1f} us"
