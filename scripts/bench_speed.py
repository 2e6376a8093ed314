"""Speed of the CPU backend on random weights of real shapes: prompt and decode tokens per second.

    python scripts/bench_speed.py --shape 1.1b --types float32 q8 q4 --json speed.json

Each figure is the median of --repeat runs, with the lowest and highest. Weights are random: speed does not depend on
their values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace

import numpy as np

from pyllama2._cpu import CpuBackend, default_threads, quantize_matrix
from pyllama2.backend import Batch
from pyllama2.config import ModelConfig
from pyllama2.modelfile import ModelFile
from pyllama2.weights import Quantization, Weight

SHAPES = {
    "135m": ModelConfig(576, 1536, 30, 9, 3, 64, 49152, 8192, rope_theta=1e5, tied_embeddings=True),
    "1.1b": ModelConfig(2048, 5632, 22, 32, 4, 64, 32000, 2048),
    "7b": ModelConfig(4096, 11008, 32, 32, 32, 128, 32000, 4096),
}


def random_model(config: ModelConfig, type: str) -> ModelFile:
    """A model in memory. One block of numbers serves all tensors; every tensor has its own memory."""
    model = ModelFile(config, Quantization.of(type))
    block = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    for name, shape in config.tensor_shapes().items():
        stored = model.quantization.type_of(name, config)
        if len(shape) == 1:
            model.weights[name] = Weight(name, stored, shape, np.ones(shape, np.float32))
            continue
        matrix = np.resize(block, shape) * np.float32(shape[-1] ** -0.5)
        if stored in ("q8", "q4"):
            data, scales = quantize_matrix(matrix, stored, 64)
            model.weights[name] = Weight(name, stored, shape, data, scales, 64)
        else:
            model.weights[name] = Weight(name, stored, shape, matrix.astype(stored))
    return model


def measure(backend: CpuBackend, n_prompt: int, n_new: int) -> tuple[float, float]:
    """Tokens per second of a prompt and of decoding after it."""
    cache = backend.new_cache(1, n_prompt + n_new)
    tokens = np.random.default_rng(1).integers(0, backend.config.vocab_size, n_prompt).tolist()
    started = time.perf_counter()
    backend.forward(Batch.of_sequence(tokens), cache)
    prompt_s = time.perf_counter() - started
    started = time.perf_counter()
    for i in range(n_new):
        backend.forward(Batch.of_sequence([1], start=n_prompt + i), cache)
    return n_prompt / prompt_s, n_new / (time.perf_counter() - started)


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--layers", type=int, help="cut the model to so many layers")
    parser.add_argument("--types", nargs="+", default=["float32", "q8", "q4"])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    config = SHAPES[args.shape]
    if args.layers is not None:
        config = replace(config, n_layers=args.layers)
    rows = []
    print("| weights | GB | prompt, tokens/s | decode, tokens/s | GB/s of weights |")
    print("|---|---|---|---|---|")
    for type in args.types:
        model = random_model(config, type)
        read = model.nbytes - (0 if config.tied_embeddings else model.weights["tok_embeddings.weight"].nbytes)
        backend = CpuBackend(model, n_threads=args.threads)
        measure(backend, 16, 2)  # warm up
        runs = [measure(backend, args.prompt_tokens, args.new_tokens) for _ in range(args.repeat)]
        prompt, decode = (spread(list(values)) for values in zip(*runs, strict=True))
        rate = decode["median"] * read / 1e9
        row = {"weights": type, "bytes": model.nbytes, "prompt": prompt, "decode": decode, "GB/s": rate}
        rows.append(row)
        texts = [f"{f['median']:.1f} ({f['min']:.1f} to {f['max']:.1f})" for f in (prompt, decode)]
        print(
            f"| {type} | {model.nbytes / 1e9:.2f} | {texts[0]} | {texts[1]} | {rate:.1f} |",
            flush=True,
        )
        backend.close()
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"shape": args.shape, "layers": config.n_layers, "threads": args.threads, "rows": rows}, file, indent=1
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
