"""cupy.RawModule and its kernels: arguments are checked as strictly as the GPU would punish them, then launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from . import compiling, counting
from .arrays import Array, Buffer, MemoryPointer
from .device import CUDARuntimeError, Device
from .findings import EmulationError
from .library import GLOBAL, MAX_DYNAMIC_SHARED, Library, Memory, Parameter

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
DEFAULT_DYNAMIC_SHARED = 48 << 10
MAX_SHARED = {61: 48 << 10, 70: 96 << 10, 75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}


class RawModule:
    """What cupy.RawModule is. Each stand-in has a subclass of its own, bound to its device."""

    device: ClassVar[Device]

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool = False,
    ) -> None:
        if code is None or path is not None:
            raise TypeError("the stand-in compiles code; it does not load a path")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        if enable_cooperative_groups:
            raise NotImplementedError("the stand-in has no cooperative launches")
        self.code, self.options, self.backend = code, options, backend
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)
        self._library: Library | None = None
        self._functions: dict[str, RawKernel] = {}

    @property
    def library(self) -> Library:
        """The compiled module; it is compiled when it is first asked for."""
        if self._library is None:
            self.device.refuse_while_capturing("compiling or loading a module")
            settings = self.device.settings
            checked = settings.checks or settings.counts
            names = self.name_expressions or ()
            path = compiling.library(self.code, self.options, names, checked=checked, arch=settings.arch * 10)
            self._library = Library(path)
        return self._library

    def compile(self, log_stream: Any = None) -> None:
        """Compiles now."""
        _ = self.library

    def get_function(self, name: str) -> RawKernel:
        """A kernel by its extern "C" name, or by one of name_expressions."""
        if name not in self._functions:
            if name not in self.library.kernels:
                raise CUDARuntimeError("CUDA_ERROR_NOT_FOUND", 500, f"named symbol not found: {name}")
            self._functions[name] = RawKernel(self, name)
        return self._functions[name]


class RawKernel:
    """What RawModule.get_function gives."""

    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self.parameters = module.library.parameters[name]
        self._max_dynamic_shared = DEFAULT_DYNAMIC_SHARED

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for; can be set up to what the architecture has."""
        return self._max_dynamic_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n_bytes: int) -> None:
        limit = MAX_SHARED.get(self.module.device.settings.arch, MAX_DYNAMIC_SHARED)
        if n_bytes > limit:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", 1, f"{n_bytes} bytes where the device has {limit}")
        self._max_dynamic_shared = n_bytes

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0, stream: Any = None) -> None:
        """Launches on the current stream, or on the one that is given."""
        device = self.module.device
        sizes = _sizes(self.name, grid, MAX_GRID), _sizes(self.name, block, MAX_BLOCK)
        if np.prod(sizes[1]) > 1024:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", 1, f"{self.name}: more than 1024 threads in a block")
        if not 0 <= shared_mem <= self._max_dynamic_shared:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE",
                1,
                f"{self.name}: {shared_mem} bytes of dynamic shared memory where {self._max_dynamic_shared} can be had",
            )
        if not isinstance(args, tuple | list):
            raise TypeError(f"{self.name}: args is a tuple, not {type(args).__name__}")
        if len(args) != len(self.parameters):
            raise EmulationError(
                f"{self.name} has {len(self.parameters)} parameters and is given {len(args)} arguments"
            )
        launch = Recorded(self, *sizes, int(shared_mem))
        for i, (argument, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            launch.add(f"argument {i} of {self.name}", argument, parameter)
        (stream or device.current_stream).submit(launch)


@dataclass
class Recorded:
    """A launch with its arguments as they are now: a graph keeps such."""

    kernel: RawKernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int

    def __post_init__(self) -> None:
        self.values: list[bytes] = []
        self.spans: list[tuple[int, int, str]] = []  # of each array: offset in its buffer, bytes, name
        self.buffers: list[Buffer] = []
        self.writes: list[bool] = []

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.name

    def add(self, where: str, argument: Any, parameter: Parameter) -> None:
        """Checks one argument and keeps its bytes."""
        if isinstance(argument, Array):
            self._add_array(where, argument, parameter)
        elif isinstance(argument, MemoryPointer) or (parameter.is_pointer and isinstance(argument, int | np.integer)):
            self._add_address(where, argument, parameter)
        else:
            self.values.append(_scalar_bytes(where, argument, parameter))

    def _add_array(self, where: str, array: Array, parameter: Parameter) -> None:
        if not parameter.is_pointer:
            raise EmulationError(f"{where} is an array where a number is expected")
        if array.buffer.device is not self.kernel.module.device:
            raise EmulationError(f"{where} is an array of another device")
        if not array.flags.c_contiguous:
            raise EmulationError(f"{where} is not C-contiguous: its pointer would be used as if it were")
        address = array.data.ptr
        if parameter.kind != "v" and not _same_kind(array.dtype, parameter):
            expected = f"{parameter.kind}{parameter.size}"
            raise EmulationError(f"{where} is a {array.dtype} array where a pointer to {expected} is expected")
        if parameter.size > 1 and address % parameter.size:
            raise EmulationError(f"{where} begins at an address that is no multiple of {parameter.size}")
        name = f"{where} ({array.dtype} {array.shape})"
        self._add_span(array.buffer, address, array.nbytes, name, not parameter.is_const)

    def _add_address(self, where: str, argument: Any, parameter: Parameter) -> None:
        address = argument.ptr if isinstance(argument, MemoryPointer) else int(argument)
        buffer = self.kernel.module.device.buffer_at(address)
        if address == 0:
            self.values.append(bytes(8))
            return
        if buffer is None:
            raise EmulationError(f"{where} is an address at which there is no array")
        rest = buffer.n_bytes - (address - buffer.address)
        self._add_span(buffer, address, rest, f"{where} (an address)", not parameter.is_const)

    def _add_span(self, buffer: Buffer, address: int, n_bytes: int, name: str, write: bool) -> None:
        self.values.append(address.to_bytes(8, "little"))
        self.spans.append((address - buffer.address, n_bytes, name))
        self.buffers.append(buffer)
        self.writes.append(write)

    def run(self, stream: Any, buffers: list[Any] | None = None) -> None:
        """Launches it now."""
        buffers = self.buffers if buffers is None else buffers
        for buffer, write in zip(buffers, self.writes, strict=True):
            stream.use_buffer(buffer, write=write)
        device, library = self.kernel.module.device, self.kernel.module.library
        settings = device.settings
        found = library.launch(
            self.name, self.grid, self.block, self.values, self.shared_bytes, self._memory(buffers),
            check=settings.checks, count=settings.counts, order=settings.order,
        )  # fmt: skip
        device.launches.append(self.name)
        if settings.counts:
            device.counts.append(counting.read(library, self.name))
        device.note(self.name, found)

    def _memory(self, buffers: list[Buffer]) -> list[Memory]:
        """What the launch may touch: its arrays. Views of one buffer that overlap or touch are one piece."""
        pieces: list[tuple[Buffer, int, int, str]] = []
        order = sorted(zip(buffers, self.spans, strict=True), key=lambda pair: pair[0].address + pair[1][0])
        for buffer, (offset, n_bytes, name) in order:
            if pieces and pieces[-1][0] is buffer and offset <= pieces[-1][1] + pieces[-1][2]:
                _, start, length, first = pieces[-1]
                pieces[-1] = (buffer, start, max(length, offset + n_bytes - start), first)
            elif n_bytes:
                pieces.append((buffer, offset, n_bytes, name))
        return [
            Memory(b.address + offset, n, GLOBAL, name, None if b.written is None else b.written[offset : offset + n])
            for b, offset, n, name in pieces
        ]


def _sizes(name: str, sizes: Any, limits: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(sizes, tuple | list) or not 1 <= len(sizes) <= 3:
        raise TypeError(f"{name}: grid and block are tuples of 1 to 3 numbers, not {sizes!r}")
    full = (*(int(size) for size in sizes), 1, 1)[:3]
    if any(not 1 <= size <= limit for size, limit in zip(full, limits, strict=True)):
        raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", 1, f"{name}: {full} where {tuple(limits)} is the limit")
    return full


def _same_kind(dtype: np.dtype[Any], parameter: Parameter) -> bool:
    return dtype.itemsize == parameter.size and {"b": "u"}.get(dtype.kind, dtype.kind) == parameter.kind


def _scalar_bytes(where: str, argument: Any, parameter: Parameter) -> bytes:
    expected = f"{parameter.kind}{parameter.size}"
    if parameter.is_pointer:
        raise EmulationError(f"{where} is {type(argument).__name__} where an array is expected")
    if type(argument) in (int, float, bool, complex):
        # cupy makes 8 bytes of a Python number, whatever the kernel wants
        raise EmulationError(
            f"{where} is a Python {type(argument).__name__}, which is passed as 8 bytes; {expected} is expected"
        )
    if not isinstance(argument, np.generic):
        raise EmulationError(f"{where} is {type(argument).__name__} where a numpy scalar is expected")
    if parameter.kind != "v" and not _same_kind(argument.dtype, parameter):
        raise EmulationError(f"{where} is {argument.dtype} where {expected} is expected")
    if parameter.kind == "v" and argument.dtype.itemsize != parameter.size:
        raise EmulationError(f"{where} has {argument.dtype.itemsize} bytes where {parameter.size} are expected")
    return argument.tobytes()
