"""Prints the README's table of how close a model in fewer bits, or with a smaller cache, is to the same in float32.

    python benchmarks/how_close.py                                  # SmolLM2, a few minutes
    python benchmarks/how_close.py --files calibrated.bin ...       # of files that quantize made of it
    python benchmarks/how_close.py --model twin.bin --files ...     # of a twin, see scripts/random_models/make_twin.py

The text is tests/data/prose.txt, which nothing was calibrated on. Its parts are scored one by one, from their first
tokens on. Figures are those of `pyllama2 perplexity --against`.

With files, the last column has the KL divergence as a share of what q4 loses by the search that knows nothing of the
inputs: how much that is depends on the model and on the text.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyllama2 import Llama
from pyllama2.analysis.evaluation import Perplexity, perplexity
from pyllama2.convert import convert_model
from pyllama2.storage.model_file import ModelWriter
from pyllama2.storage.weights import Quantization

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
    """Yield a row's name and figures: of q4 by the plain search first, then in memory, then of files of the model."""
    with Llama(model, quant="float32", kv_dtype="float32") as exact, tempfile.TemporaryDirectory() as folder:
        plain = convert_model(exact._model, Quantization.of("q4"))
        path = Path(folder, "plain.bin")
        with ModelWriter(path, plain) as writer:
            for weight in plain.weights.values():
                writer.write(weight)
        rows: list[tuple[str, str | Path, str | None]] = [
            ("q4 by a search that knows nothing of the inputs", path, None),
            ("q4 in memory", model, "q4"),
            *((f"{file.name}, {file.stat().st_size / 1e6:.1f} MB", file, None) for file in files),
        ]
        for name, source, quant in rows:
            with Llama(source, quant=quant, kv_dtype="float32") as llm:
                yield name, perplexity(llm, texts, against=exact)


def row(name: str, found: Perplexity) -> str:
    """Return a line of the table."""
    assert found.kl_divergence is not None and found.top_1_agreement is not None
    digits = f"{found.kl_divergence:#.2g}" if found.kl_divergence > 1e-4 else f"{found.kl_divergence:.8f}"
    return f"| {name} | {digits} | {found.top_1_agreement:.1%} |"


def row_of_file(name: str, found: Perplexity, most: float) -> str:
    """Return a line of the table of files, of which the first loses most nats."""
    assert found.kl_divergence is not None and found.top_1_agreement is not None
    error = 0.0 if found.kl_standard_error is None else found.kl_standard_error
    share = found.kl_divergence / most
    return f"| {name} | {found.kl_divergence:.4f} ± {error:.4f} | {found.top_1_agreement:.1%} | {share:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model with float weights (default: smollm2)")
    parser.add_argument("--text", type=Path, default=PROSE, help="the text (default: tests/data/prose.txt)")
    parser.add_argument("--files", nargs="+", type=Path, help="model files to measure (default: the README's rows)")
    args = parser.parse_args()
    texts = documents(args.text)
    if not args.files:
        print("| | mean KL divergence, nats | the most likely token agrees |\n|---|---|---|")
        for name, found in measure(args.model, texts):
            print(row(name, found), flush=True)
        return
    print("| | mean KL divergence, nats | the most likely token agrees | share |\n|---|---|---|---|")
    most = 0.0
    for name, found in measure_files(args.model, texts, args.files):
        most = most or found.kl_divergence or 0.0
        print(row_of_file(name, found, most), flush=True)


if __name__ == "__main__":
    main()
