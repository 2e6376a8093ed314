"""Counts the instructions of a product for each weight, in machine code."""

from __future__ import annotations

import re

from sass import Instruction, Loop, loops

WARPS = 16  # in a block, as kWarps in product.cu


def instructions_per_weight(expression: str, instructions: list[Instruction], labels: dict[str, int]) -> float | None:
    """Count the lane-instructions per weight in the loop of a product with one vector.

    In a pass of the loop each warp multiplies some groups, then one warp adds up the results of all warps. The
    instructions of both are counted, and so are those that are predicated off, and the code for what the inner loops
    leave over.

    Returns:
        The count. None for other kernels.
    """
    match = re.match(r"(matvec\w*)<(\d), (\d+), 1\b", expression)
    if not match:
        return None
    tiles = 2 if match[1] == "matvec_swiglu" else 1
    bits, group = int(match[2]), int(match[3])
    outer = [loop for loop in loops(instructions, labels) if any(i.kind == "IDP" for i in loop.body)]
    if len(outer) != 1:
        raise ValueError(f"{expression} has {len(outer)} loops with products, not one")
    dot_products = sum(i.kind == "IDP" for i in outer[0].own())  # of four inputs each, with q8's in two halves
    ahead = dot_products // (tiles * group // (4 if bits == 4 else 2))  # groups in one pass of the loop
    if ahead < 1:
        raise ValueError(f"{expression}: the loop has {dot_products} dot products, fewer than a group takes")
    adding = [loop for loop in _innermost(outer[0]) if any(i.kind == "FFMA" for i in loop.body)]
    per_group = max((len(loop.body) * tiles / sum(i.kind == "FFMA" for i in loop.body) for loop in adding), default=0.0)
    each_warp, one_warp = _shares(outer[0].own(), instructions, labels)
    of_a_pass = each_warp + one_warp / WARPS
    return of_a_pass / (ahead * group * tiles) + per_group / (group * tiles)


def _shares(own: list[Instruction], instructions: list[Instruction], labels: dict[str, int]) -> tuple[int, int]:
    """Count the instructions that all warps execute, and those of the one warp that adds up, after the barrier."""
    barrier = next(i for i, instruction in enumerate(own) if instruction.kind == "BAR")
    jump = next(i for i in own[barrier:] if i.target is not None and labels[i.target] < len(instructions))
    target = instructions[labels[jump.target or ""]].place
    skipped = sum(jump.place < instruction.place < target for instruction in own)
    return len(own) - skipped, skipped


def _innermost(loop: Loop) -> list[Loop]:
    return [inner for child in loop.inner for inner in (_innermost(child) if child.inner else [child])]
