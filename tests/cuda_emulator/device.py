"""The emulated device behind one stand-in: its memory, its streams' order, and what its launches found and counted."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .findings import EmulationError, Finding

if TYPE_CHECKING:
    from .arrays import Buffer
    from .counting import LaunchCounts

ROUNDING = 512  # bytes: cupy's pool hands out multiples of this


class CUDARuntimeError(RuntimeError):
    """What cupy raises for a call that the CUDA runtime refuses."""

    def __init__(self, name: str, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(f"{name}: {why}" if why else name)


class OutOfMemoryError(MemoryError):
    """What cupy raises when an allocation does not fit."""


@dataclass
class Settings:
    """How an emulated device behaves.

    Attributes:
        mode: "fast" runs kernels and checks arguments; "check" looks at every access; "count" counts them; "check
            count" does both.
        order: in which threads and blocks run between barriers: "forward", "backward", or a seed.
        arch: the compute capability as a number, 61 or 80; kernels see __CUDA_ARCH__ of ten times that.
        total_bytes: of device memory.
        n_multiprocessors, l2_bytes: what the device says about itself.
        name: the same.
    """

    mode: str = "fast"
    order: str | int = "forward"
    arch: int = 80
    total_bytes: int = 8 << 30
    n_multiprocessors: int = 16
    l2_bytes: int = 1 << 20
    name: str = "emulated GPU"

    def __post_init__(self) -> None:
        if not set(self.mode.split()) <= {"fast", "check", "count"} or not self.mode:
            raise ValueError(f"mode is 'fast', 'check', 'count' or 'check count', not {self.mode!r}")
        if not isinstance(self.order, int) and self.order not in ("forward", "backward"):
            raise ValueError(f"order is 'forward', 'backward' or a seed, not {self.order!r}")

    @property
    def checks(self) -> bool:
        """Whether accesses are checked."""
        return "check" in self.mode.split()

    @property
    def counts(self) -> bool:
        """Whether accesses are counted."""
        return "count" in self.mode.split()


@dataclass(eq=False)
class Device:
    """The state of one emulated device."""

    settings: Settings
    buffers: dict[int, weakref.ref[Buffer]] = field(default_factory=dict)
    used_bytes: int = 0  # of live arrays, each rounded up as cupy's pool does
    exact_bytes: int = 0  # the same, not rounded
    peak_exact_bytes: int = 0
    pool_bytes: int = 0  # what the pool has taken from the device
    launches: list[str] = field(default_factory=list)  # names of kernels in the order of their launches
    graph_launches: int = 0
    copies: list[tuple[str, int]] = field(default_factory=list)  # "to" or "from" the device, and bytes
    counts: list[LaunchCounts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    raise_findings: bool = True
    capturing: list[Any] = field(default_factory=list)
    stream_stack: list[Any] = field(default_factory=list)
    streams: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def current_stream(self) -> Any:
        """The stream that launches and copies go to when none is given."""
        return self.stream_stack[-1]

    def refuse_while_capturing(self, what: str) -> None:
        """Raises when a stream is being captured: a graph cannot contain this, or the capture would be lost."""
        if self.capturing:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported", 900, f"{what} while a stream is being captured")

    def allocate(self, buffer: Buffer) -> None:
        """Registers a new buffer; raises OutOfMemoryError when the device is full."""
        self.refuse_while_capturing("an allocation")
        rounded = math.ceil(buffer.n_bytes / ROUNDING) * ROUNDING
        if self.used_bytes + rounded > self.settings.total_bytes:
            raise OutOfMemoryError(
                f"Out of memory allocating {rounded:,} bytes (allocated so far: {self.used_bytes:,} bytes)."
            )
        self.used_bytes += rounded
        self.pool_bytes = max(self.pool_bytes, self.used_bytes)
        self.exact_bytes += buffer.n_bytes
        self.peak_exact_bytes = max(self.peak_exact_bytes, self.exact_bytes)
        number = next(self._numbers)
        self.buffers[number] = weakref.ref(buffer)
        weakref.finalize(buffer, self._free, number, buffer.n_bytes, rounded)

    def _free(self, number: int, n_bytes: int, rounded: int) -> None:
        del self.buffers[number]
        self.used_bytes -= rounded
        self.exact_bytes -= n_bytes

    def buffer_at(self, address: int) -> Buffer | None:
        """The live buffer that contains an address."""
        for reference in list(self.buffers.values()):
            buffer = reference()
            if buffer is not None and buffer.address <= address < buffer.address + max(1, buffer.n_bytes):
                return buffer
        return None

    def note(self, kernel: str, found: list[Finding]) -> None:
        """Keeps findings of a launch, and raises them unless told otherwise."""
        self.findings += found
        if found and self.raise_findings:
            raise EmulationError(f"{len(found)} findings in an emulated launch of {kernel}:", found)


def poison(memory: np.ndarray) -> None:
    """Fills memory with what is NaN in half and float, and absurd in integers."""
    memory.fill(0xFF)
