"""Counts the instructions of a product in machine code: for each weight, or for each group that a block stages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sass import Instruction, Loop, loops

WARPS = 16  # in a block, as kWarps in product.cu
_PRODUCTS = ("IDP", "IMMA")
_BYTES = {"128": 16, "64": 8}  # of a load or store, by its mnemonic's end; others are words, or less
TILE_ROWS = 32  # a row for each lane; the warp that adds up half of a tile has lanes without a row


@dataclass(frozen=True)
class InnerLoop:
    """The loop of a product with 1 to 8 vectors.

    Attributes:
        per_weight: lane-instructions for a weight.
        ahead: groups of a row that a warp multiplies in a pass, and that are on their way meanwhile.
    """

    per_weight: float
    ahead: int


@dataclass(frozen=True)
class StagingLoop:
    """What each warp of a prompt's product does for one group.

    Attributes:
        instructions: all that it issues.
        shared_cycles: in which its loads and stores keep shared memory busy, without conflicts of banks.
        uses_mma: the products are those of tensor cores.
    """

    instructions: float
    shared_cycles: float
    uses_mma: bool


def inner_loop(expression: str, instructions: list[Instruction], labels: dict[str, int]) -> InnerLoop | None:
    """Count the lane-instructions per weight in the loop of a product with 1 to 8 vectors.

    In a pass of the loop each warp multiplies some groups, then one warp for each vector adds up the results of all
    warps. The instructions of both are counted, and so are those that are predicated off, and the code for what the
    inner loops leave over.

    Returns:
        The counts. None for other kernels.
    """
    match = re.match(r"(matvec\w*)<(\d), (\d+), (\d)\b(?:, \d+, (16)>)?", expression)
    if not match:
        return None
    tiles = 2 if match[1] == "matvec_swiglu" else 1
    bits, group, columns, rows = int(match[2]), int(match[3]), int(match[4]), int(match[5] or TILE_ROWS)
    outer = [
        loop
        for loop in loops(instructions, labels)
        if _has(loop, "BAR") and any(_has(loop, kind) for kind in _PRODUCTS)
    ]
    if len(outer) != 1:
        raise ValueError(f"{expression} has {len(outer)} loops with products, not one")
    own = outer[0].own()
    if _has(outer[0], "IMMA"):
        return _tensor_core_loop(outer[0], instructions, labels, tiles * group, tiles, columns)
    ahead = sum(i.mnemonic == "STS.U16" for i in own) // tiles  # a scale of each group is put into shared memory
    of_columns = [loop for loop in outer[0].inner if _has(loop, "IDP")]
    dot_products = sum(i.kind == "IDP" for i in (of_columns[0].body if of_columns else own))
    at_once, rest = divmod(dot_products, max(1, ahead) * tiles * group // (4 if bits == 4 else 2))
    if ahead < 1 or at_once < 1 or rest:
        raise ValueError(f"{expression}: the loop has {dot_products} dot products for {ahead} groups")
    passes = -(-columns // at_once) if of_columns else 1
    adding = [loop for loop in _innermost(outer[0]) if _has(loop, "FFMA")]
    per_group = max((len(loop.body) * tiles / sum(i.kind == "FFMA" for i in loop.body) for loop in adding), default=0.0)
    each_warp, adding_warp = _shares(own, instructions, labels)
    of_a_pass = each_warp + passes * sum(len(loop.body) for loop in of_columns) + adding_warp * columns / WARPS
    per_group *= columns * TILE_ROWS / rows
    return InnerLoop(of_a_pass / (ahead * group * tiles) + per_group / (group * tiles), ahead)


def _tensor_core_loop(loop: Loop, instructions: list[Instruction], labels: dict[str, int], weights: int, tiles: int,
                      columns: int) -> InnerLoop:  # fmt: skip
    """Count a loop of product_mma.cu, in which a warp multiplies one group between two barriers; weights: of a lane."""
    groups = sum(i.mnemonic.startswith("LDG.E.U16") for i in loop.body) // tiles  # a scale of each is loaded
    adding = 0  # instructions that are skipped by warps which have no vector to add up
    for i in loop.body:
        target = labels.get(i.target or "", 0)
        skipped = [each for each in loop.body if i.place < each.place < instructions[target].place] if target else []
        if any(each.kind == "FMUL" for each in skipped) and not any(each.kind == "IMMA" for each in skipped):
            adding += len(skipped)
    of_a_pass = len(loop.body) - adding * (1 - columns / WARPS)
    return InnerLoop(of_a_pass / (groups * weights), groups)


def staging_loop(expression: str, instructions: list[Instruction], labels: dict[str, int]) -> StagingLoop | None:
    """Count what a warp does for one group in a product with many vectors.

    Loops that only load and store are left out: they are unrolled for more pieces than a group of 64 has.

    Returns:
        The counts. None for other kernels.
    """
    match = re.match(r"matmul\w*<(\d), (\d+)", expression)
    if not match:
        return None
    pieces = int(match[2]) * int(match[1]) // 128
    (outer,) = [loop for loop in loops(instructions, labels) if any(_has(loop, kind) for kind in _PRODUCTS)]
    parts = [(outer.own(), 1), *((loop.body, pieces) for loop in outer.inner if _has(loop, "IDP"))]
    return StagingLoop(
        sum(len(part) * times for part, times in parts),
        sum(times * sum(map(_shared_cycles, part)) for part, times in parts),
        _has(outer, "IMMA"),
    )


def _shared_cycles(instruction: Instruction) -> float:
    if instruction.kind not in ("LDS", "STS"):
        return 0
    return max(_BYTES.get(part, 4) for part in instruction.mnemonic.split(".")) / 4


def _has(loop: Loop, kind: str) -> bool:
    return any(instruction.kind == kind for instruction in loop.body)


def _shares(own: list[Instruction], instructions: list[Instruction], labels: dict[str, int]) -> tuple[int, int]:
    """Count the instructions that all warps execute, and those of the warps that add up, after the barrier."""
    barrier = next(i for i, instruction in enumerate(own) if instruction.kind == "BAR")
    jump = next(i for i in own[barrier:] if i.target is not None and labels[i.target] < len(instructions))
    target = instructions[labels[jump.target or ""]].place
    skipped = sum(jump.place < instruction.place < target for instruction in own)
    return len(own) - skipped, skipped


def _innermost(loop: Loop) -> list[Loop]:
    return [inner for child in loop.inner for inner in (_innermost(child) if child.inner else [child])]
