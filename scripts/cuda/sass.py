"""Reads the machine code of kernels: kinds of instructions, and loops.

nvdisasm comes from the wheel nvidia-cuda-nvdisasm, or from a CUDA toolkit. That of CUDA 13 knows sm_75 and later.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nvrtc import wheel_folder

KINDS = {  # column of the table -> mnemonics up to the first dot
    "dp4a": {"IDP", "VABSDIFF4"},
    "mma": {"IMMA", "HMMA"},
    "fma": {"FFMA", "FMUL", "FADD", "FMNMX", "MUFU", "HADD2", "HFMA2", "HMUL2"},
    "logic": {"LOP3", "SHF", "PRMT", "SEL", "LEA"},
    "global": {"LDG", "STG", "LD", "ST", "ATOM", "ATOMG", "RED"},
    "shared": {"LDS", "STS", "ATOMS", "LDSM"},
    "local": {"LDL", "STL"},
    "convert": {"I2F", "F2I", "F2F", "I2FP", "F2FP"},
    "integer": {"IMAD", "IADD3", "ISETP", "IABS", "IMNMX", "VIADD", "VIMNMX"},
    "shuffle": {"SHFL", "VOTE"},
    "barrier": {"BAR", "MEMBAR", "ERRBAR", "WARPSYNC", "BSYNC", "BSSY"},
    "branch": {"BRA", "EXIT", "RET", "CALL"},
}
_IGNORED = {"NOP"}  # what fills the end of a function
_FUNCTION = re.compile(r"^\s*\.text\.(\S+):", re.MULTILINE)
_LINE = re.compile(r"^\s*(?:/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);|(\.L_x_\d+):)", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        kind: the mnemonic up to the first dot.
        mnemonic: the whole mnemonic.
        place: its address.
        target: the label that it jumps to, if any.
    """

    kind: str
    mnemonic: str
    place: int
    target: str | None


@dataclass(frozen=True)
class Loop:
    """The instructions from the head of a loop to its jump back, and the loops inside it."""

    body: list[Instruction]
    inner: list[Loop]

    def own(self) -> list[Instruction]:
        """Return the instructions that are in no inner loop."""
        inside = {instruction.place for loop in self.inner for instruction in loop.body}
        return [instruction for instruction in self.body if instruction.place not in inside]


def disassembler() -> str | None:
    """Find nvdisasm. None if it is not installed."""
    folder = wheel_folder("cu13")
    if folder and (folder / "bin" / "nvdisasm").is_file():
        return str(folder / "bin" / "nvdisasm")
    return shutil.which("nvdisasm")


def disassemble(nvdisasm: str, cubin: bytes) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """Disassemble machine code.

    Returns:
        Mangled name -> instructions, and the index of the instruction at each label. Empty for a GPU that nvdisasm does
        not know any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cubin")
        path.write_bytes(cubin)
        result = subprocess.run([nvdisasm, "-c", str(path)], capture_output=True, text=True)
    if result.returncode:
        if "deprecated" in result.stderr or "not supported" in result.stderr:
            return {}
        raise RuntimeError(f"nvdisasm: {result.stderr.strip()[:300]}")
    parts = _FUNCTION.split(result.stdout)
    return {name: _parse(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for place, mnemonic, operands, label in _LINE.findall(text):
        if label:
            labels[label] = len(instructions)
            continue
        kind = mnemonic.split(".")[0]
        target = re.search(r"\.L_x_\d+", operands) if kind == "BRA" else None
        instructions.append(Instruction(kind, mnemonic, int(place, 16), target[0] if target else None))
    return instructions, labels


def mix(instructions: list[Instruction]) -> dict[str, int]:
    """Count the instructions of each of KINDS, the "other" ones, and "all"."""
    known = {kind for kinds in KINDS.values() for kind in kinds}
    kinds = (i.kind for i in instructions if i.kind not in _IGNORED)
    # Mnemonics with U in front are of units that compute once for a whole warp.
    counts = Counter(kind[1:] if kind[0] == "U" and kind[1:] in known else kind for kind in kinds)
    result = {name: sum(counts.pop(kind, 0) for kind in members) for name, members in KINDS.items()}
    result["other"] = sum(counts.values())
    result["all"] = sum(result.values())
    return result


def loops(instructions: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    """Find the outermost loops. A backward jump ends a loop. Code behind the last EXIT is rare and left out."""
    spans: dict[int, int] = {}  # first -> last instruction, of all jumps to the same head
    end = max((i for i, instruction in enumerate(instructions) if instruction.kind == "EXIT"), default=0)
    for i, instruction in enumerate(instructions[:end]):
        head = labels.get(instruction.target or "", i + 1)
        if head < i:  # a jump to itself, as at the end of a function, is no loop
            spans[head] = max(spans.get(head, i), i)
    return _nested(sorted(spans.items()), instructions)


def _nested(spans: list[tuple[int, int]], instructions: list[Instruction]) -> list[Loop]:
    found = []
    while spans:
        first, last = spans[0]
        inside = [span for span in spans[1:] if span[1] <= last]
        found.append(Loop(instructions[first : last + 1], _nested(inside, instructions)))
        spans = [span for span in spans[1:] if span not in inside]
    return found
