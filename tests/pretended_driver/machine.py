"""The machine that is pretended: devices with their memory, streams whose work waits, captures, graphs, findings.

Nothing here knows ctypes or CuPy. Work that a stream is given is done only when the host waits for it, as late as a GPU
could do it: memory that is used again too early has the wrong contents by then.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INSUFFICIENT_DRIVER, INVALID_DEVICE = 0, 1, 2, 35, 101
INVALID_HANDLE, NO_DEVICE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_IMPLICIT = 400, 100, 900, 901, 906
ILLEGAL_STATE, ILLEGAL_ADDRESS, LAUNCH_FAILURE = 401, 700, 719

GLOBAL, THREAD_LOCAL, RELAXED = range(3)  # modes of a capture
POISON = 0xFF  # a NaN in half and in float, an absurd integer
ALIGNMENT = 512
LARGE, GRANULE = 1 << 20, 2 << 20  # cudaMalloc rounds more than LARGE bytes up to a multiple of GRANULE
NODE_BYTES = 4 << 10  # device memory that an instantiated graph takes for each of its nodes


class CudaError(Exception):
    """A call is refused with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Settings:
    """What is pretended.

    Attributes:
        n_devices: number of devices. 0: there is no driver. CuPy sizes its tables by the first machine of a process, so
            later ones have no more.
        total_bytes: memory of each device.
        capability: compute capability.
        late_host_reads: pageable memory of the host is read when the GPU comes to it, as on machines whose GPU reads
            all memory of the process (ATS). Otherwise it is copied at the call.
        refuses_captures: no stream can be captured.
        memory_queries_break_captures: cudaMemGetInfo is among the calls that a capture does not allow.
    """

    n_devices: int = 2
    total_bytes: int = 8 << 30
    capability: tuple[int, int] = (8, 0)
    n_multiprocessors: int = 16
    l2_bytes: int = 1 << 20
    name: str = "pretended GPU"
    late_host_reads: bool = False
    refuses_captures: bool = False
    memory_queries_break_captures: bool = True


@dataclass
class Allocation:
    """Memory of a device, or pinned memory of the host (device is None)."""

    device: int | None
    address: int
    n_bytes: int
    taken: int  # bytes of the device, rounded up
    memory: NDArray[np.uint8] = field(repr=False)


