"""Modules and kernels: what CuPy gives to the compiler and to the driver is compiled and run by the emulator."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda_emulator import compiling
from cuda_emulator.library import Library, Parameter

from . import machine as m
from .machine import CudaError, Machine

MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
_OF_CUPY = ("-ftz=true", "-I", "-arch", "--gpu-architecture", "--device-as-default-execution-space", "--pch")


@dataclass(frozen=True)
class Image:
    """What stands for machine code: which library has the kernels, and how it was compiled.

    Attributes:
        library: the emulator's library; "" for a source without kernels.
        flushes_denormals: -ftz=true was among the options.
    """

    library: str
    flushes_denormals: bool

    def encoded(self) -> bytes:
        """As bytes without zeros, but for the last."""
        return b"// pretended machine code\n" + json.dumps([self.library, self.flushes_denormals]).encode() + b"\0"

    @classmethod
    def decoded(cls, data: bytes) -> Image:
        """Return the image of encoded bytes."""
        library, flushes = json.loads(data.partition(b"\n")[2].rstrip(b"\0"))
        return cls(library, flushes)


def compiled(source: str, options: Sequence[str], names: Sequence[str], capability: tuple[int, int]) -> Image:
    """Compile a module, with the options that NVRTC would get.

    Raises:
        compiling.CompileError: the source does not compile, or an option is not known.
    """
    if not source.strip():  # CuPy asks what the compiler calls itself
        return Image("", False)
    flushes = "-ftz=true" in options
    known = [option for option in options if not option.startswith(_OF_CUPY)]
    arch = capability[0] * 100 + capability[1] * 10
    return Image(str(compiling.library(source, known, names, checked=False, arch=arch)), flushes)


def flush_denormals(library: Any) -> Callable[[bool], None]:
    """Return the function of the library that says how the thread treats denormal floats."""
    return lambda flush: library.pretended_flush_denormals(int(flush))


@dataclass(frozen=True)
class Function:
    """A kernel of a module that was loaded on a device."""

    name: str
    image: Image
    device: int
    parameters: list[Parameter]


class Kernels:
    """Loaded modules, and the launches of their kernels."""

    def __init__(self, machine: Machine, library: Any) -> None:
        self._machine, self._flush = machine, flush_denormals(library)
        self._libraries: dict[str, Library] = {}
        self._modules: dict[int, tuple[Image, int]] = {}
        self._functions: dict[int, Function] = {}

    def load(self, image: bytes) -> int:
        """Load a module on the current device. Returns its handle."""
        handle = self._machine.new_handle()
        self._modules[handle] = (Image.decoded(image), self._machine.current)
        return handle

    def unload(self, module: int) -> None:
        """Forget a module."""
        self._modules.pop(module, None)

    def function(self, module: int, name: str) -> int:
        """Return the handle of a kernel. Raises CudaError if the module has none of that name."""
        image, device = self._modules[module]
        library = self._library(image)
        if name not in library.kernels:
            raise CudaError(500)  # CUDA_ERROR_NOT_FOUND
        handle = self._machine.new_handle()
        self._functions[handle] = Function(name, image, device, library.parameters[name])
        return handle

    def launch(self, handle: int, sizes: Any, stream_handle: int, parameters: Any) -> None:
        """Give a launch to a stream. The arguments are read now, as CUDA does."""
        machine, function = self._machine, self._functions[handle]
        grid, block, shared = tuple(sizes[0:3]), tuple(sizes[3:6]), sizes[6]
        stream = machine.stream(stream_handle)
        if stream.device != function.device:
            machine.finding(f"{function.name} of device {function.device} is launched on a stream of {stream.device}")
            raise CudaError(m.INVALID_HANDLE)
        fits = all(0 < n <= most for n, most in zip(grid + block, MAX_GRID + MAX_BLOCK, strict=True))
        if not fits or block[0] * block[1] * block[2] > MAX_THREADS:
            machine.finding(f"{function.name} cannot have the grid {grid} and the block {block}")
            raise CudaError(m.INVALID_VALUE)
        values = [ctypes.string_at(parameters[i], 8 if parameter.is_pointer else parameter.size)
                  for i, parameter in enumerate(function.parameters)]  # fmt: skip

        def run() -> None:
            if self._arguments_are_there(function, values):
                self._run(function, grid, block, values, shared)
                machine.launches.append(function.name)

        machine.submit(stream, function.name, run)

    def _arguments_are_there(self, function: Function, values: Sequence[bytes]) -> bool:
        for i, (value, parameter) in enumerate(zip(values, function.parameters, strict=True)):
            address = int.from_bytes(value, "little") if parameter.is_pointer else 0
            if not address:
                continue
            found = self._machine.memory.at(address) or self._machine.pinned.at(address)
            where = f"argument {i} of {function.name}"
            if found is None:
                self._machine.finding(f"{where} is no memory of a device, or none any more")
                return False
            if found.device not in (None, function.device):
                where += f" is memory of device {found.device}"
                self._machine.finding(f"{where}, the kernel runs on {function.device}")
                return False
        return True

    def _run(self, function: Function, grid: Any, block: Any, values: Sequence[bytes], shared: int) -> None:
        self._flush(function.image.flushes_denormals)
        try:
            found = self._library(function.image).launch(function.name, grid, block, values, shared, [])
        finally:
            self._flush(False)
        for finding in found:
            self._machine.finding(str(finding))

    def _library(self, image: Image) -> Library:
        if image.library not in self._libraries:
            self._libraries[image.library] = Library(Path(image.library))
        return self._libraries[image.library]


def program_class(exception: type[Exception], settings: Callable[[], tuple[int, int]]) -> type:
    """Return the class that takes the place of CuPy's _NVRTCProgram: the emulator compiles instead of NVRTC.

    Args:
        exception: CuPy's CompileException.
        settings: gives the compute capability of the devices.
    """

    class Program:
        def __init__(
            self, src: Any, name: Any = "", headers: Any = (), include_names: Any = (),
            name_expressions: Sequence[str] | None = None, method: str = "ptx",
        ) -> None:  # fmt: skip
            self.src = src.decode() if isinstance(src, bytes) else src
            self.name, self.name_expressions = name, tuple(name_expressions or ())

        def compile(self, options: Sequence[str] = (), log_stream: Any = None) -> tuple[bytes, dict[str, str] | None]:
            try:
                with _COMPILING:
                    image = compiled(self.src, options, self.name_expressions, settings())
            except compiling.CompileError as error:
                raise exception(str(error), self.src, self.name, options, "nvrtc") from None
            names = {name: name for name in self.name_expressions}
            return image.encoded(), names or None

    return Program


_COMPILING = threading.Lock()
