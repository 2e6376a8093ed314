"""Leads the functions of the CUDA runtime to the pretended driver.

CuPy's wheel has the runtime inside: its functions are in the extension module cupy_backends.cuda.api.runtime, and the
symbol table says where. The first bytes of a function become a jump.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_JUMP = b"\x48\xb8%b\xff\xe0"  # mov rax, address; jmp rax


def unsupported_machine() -> str | None:
    """Return None, or why functions cannot be led elsewhere on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the pretended driver is for Linux on x86-64, not for {sys.platform} on {platform.machine()}"
    return None


def addresses(extension: Path, names: Iterable[str]) -> dict[str, int]:
    """Return where the functions of a loaded extension module are.

    Raises:
        LookupError: the module has no such function.
    """
    lines = subprocess.run(["nm", str(extension)], capture_output=True, text=True, check=True).stdout.splitlines()
    fields = [line.split() for line in lines]
    offsets = {f[2]: int(f[0], 16) for f in fields if len(f) == 3 and f[1] in "tT"}
    missing = [name for name in names if name not in offsets]
    if missing:
        raise LookupError(f"{extension.name} has no function {', '.join(missing)}")
    base = _base_address(extension)
    return {name: base + offsets[name] for name in names}


def lead(address: int, target: int) -> None:
    """Make the function at address jump to target."""
    page = address & -mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), 7):  # read, write, execute
        raise OSError(ctypes.get_errno(), "the code of a library cannot be changed here")
    code = _JUMP % target.to_bytes(8, "little")
    ctypes.memmove(address, code, len(code))


def _base_address(library: Path) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[-1] == str(library) and int(fields[2], 16) == 0:
            return int(fields[0].split("-")[0], 16)
    raise LookupError(f"{library} is not loaded")
