"""Counts what a token of Llama-2 7B costs on a GPU: bytes, launches, instructions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import cuda_kernels
import numpy as np
from sass import Instruction, Loop, loops

# Llama-2 7B
DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, HEAD_DIM, VOCAB_SIZE = 4096, 11008, 32, 32, 128, 32000
GROUP = 64
WARPS = 16  # in a block, as kWarps in product.cu
# Each is one node of the graph, in this order.
BEFORE = ("embed",)
OF_A_LAYER = ("matvec_qkv", "attention", "matvec_residual (wo)", "matvec_swiglu", "matvec_residual (w2)")
AFTER = ("matvec (output)", "sample")

MOST_GIGABYTES, MOST_NODES, MOST_PER_WEIGHT, LEAST_SECTORS = 3.51, 195, 1.5, 0.95


@dataclass(frozen=True)
class Count:
    """A counted figure.

    Attributes:
        what: what is counted.
        value: the count.
        unit: its unit.
        most: the upper bound, if it has one.
        least: the lower bound, if it has one.
    """

    what: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the printed value is within its bounds."""
        value = float(self._number())
        return not (self.most is not None and value > self.most) and not (self.least is not None and value < self.least)

    def _number(self) -> str:
        return f"{self.value:.0f}" if self.value == int(self.value) else f"{self.value:.2f}"

    def __str__(self) -> str:
        bound = f" (at most {self.most:g})" if self.most is not None else ""
        bound = f" (at least {self.least:g})" if self.least is not None else bound
        return f"{self._number():>8} {self.unit:<8} {self.what}{bound}"


def matrix_bytes(type: str, parts: tuple[int, ...], columns: int, group: int = GROUP) -> int:
    """Return the bytes of a matrix on the device."""
    shapes = cuda_kernels.layout.matrix_arrays(type, parts, columns, group)
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())


def token_bytes(output_type: str, group: int = GROUP) -> int:
    """Return the bytes that a token at position 0 reads: weights, one row of the embedding, keys and values."""
    wqkv, wo, w13, w2 = ((DIM,) * 3, DIM), ((DIM,), DIM), ((HIDDEN_DIM,) * 2, DIM), ((DIM,), HIDDEN_DIM)
    layer = sum(matrix_bytes("q4", parts, columns, group) for parts, columns in (wqkv, wo, w13, w2))
    norms = (2 * N_LAYERS + 1) * DIM * 4
    embedding = DIM // 2 + DIM // group * 2
    keys_and_values = N_LAYERS * 2 * DIM * 2
    return N_LAYERS * layer + matrix_bytes(output_type, (VOCAB_SIZE,), DIM, group) + norms + embedding + keys_and_values


def sectors_used() -> float:
    """Return which share of the fetched 32-byte sectors a product uses. A request fetches whole sectors."""
    layout = cuda_kernels.layout
    requests = [layout.TILE_ROWS * layout.PIECE, layout.TILE_ROWS * 2]  # a warp's codes, and its scales
    return sum(requests) / sum(-(-request // 32) * 32 for request in requests)


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


def counts(per_weight: dict[str, dict[str, float]]) -> list[Count]:
    """Return all figures. per_weight is architecture -> kernel -> lane-instructions per weight."""
    gigabyte = 1e9
    figures = [
        Count(
            "read for a token at position 0, group 64, output q4", token_bytes("q4") / gigabyte, "GB", MOST_GIGABYTES
        ),
        Count("the same with the output matrix in q8, the default", token_bytes("q8") / gigabyte, "GB"),
        Count("the same with the output matrix in q8 and groups of 128", token_bytes("q8", 128) / gigabyte, "GB"),
        Count("of the sectors that products fetch are used", sectors_used(), "", least=LEAST_SECTORS),
        Count("nodes of the graph of a token", len(BEFORE) + N_LAYERS * len(OF_A_LAYER) + len(AFTER), "", MOST_NODES),
    ]
    for architecture, kernels in per_weight.items():
        for kernel in ("matvec", "matvec_residual", "matvec_swiglu"):
            found = {group: kernels[name] for group in (32, 64, 128) if (name := f"{kernel}<4, {group}, 1>") in kernels}
            for group, value in found.items():
                what = f"lane-instructions per weight, {kernel}, q4 in groups of {group}, 1 column, {architecture}"
                figures.append(Count(what, value, "", MOST_PER_WEIGHT))
    return figures
