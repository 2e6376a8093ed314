"""What an emulated launch found wrong, with the place in the source."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OURS = "/cuda_emulator/include/"


@dataclass(frozen=True)
class Finding:
    """One defect of a kernel, or of how it was launched.

    Attributes:
        kind: "out of bounds", "misaligned", "race", "uninitialised", "divergent barrier", "divergent warp",
            "deadlock", "launch", "shift", "division" or "trap".
        message: what happened, in words.
        kernel: the kernel's name.
        file, line: the place in the source, by its #line directives; line is 0 where it is not known.
        block, thread: blockIdx and threadIdx.
        other: the place of the other access of a race, or None.
    """

    kind: str
    message: str
    kernel: str
    file: str
    line: int
    block: tuple[int, ...]
    thread: tuple[int, ...]
    other: tuple[str, int] | None = None

    def __str__(self) -> str:
        other = f" (the other access: {self.other[0]}:{self.other[1]})" if self.other else ""
        place = f"{self.file}:{self.line}" if self.line else "an unknown line"
        return f"{self.kernel}, {place}, block {self.block}, thread {self.thread}: {self.kind}: {self.message}{other}"


class EmulationError(RuntimeError):
    """A launch with findings, or one that a GPU would refuse or do wrongly in silence."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        self.findings = list(findings)
        text = "\n".join(f"  {finding}" for finding in self.findings)
        super().__init__(f"{message}\n{text}" if text else message)


class Lines:
    """Finds the line of source of an address in a loaded library."""

    def __init__(self, path: Path, base: int) -> None:
        self._path, self._base = path, base
        self._known: dict[int, tuple[str, int]] = {}

    def of(self, address: int | None) -> tuple[str, int]:
        """File and line of the call that returns to an address; of inlined code, the innermost outside our headers."""
        if not address:
            return "", 0
        if address not in self._known:
            command = ["addr2line", "-i", "-e", str(self._path), hex(address - self._base - 1)]
            frames = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
            frame = next((f for f in frames if f and _OURS not in f), frames[0])
            file, _, line = frame.partition(" (")[0].rpartition(":")
            self._known[address] = (Path(file).name, int(line) if line.isdigit() else 0)
        return self._known[address]
