"""Compiles CUDA source to machine code with NVRTC, without CuPy, a driver or a GPU.

NVRTC and the headers come from the wheels nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvdisasm"
# What CuPy adds to the options of a RawModule: denormal floats are zeros, and functions are __device__ by default.
OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
MAX_SHARED = 48 << 10  # bytes of static shared memory that a block can have


class CompileError(RuntimeError):
    """The compiler found an error. The message is what it says."""


@dataclass(frozen=True)
class Usage:
    """What the assembler says about one kernel.

    Attributes:
        registers: registers of a thread.
        shared: bytes of static shared memory.
        spilled: bytes of spilled registers, stores and loads.
        local: bytes of the stack frame, which also holds spilled registers.
    """

    registers: int
    shared: int
    spilled: int
    local: int


@dataclass(frozen=True)
class Compiled:
    """The result of a compilation.

    Attributes:
        cubin: the machine code.
        names: name expression -> mangled name.
        usage: mangled name -> what the kernel uses.
        log: what the compiler printed.
    """

    cubin: bytes
    names: dict[str, str]
    usage: dict[str, Usage]
    log: str


def wheel_folder(name: str) -> Path | None:
    """Find the folder of an NVIDIA wheel, such as "cuda_nvrtc" or "cu13". None if it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).is_dir():
            return Path(folder) / name
    return None


class Nvrtc:
    """NVRTC of the installed wheels. Raises CompileError if they are not installed."""

    def __init__(self) -> None:
        library, headers = wheel_folder("cuda_nvrtc"), wheel_folder("cuda_runtime")
        if library is None or headers is None:
            raise CompileError(f"NVRTC's wheels are not installed ({INSTALL})")
        self._include = str(headers / "include")
        self._nvrtc = ctypes.CDLL(str(next((library / "lib").glob("libnvrtc.so.*"))))
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        """The version, such as "12.9"."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def compile(self, source: str, options: Sequence[str], expressions: Sequence[str], architecture: int) -> Compiled:
        """Compile for sm_<architecture>, with the options that CuPy adds to those of a RawModule."""
        program = ctypes.c_void_p()
        self._check(
            self._nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        )
        try:
            for expression in expressions:
                self._check(self._nvrtc.nvrtcAddNameExpression(program, expression.encode()))
            flags = [*options, *OF_CUPY, f"-I{self._include}", f"-arch=sm_{architecture}", "--ptxas-options=-v"]
            array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            failed = self._nvrtc.nvrtcCompileProgram(program, len(flags), array)
            log = self._text(program, "ProgramLog").decode()
            if failed:
                too_large = [f"{name} has {usage.shared} bytes of static shared memory, {MAX_SHARED} are allowed"
                             for name, usage in _usage(log).items() if usage.shared > MAX_SHARED]  # fmt: skip
                raise CompileError("; ".join(too_large) or log)  # the log does not say that it is an error
            names = {expression: self._lowered(program, expression) for expression in expressions}
            return Compiled(self._text(program, "CUBIN"), names, _usage(log), log)
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _lowered(self, program: ctypes.c_void_p, expression: str) -> str:
        name = ctypes.c_char_p()
        self._check(self._nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
        assert name.value is not None
        return name.value.decode()

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}")(program, text))
        return text.raw if what == "CUBIN" else text.value

    def _check(self, status: int) -> None:
        if status:
            raise CompileError(self._nvrtc.nvrtcGetErrorString(status).decode())


def _usage(log: str) -> dict[str, Usage]:
    """Parse the assembler's -v lines: mangled name -> Usage."""
    found = {}
    name, local, spilled = "", 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name, local, spilled = match[1], 0, 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            local, spilled = int(match[1]), int(match[2]) + int(match[3])
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = Usage(int(match[1]), int(shared[1]) if shared else 0, spilled, local)
    return found
