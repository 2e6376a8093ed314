"""Prints how close a model in fewer bits, or with a smaller cache, is to the same in float32.

    python benchmarks/how_close.py                                  # the README's table of types, a few minutes
    python benchmarks/how_close.py --files calibrated.bin ...       # files that quantize made of SmolLM2
    python benchmarks/how_close.py --calibrate TEXT... --json docs/how_close.json
                                                                    # all ways to quantize SmolLM2 and its twin, an hour

The text is tests/data/prose.txt, which nothing was calibrated on. Its parts are scored one by one, from their first
tokens on. Figures are those of `pyllama2 perplexity --against`. The last column has the KL divergence as a share of
what q4 loses by the search that knows nothing of the inputs: how much that is depends on the model and on the text.

--calibrate makes all files itself, ours and, where llama-cpp-python is installed, those of llama.cpp's own function,
from the same float32. Its files run in our float32 kernels, ours with the 8-bit activations of the backend. The twin
(scripts/random_models/make_twin.py) has weights that lie on no grid. --json keeps the figures, and what the residual
stream has lost after each layer, for scripts/docs/make_quantization_docs.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "random_models"))

import make_twin
from benchmarking import machine
from layer_errors import layer_errors
from ways_to_quantize import IN_MEMORY, LLAMA_CPP, OWN_TEXT, PLAIN, TEXTS, bits_of_layers, ways, write_plain

import pyllama2
from pyllama2 import Llama
from pyllama2.analysis.evaluation import Perplexity, perplexity

PROSE = Path(__file__).resolve().parents[1] / "tests" / "data" / "prose.txt"
WEIGHTS = {"q8": "q8, groups of 64", "q4": "q4, groups of 64, converted in memory"}
CACHES = ("float16", "int8")
_DRAWN = (PLAIN, IN_MEMORY, OWN_TEXT, TEXTS)  # whose layers are compared


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
        path = Path(folder, "plain.bin")
        write_plain(exact._model, path)
        rows: list[tuple[str, str | Path, str | None]] = [
            (PLAIN, path, None),
            (IN_MEMORY, model, "q4"),
            *((f"{file.name}, {file.stat().st_size / 1e6:.1f} MB", file, None) for file in files),
        ]
        for name, source, quant in rows:
            with Llama(source, quant=quant, kv_dtype="float32") as llm:
                yield name, perplexity(llm, texts, against=exact)


def measure_ways(
    source: Path, texts: list[str], calibration: Sequence[Path], folder: Path
) -> Iterator[tuple[str, float, Perplexity, list[float] | None]]:
    """Yield name, bits of a weight, figures, and some layers' errors, of all ways to quantize a model in float32."""
    with Llama(source, kv_dtype="float32") as exact:
        windows = [exact.tokenize(text)[:512] for text in texts[:6]]
        for i, way in enumerate(ways(source, calibration, folder)):
            path = folder / f"{i}.model"
            way.make(path)
            with Llama(path, quant="float32" if way.name.startswith(LLAMA_CPP) else None, kv_dtype="float32") as llm:
                found = perplexity(llm, texts, against=exact)
            errors = layer_errors(source, path, windows) if way.name in _DRAWN else None
            yield way.name, bits_of_layers(path), found, errors
            path.unlink()


def row(name: str, found: Perplexity) -> str:
    """Return a line of the table."""
    assert found.kl_divergence is not None and found.top_1_agreement is not None
    digits = f"{found.kl_divergence:#.2g}" if found.kl_divergence > 1e-4 else f"{found.kl_divergence:.8f}"
    return f"| {name} | {digits} | {found.top_1_agreement:.1%} |"


def row_of_file(name: str, found: Perplexity, most: float, bits: float | None = None) -> str:
    """Return a line of the table of files, of which the first loses most nats."""
    assert found.kl_divergence is not None and found.top_1_agreement is not None
    error = 0.0 if found.kl_standard_error is None else found.kl_standard_error
    cells = [
        name, *([] if bits is None else [f"{bits:.2f}"]), f"{found.kl_divergence:.4f} ± {error:.4f}",
        f"{found.top_1_agreement:.1%}", f"{found.kl_divergence / most:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def compare_ways(model: str, texts: list[str], calibration: Sequence[Path]) -> dict[str, Any]:
    """Print the tables of all ways, for a model and for its twin. Returns the figures."""
    results: dict[str, Any] = {"processor": machine()["processor"], "models": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {model: folder / "model.bin", "twin": folder / "twin.bin"}
        pyllama2.export(model, sources[model])
        make_twin.make_twin(model, str(sources["twin"]), seed=0)
        for title, source in sources.items():
            print(f"\n| {title} | bits | mean KL divergence, nats | the most likely token agrees | share |")
            print("|---|---|---|---|---|", flush=True)
            rows: list[dict[str, Any]] = []
            for way, bits, found, errors in measure_ways(source, texts, calibration, folder):
                most = rows[0]["kl"] if rows else found.kl_divergence
                print(row_of_file(way, found, most, bits), flush=True)
                figures = {"name": way, "bits": bits, "kl": found.kl_divergence, "kl_error": found.kl_standard_error}
                rows.append({**figures, "top_1": found.top_1_agreement, "layer_errors": errors})
            results["models"][title] = rows
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model with float weights (default: smollm2)")
    parser.add_argument("--text", type=Path, default=PROSE, help="the text (default: tests/data/prose.txt)")
    parser.add_argument("--files", nargs="+", type=Path, help="model files to measure (default: the README's rows)")
    parser.add_argument("--calibrate", nargs="+", type=Path, metavar="TEXT", help="measure all ways to quantize")
    parser.add_argument("--json", type=Path, help="with --calibrate: write the figures to a file")
    args = parser.parse_args()
    texts = documents(args.text)
    if args.calibrate:
        results = compare_ways(args.model, texts, args.calibrate)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")
        return
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
