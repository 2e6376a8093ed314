"""Prints the README's table of how close a model in fewer bits, or with a smaller cache, is to the same in float32.

    python benchmarks/how_close.py                                  # SmolLM2, a few minutes
    python benchmarks/how_close.py --model DIR --text prose.txt --types q4 --calibrate

The text is tests/data/prose.txt, which nothing was calibrated on. Its parts are scored one by one, from their first
tokens on. Figures are those of `pyllama2 perplexity --against`. --calibrate adds q4 as `pyllama2 quantize` writes it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyllama2
from pyllama2 import Llama
from pyllama2.analysis.evaluation import Perplexity, perplexity

PROSE = Path(__file__).resolve().parents[1] / "tests" / "data" / "prose.txt"
WEIGHTS = {"q8": "q8, groups of 64", "q4": "q4, groups of 64, converted in memory"}
CACHES = ("float16", "int8")
CALIBRATED = "q4, groups of 64, by `quantize`"


def documents(path: Path) -> list[str]:
    """Return the parts of a text, which two empty lines divide."""
    return path.read_text(encoding="utf-8").strip().split("\n\n\n")


def measure(model: str, texts: list[str], types: tuple[str, ...] = ("q8", "q4")) -> Iterator[tuple[str, Perplexity]]:
    """Yield a row's name and figures, for the types of weights, then for those of keys and values."""
    with Llama(model, quant="float32", kv_dtype="float32") as exact:
        for quant in types:
            with Llama(model, quant=quant, kv_dtype="float32") as llm:
                yield WEIGHTS[quant], perplexity(llm, texts, against=exact)
        for kv_dtype in CACHES:
            with Llama(model, quant="float32", kv_dtype=kv_dtype) as llm:
                yield f"float32, keys and values in {kv_dtype}", perplexity(llm, texts, against=exact)


def measure_calibrated(model: str, texts: list[str]) -> Perplexity:
    """Return the figures of the file that quantize() writes without being asked for anything."""
    with tempfile.TemporaryDirectory() as folder, Llama(model, quant="float32", kv_dtype="float32") as exact:
        pyllama2.quantize(model, f"{folder}/q4.bin", type="q4")
        with Llama(f"{folder}/q4.bin", kv_dtype="float32") as llm:
            return perplexity(llm, texts, against=exact)


def row(name: str, found: Perplexity) -> str:
    """Return a line of the table."""
    assert found.kl_divergence is not None and found.top_1_agreement is not None
    digits = f"{found.kl_divergence:#.2g}" if found.kl_divergence > 1e-4 else f"{found.kl_divergence:.8f}"
    return f"| {name} | {digits} | {found.top_1_agreement:.1%} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model with float weights (default: smollm2)")
    parser.add_argument("--text", type=Path, default=PROSE, help="the text (default: tests/data/prose.txt)")
    parser.add_argument("--types", nargs="*", choices=list(WEIGHTS), default=list(WEIGHTS), help="types of weights")
    parser.add_argument("--calibrate", action="store_true", help="also a calibrated file")
    args = parser.parse_args()
    texts = documents(args.text)
    print("| | mean KL divergence, nats | the most likely token agrees |\n|---|---|---|")
    for name, found in measure(args.model, texts, tuple(args.types)):
        print(row(name, found), flush=True)
    if args.calibrate:
        print(row(CALIBRATED, measure_calibrated(args.model, texts)))


if __name__ == "__main__":
    main()
