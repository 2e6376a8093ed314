"""Streams, events and graphs. Work runs at once; what is kept is which order the caller has asked for.

Two streams that use one array without an event or a synchronisation between them race on a GPU: here that is an error.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from .device import CUDARuntimeError, Device
from .findings import EmulationError

if TYPE_CHECKING:
    from .arrays import Buffer
    from .kernels import Recorded

_pointers = itertools.count(0x1000, 0x100)


class Stream:
    """What cupy.cuda.Stream is. Each stand-in has a subclass of its own, bound to its device."""

    device: ClassVar[Device]
    null: ClassVar[Stream]

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, *, priority: int | None = None
    ):
        self.ptr = 0 if null else next(_pointers)
        self.is_non_blocking = non_blocking
        self.device_id = 0
        self._submitted = self._completed = 0
        self._waits: dict[int, int] = {}  # stream pointer -> its operations that come before this stream's next ones
        self._deferred: list[tuple[int, Callable[[], None]]] = []  # after this many operations
        self._recorded: list[Recorded] | None = None
        self.device.streams.add(self)

    def __enter__(self) -> Stream:
        self.device.stream_stack.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.device.stream_stack.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def use(self) -> Stream:
        """Makes this the current stream."""
        self.device.stream_stack[-1] = self
        return self

    @property
    def done(self) -> bool:
        """Work is done when it was waited for."""
        return self._completed == self._submitted

    def synchronize(self) -> None:
        """Waits for all work of this stream."""
        if self._recorded is not None or self.device.capturing:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", 900, "waiting for a stream in a capture")
        self.complete(self._submitted)

    def complete(self, number: int) -> None:
        """The host has waited for so many operations."""
        self._completed = max(self._completed, number)
        while self._deferred and self._deferred[0][0] <= self._completed:
            self._deferred.pop(0)[1]()

    def when_synchronized(self, action: Callable[[], None]) -> None:
        """Does something as soon as the host waits for what this stream was given so far."""
        self._deferred.append((self._submitted, action))

    def record(self, event: Event | None = None) -> Event:
        """Marks the work that was given to this stream so far."""
        event = event or Event()
        event.stream, event.number, event.seconds = self, self._submitted, time.perf_counter()
        return event

    def wait_event(self, event: Event) -> None:
        """What this stream gets from now on comes after the event."""
        if event.stream is not None:
            before = self._waits.get(event.stream.ptr, 0)
            self._waits[event.stream.ptr] = max(before, event.number)
            for pointer, number in event.stream._waits.items():
                self._waits[pointer] = max(self._waits.get(pointer, 0), number)

    # ---- capture

    def begin_capture(self, mode: int | None = None) -> None:
        """From now on launches on this stream are recorded and not run."""
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._recorded is not None:
            raise CUDARuntimeError("cudaErrorIllegalState", 401, "the stream is being captured already")
        self._recorded = []
        self.device.capturing.append(self)

    def end_capture(self) -> Graph:
        """The graph of what was recorded."""
        if self._recorded is None:
            raise CUDARuntimeError("cudaErrorIllegalState", 401, "the stream is not being captured")
        recorded, self._recorded = self._recorded, None
        self.device.capturing.remove(self)
        return Graph(self.device, recorded)

    def is_capturing(self) -> bool:
        """Whether launches are being recorded."""
        return self._recorded is not None

    def submit(self, launch: Recorded) -> None:
        """Runs a launch, or records it."""
        if self._recorded is not None:
            self._recorded.append(launch)
            return
        if self.device.capturing and self.ptr == 0:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureImplicit", 906, "a launch on the default stream while another is being captured"
            )
        launch.run(self)

    # ---- order between streams

    def use_buffer(self, buffer: Buffer, *, write: bool) -> None:
        """Notes that the next operation of this stream reads or writes a buffer; raises when the order is open."""
        earlier = [buffer.last_write] if buffer.last_write else []
        if write:
            earlier += buffer.last_reads.values()
        for stream, number in earlier:
            if not self._comes_after(stream, number):
                raise EmulationError(
                    f"stream {self.ptr:#x} uses an array of {buffer.n_bytes} bytes that stream {stream.ptr:#x} may be "
                    f"using still: synchronize, or let one wait for an event of the other"
                )
        self._submitted += 1
        if write:
            buffer.last_write, buffer.last_reads = (self, self._submitted), {}
        else:
            buffer.last_reads[self.ptr] = (self, self._submitted)

    def _comes_after(self, other: Stream, number: int) -> bool:
        if other.ptr == self.ptr or other._completed >= number or self._waits.get(other.ptr, 0) >= number:
            return True
        # The default stream and blocking streams wait for each other.
        return (self.ptr == 0 and not other.is_non_blocking) or (other.ptr == 0 and not self.is_non_blocking)


class Event:
    """What cupy.cuda.Event is."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream: Stream | None = None
        self.number, self.seconds = 0, 0.0
        self.disable_timing = disable_timing

    device: ClassVar[Device]

    def record(self, stream: Stream | None = None) -> None:
        """Marks the work that was given to a stream so far."""
        (stream or self.device.current_stream).record(self)

    def synchronize(self) -> None:
        """Waits for the work before the event."""
        if self.stream is not None:
            self.device.refuse_while_capturing("waiting for an event")
            self.stream.complete(self.number)

    @property
    def done(self) -> bool:
        """Whether that work was waited for."""
        return self.stream is None or self.stream._completed >= self.number


class Graph:
    """What Stream.end_capture gives: launches with the arguments that they had when they were recorded."""

    def __init__(self, device: Device, recorded: list[Recorded]) -> None:
        self._device, self._recorded = device, recorded
        self._buffers = [[weakref.ref(buffer) for buffer in launch.buffers] for launch in recorded]
        for launch in recorded:
            launch.buffers = []  # as on the device, a graph does not keep memory alive

    @property
    def nodes(self) -> list[str]:
        """The names of its kernels. The stand-in's own."""
        return [launch.name for launch in self._recorded]

    def launch(self, stream: Stream | None = None) -> None:
        """Runs all of it."""
        stream = stream or self._device.current_stream
        self._device.refuse_while_capturing("launching a graph")
        self._device.graph_launches += 1
        for launch, references in zip(self._recorded, self._buffers, strict=True):
            buffers = [reference() for reference in references]
            if any(buffer is None for buffer in buffers):
                raise EmulationError(f"the graph launches {launch.name} with an array that was freed since the capture")
            launch.run(stream, buffers)

    def upload(self, stream: Stream | None = None) -> None:
        """Does nothing."""
