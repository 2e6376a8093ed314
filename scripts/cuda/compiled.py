"""What the compiler says about the kernels of a decoding step of Llama-2 7B, for one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cuda_kernels
import sass
from cards import Card
from instructions import StagingLoop, inner_loop, staging_loop
from nvrtc import Nvrtc

REGISTERS, ROUND = 65536, 8  # of a multiprocessor, and what a thread's are rounded up to
RESERVED = 1024  # bytes of shared memory that each block takes besides
SHARED = {75: 64 << 10, 80: 164 << 10, 86: 100 << 10, 89: 100 << 10, 90: 228 << 10, 120: 100 << 10}
KERNELS = {
    "matvec": (
        "matvec<4, 64, 1>",
        "matvec_residual<4, 64, 1>",
        "matvec_residual<4, 64, 1, 64, 16>",
        "matvec_swiglu<4, 64, 1>",
        "matvec<4, 64, 1, true>",
        "matvec_swiglu<4, 64, 1, 4, 64, true>",
        "matvec<4, 64, 8>",
        "matvec_residual<4, 64, 8>",
        "matvec_swiglu<4, 64, 8>",
    ),
    "matvec_qkv": (
        "matvec_qkv<4, 64, 1, 128, __half>",
        "matvec_qkv<4, 64, 1, 128, __half, true>",
        "matvec_qkv<4, 64, 8, 128, __half>",
    ),
    "attention": ("attend<128, 1, 64, __half>",),
    "matmul": ("matmul<4, 64>",),
    "matmul_mma": ("matmul_mma<4, 64>",),
}  # file -> kernels
# At the end of the name of a kernel that norms its vector, has eight, or whose blocks have half of a tile.
NORMED, SEVERAL, HALVES = " with a norm", " of 8", " of half tiles"


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        registers: of a thread.
        shared: bytes of static shared memory.
        per_weight: lane-instructions for a weight, of a product with few vectors.
        ahead: groups of a row that a warp has on their way, of a product with few vectors.
        staging: of a product with many vectors.
    """

    registers: int
    shared: int
    per_weight: float | None = None
    ahead: int | None = None
    staging: StagingLoop | None = None


@dataclass(frozen=True)
class Counted:
    """The kernels of an architecture by their names."""

    sm: int
    kernels: dict[str, Kernel]

    def residents(self, name: str, threads: int, card: Card) -> int:
        """Return how many blocks of so many threads a multiprocessor can have at a time."""
        kernel = self.kernels[name]
        of_thread = -(-kernel.registers // ROUND) * ROUND
        return min(REGISTERS // (of_thread * threads), card.threads // threads,
                   SHARED[self.sm] // (kernel.shared + RESERVED))  # fmt: skip

    def per_weight(self, name: str) -> float:
        """Return the lane-instructions of a product for one weight."""
        return self.kernels[name].per_weight or 0.0


@cache
def count(sm: int) -> Counted:
    """Compile the kernels for an architecture. Raises nvrtc.CompileError if NVRTC or nvdisasm is missing."""
    found = {}
    for file, expressions in KERNELS.items():
        if file == ("matmul" if sm >= cuda_kernels.FIRST_MMA else "matmul_mma"):
            continue  # prompts take the other one
        done = Nvrtc().compile(cuda_kernels.source.source(file), cuda_kernels.source.OPTIONS, expressions, sm)
        nvdisasm = sass.disassembler()
        code = sass.disassemble(nvdisasm, done.cubin) if nvdisasm else {}
        for expression in expressions:
            mangled = done.names[expression]
            usage = done.usage[mangled]
            loop = inner_loop(expression, *code[mangled]) if mangled in code else None
            staging = staging_loop(expression, *code[mangled]) if mangled in code else None
            found[_name(expression)] = Kernel(usage.registers, usage.shared, loop.per_weight if loop else None,
                                              loop.ahead if loop else None, staging)  # fmt: skip
    return Counted(sm, found)


def _name(expression: str) -> str:
    name, _, arguments = expression.rstrip(">").partition("<")
    if name == "matmul_mma":
        return "matmul"
    values = arguments.split(", ")
    if name.startswith("matvec") and values[2] != "1":
        return name + SEVERAL
    return name + {"true": NORMED, "16": HALVES}.get(values[-1], "")
