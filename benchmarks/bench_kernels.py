"""Measures the products of one weight matrix, by weight type, instruction set and number of columns.

    python benchmarks/bench_kernels.py --rows 11008 --columns 4096 --kinds q4 q8 --counts 1 8 512

Columns are activations (tokens). Operations per second count 2 operations for each weight and column; GB/s count the
bytes of weights. Both are those of the fastest of --repeat calls, and include quantizing the activations. With up to
64 columns, --copies of the matrix are used in turn, so that it does not stay in the CPU's cache. The cost is compared
with the larger of two limits: reading the weights at the bandwidth measured beside it, and so many columns at the
speed of 512 columns, each of which the instruction set does in the least time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from pyllama2._cpu import default_threads, quantize_matrix
from pyllama2._cpu.few_columns import few_columns
from pyllama2._cpu.matrix import MatrixProduct
from pyllama2.analysis.bandwidth import ReadBandwidth
from pyllama2.storage.weights import Weight

MANY = 512  # columns that show what an instruction set can do
FEW = 64  # up to so many, the weights may have to come from memory


def make_weight(kind: str, rows: int, columns: int, group_size: int, seed: int) -> Weight:
    """Return a random matrix, in which one block of numbers is repeated."""
    block = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * np.float32(columns**-0.5)
    matrix = np.resize(block, (rows, columns))
    if kind in ("q8", "q4"):
        codes, scales = quantize_matrix(matrix, kind, group_size)
        return Weight("w", kind, matrix.shape, codes, scales, group_size)
    return Weight("w", kind, matrix.shape, matrix.astype(kind))


def fastest(weights: list[Weight], count: int, isa: str, args: argparse.Namespace) -> float:
    """Return the seconds of a product with count columns. Raises ValueError if there is no such instruction set."""
    few = few_columns(weights[0].type, isa) if args.few_columns is None else args.few_columns
    products = [MatrixProduct(weight, count, args.threads, isa, few) for weight in weights]
    x = np.random.default_rng(1).standard_normal((count, args.columns), dtype=np.float32)
    best = float("inf")
    for _ in range(args.repeat + 1):
        started = time.perf_counter()
        for product in products:
            product(x)
        best = min(best, (time.perf_counter() - started) / len(products))
    return best


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--kinds", nargs="+", default=["float32", "float16", "q8", "q4"])
    parser.add_argument("--isas", nargs="+", default=["avx2", "avx_vnni", "avx512"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--copies", type=int, default=8, help="matrices that are multiplied in turn")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--few-columns", type=int, metavar="N", help="by blocks up to N, then by panels (measured)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    bandwidth = ReadBandwidth(args.threads)
    rows = []
    for kind in args.kinds:
        weights = [make_weight(kind, args.rows, args.columns, args.group_size, i) for i in range(args.copies)]
        for isa in args.isas:
            try:
                per_column = fastest(weights[:1], MANY, isa, args) / MANY
            except ValueError as error:
                print(error)
                continue
            for count in args.counts:
                reading = weights[0].nbytes * 1e-9 / max(bandwidth.measure())
                best = fastest(weights if count <= FEW else weights[:1], count, isa, args)
                row = {"kind": kind, "isa": isa, "columns": count, "seconds": best}
                row["gop_per_s"] = 2e-9 * args.rows * args.columns * count / best
                row["gb_per_s"] = weights[0].nbytes / best * 1e-9
                row["cost"] = best / max(reading, count * per_column)
                rows.append(row)
                print(
                    f"{kind:8} {isa:9} {count:4} columns: {best * 1e3:8.2f} ms {row['gop_per_s']:7.1f} GOP/s"
                    f" {row['gb_per_s']:6.1f} GB/s {row['cost']:6.2f} x limit",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
