"""Prints the README's table of how close a model in fewer bits, or with a smaller cache, is to the same in float32.

    python benchmarks/how_close.py                                  # SmolLM2, a few minutes
    python benchmarks/how_close.py --files plain.bin calibrated.bin # of files that quantize made of it

The text is tests/data/prose.txt, which nothing was calibrated on. Its parts are scored one by one, from their first
tokens on. Figures are those of `pyllama2 perplexity --against`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pyllama2 import Llama
from pyllama2.analysis.evaluation import Perplexity, perplexity

PROSE = Path(__file__).resolve().parents[1] / "tests" / "data" / "prose.txt"
WEIGHTS = {"q8": "q8, groups of 64", "q4": "q4, groups of 64, converted in memory"}
CACHES = ("float16", "int8")


def documents(path: Path) -> list[str]:
    """Return the parts of a text, which two empty lines divide."""
    return path.read_text(encoding="utf-8").strip().split("\n\n\n")


def measure(model: str, texts: list[str]) -> Iterator[tuple[str, Perplexity]]:
    """Yield a row's name and figures, for the types of weights, then for those of keys and values."""
    with Llama(model, quant="float32", kv_dtype="float32") as exact:
        for quant, name in WEIGHTS.items():
            with Llama(model, quant=quant, kv_dtype="float32") as llm:
                yield name, perplexity(llm, texts, against=exact)
        for kv_dtype in CACHES:
            with Llama(model, quant="float32", kv_dtype=kv_dtype) as llm:
                yield f"float32, keys and values in {kv_dtype}", perplexity(llm, texts, against=exact)


def measure_files(model: str, texts: list[str], files: list[Path]) -> Iterator[tuple[str, Perplexity]]:
    """Yield a row's name and figures, for files that were made of the model."""
    with Llama(model, quant="float32", kv_dtype="float32") as exact:
        for path in files:
            with Llama(path, kv_dtype="float32") as llm:
                yield f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", perplexity(llm, texts, against=exact)


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
    parser.add_argument("--files", nargs="+", type=Path, help="model files to measure (default: the README's rows)")
    args = parser.parse_args()
    texts = documents(args.text)
    print("| | mean KL divergence, nats | the most likely token agrees |\n|---|---|---|")
    rows = measure_files(args.model, texts, args.files) if args.files else measure(args.model, texts)
    for name, found in rows:
        print(row(name, found), flush=True)
    print(f"\n{found.n_tokens:,} tokens of {args.text.name}")


if __name__ == "__main__":
    main()
