"""Loads a compiled module, finds its kernels and its shared arrays, and launches."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import compiling
from .findings import Finding, Lines

GLOBAL, SHARED, CONSTANT, OWN = range(4)
MAX_DYNAMIC_SHARED, MAX_STATIC_SHARED = 227 << 10, 48 << 10


class _Parameter(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_char), ("pointer", ctypes.c_byte), ("size", ctypes.c_short)]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("n_parameters", ctypes.c_int),
    ]


class _Memory(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
        ("space", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("written", ctypes.c_void_p),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.POINTER(_Kernel)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_void_p),
        ("dynamic_shared_bytes", ctypes.c_size_t),
        ("memory", ctypes.POINTER(_Memory) * 2),  # the module's own, and the arguments'
        ("n_memory", ctypes.c_int * 2),
        ("check", ctypes.c_int),
        ("count", ctypes.c_int),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
    ]


class _Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("site", ctypes.c_void_p),
        ("other", ctypes.c_void_p),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
    ]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: kind i, u, f or v (unknown), size in bytes; of a pointer, of what it points to."""

    kind: str
    size: int
    is_pointer: bool
    is_const: bool


@dataclass(frozen=True)
class Memory:
    """Memory that a launch may touch; written has a byte per byte, or is None when all of it was written."""

    start: int
    n_bytes: int
    space: int
    name: str
    written: np.ndarray | None = None


@functools.cache
def _runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiling.runtime()), mode=ctypes.RTLD_GLOBAL)
    library.emulator_finding.restype = _Finding
    return library


class Library:
    """A compiled module."""

    def __init__(self, path: Path) -> None:
        """Loads it; raises CompileError for an array that no block's shared memory can hold."""
        self.runtime = _runtime()
        self._handle = ctypes.CDLL(str(path))
        self.kernels: dict[str, _Kernel] = {}
        self.parameters: dict[str, list[Parameter]] = {}
        first = ctypes.addressof(ctypes.c_char.in_dll(self._handle, "emulator_kernels"))
        while (kernel := _Kernel.from_address(first + len(self.kernels) * ctypes.sizeof(_Kernel))).name:
            name = kernel.name.decode()
            self.kernels[name] = kernel
            found = [kernel.parameters[i] for i in range(kernel.n_parameters)]
            self.parameters[name] = [Parameter(p.kind.decode(), p.size, p.pointer > 0, p.pointer == 2) for p in found]
        self.dynamic_shared = ctypes.addressof(ctypes.c_char.in_dll(self._handle, "emulator_dynamic_storage"))
        self._symbols = _symbols(path)
        self._base = first - self._symbols["emulator_kernels"][0]
        self.lines = Lines(path, self._base)
        for memory in self.own_memory:
            if memory.space == SHARED and memory.n_bytes > MAX_STATIC_SHARED:
                raise compiling.CompileError(f"{memory.name} has {memory.n_bytes} bytes where 48 KiB is the limit")

    @functools.cached_property
    def _own_table(self) -> ctypes.Array[_Memory]:
        return _table(self.own_memory)

    @functools.cached_property
    def own_memory(self) -> list[Memory]:
        """The static shared arrays, the module's variables and its constants."""
        found = []
        for name, (address, size, kind) in self._symbols.items():
            ours = name.startswith(("emulator_", "_ZN8emulator", "completed."))
            if ours or not size or kind not in "bBdDrRuV":
                continue
            local = re.match(r"_ZZ(?:N\w*?)?.*E(\d+)(\w+)$", name)
            readable = local.group(2)[: int(local.group(1))] if local else name
            if name.startswith("_ZGV"):  # guards of static arrays
                found.append(Memory(self._base + address, size, OWN, name))
            elif kind in "rR":
                found.append(Memory(self._base + address, size, CONSTANT, f"constant {readable}"))
            elif local:
                found.append(Memory(self._base + address, size, SHARED, f"shared array {readable}"))
            else:
                found.append(Memory(self._base + address, size, GLOBAL, f"variable {readable}"))
        return found

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        shared_bytes: int,
        memory: Sequence[Memory],
        *,
        check: bool = False,
        count: bool = False,
        order: str | int = "forward",
    ) -> list[Finding]:
        """Runs a kernel and returns what was found wrong; arguments are the bytes of each."""
        launch = _Launch(kernel=ctypes.pointer(self.kernels[name]), check=check, count=count)
        values = [ctypes.create_string_buffer(value, len(value)) for value in arguments]
        launch.arguments = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.addressof(value) for value in values])
        launch.grid[:], launch.block[:] = grid, block
        launch.dynamic_shared, launch.dynamic_shared_bytes = self.dynamic_shared, shared_bytes
        if check or count:
            dynamic = Memory(self.dynamic_shared, shared_bytes, SHARED, "dynamic shared memory")
            tables = [self._own_table, _table([*memory, *([dynamic] if shared_bytes else [])])]
            launch.memory[:] = [ctypes.cast(table, ctypes.POINTER(_Memory)) for table in tables]
            launch.n_memory[:] = [len(table) for table in tables]
        launch.order = {"forward": 0, "backward": 1}.get(order, 2)  # type: ignore[arg-type]
        launch.seed = order if isinstance(order, int) else 0
        n = self.runtime.emulator_launch(ctypes.byref(launch))
        return [self._finding(name, self.runtime.emulator_finding(i)) for i in range(n)]

    def _finding(self, kernel: str, found: _Finding) -> Finding:
        if found.file:
            file, line = Path(found.file.decode()).name, found.line
        else:
            file, line = self.lines.of(found.site)
        other = self.lines.of(found.other) if found.other else None
        return Finding(
            found.kind.decode(),
            found.message.decode(),
            kernel,
            file,
            line,
            tuple(found.block),
            tuple(found.thread),
            other,
        )


def _table(memory: Sequence[Memory]) -> ctypes.Array[_Memory]:
    rows = [(m.start, m.n_bytes, m.space, m.name.encode(), m.written) for m in memory]
    return (_Memory * len(rows))(*[(*row[:4], None if row[4] is None else row[4].ctypes.data) for row in rows])


@functools.cache  # a backend loads a dozen modules, and tests make many backends
def _symbols(path: Path) -> dict[str, tuple[int, int, str]]:
    """Address, size and kind of every object in a library."""
    lines = subprocess.run(["nm", "-S", "--defined-only", str(path)], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in lines.splitlines()]
    return {f[3]: (int(f[0], 16), int(f[1], 16), f[2]) for f in fields if len(f) == 4}
