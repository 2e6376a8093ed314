"""Counts what a token of Llama-2 7B costs on a GPU: bytes, launches, instructions. Computes from it how long it takes.

    python scripts/cuda/cuda_costs.py            print the tables of docs/gpu.md
    python scripts/cuda/cuda_costs.py --write    write them there

What the compiler says is counted with NVRTC for sm_75, 80, 86, 89, 90 and 120. No GPU is needed, and no time is
measured: the tables are computed by step_model.py, whose assumptions are in cards.py and designs.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cost_tables
import cuda_kernels
from cards import CARDS
from compiled import count
from llama_7b import N_LAYERS, token_bytes
from nvrtc import CompileError

PAGE = cuda_kernels.ROOT / "docs" / "gpu.md"

# Each is one node of the graph, in this order.
BEFORE = ("embed",)
OF_A_LAYER = ("matvec_qkv", "attention", "matvec_residual (wo)", "matvec_swiglu", "matvec_residual (w2)")
AFTER = ("matvec (output)", "sample")

MOST_GIGABYTES, MOST_NODES, MOST_PER_WEIGHT, LEAST_SECTORS = 3.51, 195, 1.5, 0.95
MOST_PER_NORMED_WEIGHT = {32: 4.0, 64: 3.0, 128: 2.5}  # of a product that norms its vector, by the group size


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


def sectors_used() -> float:
    """Return which share of the fetched 32-byte sectors a product uses. A request fetches whole sectors."""
    layout = cuda_kernels.layout
    requests = [layout.TILE_ROWS * layout.PIECE, layout.TILE_ROWS * 2]  # a warp's codes, and its scales
    return sum(requests) / sum(-(-request // 32) * 32 for request in requests)


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
        for kernel, rest in (("matvec", ""), ("matvec_swiglu", ", 4, {group}")):
            for group, most in MOST_PER_NORMED_WEIGHT.items():
                name = f"{kernel}<4, {group}, 1{rest.format(group=group)}, true>"
                if name in kernels:
                    what = f"the same with the norm of the vector, {kernel}, groups of {group}, {architecture}"
                    figures.append(Count(what, kernels[name], "", most))
    return figures


def written(page: str, made: dict[str, str]) -> str:
    """Return the text of a page with new tables between `<!-- made: NAME -->` and `<!-- end -->`."""
    for name, text in made.items():
        page, n = re.subn(rf"(<!-- made: {name} -->\n).*?(<!-- end -->)", rf"\1\n{text}\n\n\2", page, flags=re.DOTALL)
        if n != 1:
            raise ValueError(f"the page has {n} places for the table {name}, not one")
    return page


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/gpu.md")
    arguments = parser.parse_args()
    try:
        made = cost_tables.everything({sm: count(sm) for sm in sorted({card.sm for card in CARDS})})
    except CompileError as error:
        print(f"cuda_costs: {error}", file=sys.stderr)
        return 1
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(made.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
