"""Compares pyllama2's float32 with PyTorch on the CPU, on the same random weights in the same run.

    python benchmarks/bench_vs_torch.py --shape 1.1b --models-dir /data/random --json torch.json

PyTorch runs LlamaForCausalLM of the package transformers if that is installed, else pyllama2/model.py. The engines take
turns with the same number of threads (benchmarking.py). Figures are tokens/s: medians, with the lowest and the highest.

    prompt     512 tokens from an empty cache, with the logits of the last
    decode     one token after the other, from position 0 on
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from functools import partial
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import Worker, machine, random_model, table, take_turns
from engines import OurEngine
from make_random_model import SHAPES

from pyllama2._cpu import default_threads
from pyllama2.analysis.bandwidth import ReadBandwidth
from pyllama2.analysis.benchmark import Spread, random_tokens

PROMPT_TARGET = 1.0  # times PyTorch


class TransformersEngine:
    """A Hugging Face directory as float32 in the package transformers. The methods are those of engines.py."""

    def __init__(self, path: str, n_threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(n_threads)
        self._torch = torch
        self._cache_class = transformers.DynamicCache
        self._model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._name = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def describe(self) -> str:
        """Return name and versions."""
        return self._name

    def prompt(self, n: int) -> float:
        """Return the seconds for a prompt of n tokens."""
        return self._seconds([random_tokens(self._model.config.vocab_size, n)])

    def decode(self, n: int, position: int) -> float:
        """Return the seconds for n tokens, one after the other. position must be 0."""
        assert position == 0
        return self._seconds([[token] for token in random_tokens(self._model.config.vocab_size, n)])

    def _seconds(self, steps: list[list[int]]) -> float:
        cache = self._cache_class(config=self._model.config)
        with self._torch.inference_mode():
            started = time.perf_counter()
            for tokens in steps:
                batch = self._torch.tensor([tokens])
                self._model(input_ids=batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return time.perf_counter() - started


class ModelPyEngine:
    """One of our float32 files in pyllama2/model.py, which computes the logits of every token."""

    def __init__(self, path: str, n_threads: int) -> None:
        import torch

        from pyllama2.model import Transformer

        torch.set_num_threads(n_threads)
        self._torch = torch
        self._model = Transformer.load(path)

    def describe(self) -> str:
        """Return name and version."""
        return f"pyllama2/model.py, torch {self._torch.__version__}"

    def prompt(self, n: int) -> float:
        """Return the seconds for a prompt of n tokens."""
        return self._seconds([random_tokens(self._model.config.vocab_size, n)])

    def decode(self, n: int, position: int) -> float:
        """Return the seconds for n tokens, one after the other. position must be 0."""
        assert position == 0
        return self._seconds([[token] for token in random_tokens(self._model.config.vocab_size, n)])

    def _seconds(self, steps: list[list[int]]) -> float:
        cache = self._model.new_cache()
        with self._torch.inference_mode():
            started = time.perf_counter()
            for tokens in steps:
                self._model(self._torch.tensor([tokens]), cache)
            return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 1 if --check finds the prompt slower than PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--layers", type=int, metavar="N", help="cut the model, to try something out")
    parser.add_argument("--models-dir", default="random-models", metavar="DIR", help="of random models (%(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeat", type=int, default=5, help="turns of each engine (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit with 1 when the prompt is slower than PyTorch's")
    options = parser.parse_args(arguments)
    path = partial(random_model, options.models_dir, options.shape, layers=options.layers)
    engines = {"pyllama2": Worker(OurEngine, path("float32"))}
    if importlib.util.find_spec("transformers") is not None:
        engines["torch"] = Worker(TransformersEngine, path("hf"), options.threads)
    else:
        engines["torch"] = Worker(ModelPyEngine, path("float32"), options.threads)
    engines["pyllama2"].call("configure", max(options.prompt_tokens, options.new_tokens), 1, options.threads)
    facts = {name: worker.call("describe") for name, worker in engines.items()}
    memory = ReadBandwidth(options.threads)
    rows = [
        _compare(engines, memory, options.repeat, "prompt", options.prompt_tokens),
        _compare(engines, memory, options.repeat, "decode", options.new_tokens, 0),
    ]
    for worker in engines.values():
        worker.close()
    print(f"{options.shape}, {options.threads} threads, {facts['torch']}\n")
    columns = [
        [row["name"], str(row["pyllama2"]), str(row["torch"]), f"{row['ratio']:.2f}", f"{row['others']:.2f}"]
        for row in rows
    ]
    print(table(["tokens/s", "pyllama2", "torch", "ratio", "processors of others"], columns))
    if options.json:
        settings = vars(options) | {"models_dir": None, "json": None}
        plain = [row | {name: vars(row[name]) for name in ("pyllama2", "torch", "bandwidth")} for row in rows]
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "settings": settings, "engines": facts, "rows": plain}, file, indent=1)
    return int(options.check and rows[0]["ratio"] < PROMPT_TARGET)


def _compare(
    engines: dict[str, Worker], memory: ReadBandwidth, repeat: int, method: str, n: int, *more: int
) -> dict[str, Any]:
    for worker in engines.values():
        worker.call(method, min(n, 16), *more)
    measures = {name: partial(worker.call, method, n, *more) for name, worker in engines.items()}
    turns = take_turns(measures, list(engines.values()), repeat, memory)
    speeds = {name: Spread.of([n / seconds for seconds in turns.values(name)]) for name in engines}
    ratio = speeds["pyllama2"].median / speeds["torch"].median
    return {"name": method, **speeds, "ratio": ratio, "others": turns.others, "bandwidth": turns.bandwidth}


if __name__ == "__main__":
    sys.exit(main())