class Memory:
    """Allocations by address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._of: dict[int, Allocation] = {}

    def new(self, device: int | None, n_bytes: int, taken: int = 0) -> Allocation:
        """Make an allocation, filled with POISON."""
        raw = np.full(n_bytes + 8 * ALIGNMENT, POISON, np.uint8)
        start = -raw.ctypes.data % (8 * ALIGNMENT)
        made = Allocation(device, raw.ctypes.data + start, n_bytes, taken, raw)
        bisect.insort(self._starts, made.address)
        self._of[made.address] = made
        return made

    def drop(self, address: int) -> Allocation:
        """Forget an allocation. Raises CudaError if there is none."""
        if address not in self._of:
            raise CudaError(INVALID_VALUE)
        self._starts.remove(address)
        dropped = self._of.pop(address)
        dropped.memory.fill(POISON)
        return dropped

    def at(self, address: int, n_bytes: int = 1) -> Allocation | None:
        """Return the allocation that has all of these bytes."""
        i = bisect.bisect_right(self._starts, address) - 1
        found = self._of[self._starts[i]] if i >= 0 else None
        return found if found is not None and address + n_bytes <= found.address + found.n_bytes else None

    def of_device(self, device: int | None) -> list[Allocation]:
        """Return the allocations of a device."""
        return [a for a in self._of.values() if a.device == device]


@dataclass(frozen=True)
class Work:
    """Something that a stream is given: its name, and what does it."""

    name: str
    run: Callable[[], None]
    thread: int


class Stream:
    """A stream: work in its order."""

    def __init__(self, handle: int, device: int, *, blocking: bool) -> None:
        self.handle, self.device, self.blocking = handle, device, blocking
        self.given = self.done = 0
        self._waiting: deque[Work] = deque()

    def add(self, work: Work) -> None:
        """Put work at the end."""
        self._waiting.append(work)
        self.given += 1

    def run(self, until: int | None = None) -> None:
        """Do the work up to this number, or all."""
        until = self.given if until is None else until
        while self._waiting and self.done < until:
            work = self._waiting.popleft()
            self.done += 1
            work.run()


@dataclass
class Capture:
    """A stream that is being captured: its work is recorded instead of done."""

    stream: Stream
    mode: int
    thread: int
    works: list[Work] = field(default_factory=list)
    broken: bool = False


@dataclass
class Graph:
    """Recorded work. device_bytes is what its instance takes of the device."""

    device: int
    works: list[Work]
    device_bytes: int = 0


class Machine:
    """The state of everything, for all threads. Calls are serialised by lock.

    Attributes:
        findings: mistakes of the program, as sentences. A test with any fails.
        launches: names of kernels in the order in which they ran; those of graphs, too.
        graph_launches: number of launches of graphs.
        copies: ("to" or "from" the device, bytes) of each copy that was asked for.
        calls: number of calls of each function.
    """

    def __init__(self) -> None:
        self.settings = Settings(n_devices=0)
        self.lock = threading.RLock()
        self.memory, self.pinned = Memory(), Memory()
        self.streams: dict[tuple[int, int], Stream] = {}  # by device, and handle
        self.captures: dict[int, Capture] = {}  # by the stream's handle
        self.graphs: dict[int, Graph] = {}
        self.instances: dict[int, Graph] = {}
        self.events: dict[int, tuple[Stream, int]] = {}
        self.used: dict[int, int] = {}  # bytes of each device
        self.findings: list[str] = []
        self.launches: list[str] = []
        self.graph_launches = 0
        self.copies: list[tuple[str, int]] = []
        self.calls: dict[str, int] = {}
        self._handle = 0x1000
        self._of_thread = threading.local()

    # ---- devices and memory

    @property
    def current(self) -> int:
        """The current device of the thread. Raises CudaError without a driver."""
        if not self.settings.n_devices:
            raise CudaError(INSUFFICIENT_DRIVER)
        device: int = getattr(self._of_thread, "device", 0)
        return device if device < self.settings.n_devices else 0

    @current.setter
    def current(self, device: int) -> None:
        if not 0 <= device < self.settings.n_devices:
            raise CudaError(INVALID_DEVICE)
        self._of_thread.device = device

    def new_handle(self) -> int:
        """Return a number that was not used before."""
        self._handle += 16
        return self._handle

    def free_bytes(self, device: int) -> int:
        """Return the bytes of a device that are free."""
        return max(0, self.settings.total_bytes - self.used.get(device, 0))

    def reserve(self, device: int, n_bytes: int) -> None:
        """Take bytes of a device. Raises CudaError if it has too few."""
        if n_bytes > self.free_bytes(device):
            raise CudaError(OUT_OF_MEMORY)
        self.used[device] = self.used.get(device, 0) + n_bytes

    def allocate(self, n_bytes: int) -> int:
        """Allocate memory of the current device. Returns its address."""
        self.unsafe("an allocation")
        taken = -(-n_bytes // GRANULE) * GRANULE if n_bytes > LARGE else -(-n_bytes // ALIGNMENT) * ALIGNMENT
        self.reserve(self.current, taken)
        return self.memory.new(self.current, n_bytes, taken).address

    def free(self, address: int) -> None:
        """Free memory of a device. CUDA waits for the device."""
        self.unsafe("freeing memory")
        if not address:
            return
        self.run_all()
        dropped = self.memory.drop(address)
        assert dropped.device is not None
        self.used[dropped.device] -= dropped.taken

    def finding(self, sentence: str) -> None:
        """Note a mistake of the program."""
        if sentence not in self.findings:
            self.findings.append(sentence)

    def take_findings(self) -> list[str]:
        """Return the findings so far, which are forgotten."""
        found, self.findings = self.findings, []
        return found

    # ---- streams

    def stream(self, handle: int) -> Stream:
        """Return a stream; 0 is the default one of the current device."""
        if handle == 0:
            key = (self.current, 0)
            if key not in self.streams:
                self.streams[key] = Stream(0, self.current, blocking=True)
            return self.streams[key]
        for (_, other), stream in self.streams.items():
            if other == handle:
                return stream
        raise CudaError(INVALID_HANDLE)

    def new_stream(self, *, blocking: bool) -> int:
        """Make a stream of the current device. Returns its handle."""
        handle = self.new_handle()
        self.streams[self.current, handle] = Stream(handle, self.current, blocking=blocking)
        return handle

    def submit(self, stream: Stream, name: str, run: Callable[[], None]) -> None:
        """Give work to a stream, or record it."""
        work, capture = Work(name, run, threading.get_ident()), self.captures.get(stream.handle)
        if capture is not None and stream.handle:
            if work.thread != capture.thread:
                self.finding(f"{name} of another thread was recorded in a capture, and is not done")
            capture.works.append(work)
            return
        if not stream.handle and any(c.stream.blocking and c.stream.device == stream.device for c in
                                     self.captures.values()):  # fmt: skip
            self.break_captures(f"{name} on the default stream")
            raise CudaError(CAPTURE_IMPLICIT)
        for other in self._ordered_before(stream):
            if other.given > other.done:
                stream.add(Work("wait", _running(other, other.given), work.thread))
        stream.add(work)

    def _ordered_before(self, stream: Stream) -> Iterator[Stream]:
        """The default stream and blocking streams of a device wait for each other."""
        if not stream.blocking:
            return
        for other in list(self.streams.values()):
            is_ordered = other.device == stream.device and other.blocking and not (stream.handle and other.handle)
            if is_ordered and other is not stream:
                yield other

    def run_all(self, device: int | None = None) -> None:
        """Do the work of all streams, or of those of a device."""
        for stream in list(self.streams.values()):
            if device in (None, stream.device):
                stream.run()

    # ---- captures

    def unsafe(self, what: str) -> None:
        """Refuse what a capture does not allow: by its thread, or in the global mode by any."""
        me = threading.get_ident()
        broken = [c for c in self.captures.values()
                  if c.mode == GLOBAL or (c.mode == THREAD_LOCAL and c.thread == me)]  # fmt: skip
        if broken:
            self.break_captures(what, broken)
            raise CudaError(CAPTURE_UNSUPPORTED)

    def break_captures(self, what: str, captures: list[Capture] | None = None) -> None:
        """The captures come to nothing."""
        self.finding(f"{what} during the capture of a graph")
        for capture in self.captures.values() if captures is None else captures:
            capture.broken = True

    def begin_capture(self, stream: Stream, mode: int) -> None:
        """Record the work of a stream from now on."""
        if self.settings.refuses_captures or not stream.handle:
            raise CudaError(CAPTURE_UNSUPPORTED)
        if stream.handle in self.captures:
            raise CudaError(ILLEGAL_STATE)
        self.captures[stream.handle] = Capture(stream, mode, threading.get_ident())

    def end_capture(self, stream: Stream) -> int:
        """Return the handle of the graph of what was recorded."""
        capture = self.captures.pop(stream.handle, None)
        if capture is None:
            raise CudaError(ILLEGAL_STATE)
        if capture.broken:
            raise CudaError(CAPTURE_INVALIDATED)
        handle = self.new_handle()
        self.graphs[handle] = Graph(stream.device, capture.works)
        return handle

    def instantiate(self, graph: int) -> int:
        """Make a graph that can be launched. Returns its handle."""
        recorded = self.graphs[graph]
        made = Graph(recorded.device, list(recorded.works), NODE_BYTES * len(recorded.works))
        self.reserve(made.device, made.device_bytes)
        handle = self.new_handle()
        self.instances[handle] = made
        return handle

    def destroy_instance(self, handle: int) -> None:
        """Drop a graph that can be launched."""
        dropped = self.instances.pop(handle)
        self.used[dropped.device] -= dropped.device_bytes

    def launch_graph(self, handle: int, stream: Stream) -> None:
        """Give all of a graph's work to a stream."""
        works = self.instances[handle].works
        self.graph_launches += 1

        def run() -> None:
            for work in works:
                work.run()

        self.submit(stream, "a graph", run)

    # ---- settings

    @contextmanager
    def pretending(self, settings: Settings) -> Iterator[Machine]:
        """Another machine meanwhile, whose counts begin at 0. Memory, streams and graphs that are left stay."""
        before, self.settings = self.settings, settings
        self.launches, self.graph_launches, self.copies, self.calls = [], 0, [], {}
        try:
            yield self
        finally:
            with self.lock:
                self.run_all()
            self.settings = before


def _running(stream: Stream, until: int) -> Callable[[], None]:
    return lambda: stream.run(until)
