"""Measures how long sampling a token takes with different parameters, on the logits of a model's own text.

    python benchmarks/bench_sampler.py -m smollm2 --quant q4

The columns are microseconds of Sampler.sample: the median, and the 5th and 95th percentile. The model writes the text
with the default parameters and --temperature: a higher one gives flatter distributions, which take longer. The first
line says how long one token of the text took in all. The last column is the median's share of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import machine, table
from numpy.typing import NDArray

from pyllama2 import Llama
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Sampler, largest, log_probabilities_of

PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_p": 1.0},
    {"top_p": 1.0, "top_k": 40},
    {"top_k": 40},
    {"top_k": 1000},
    {"top_p": 1.0, "min_p": 0.05},
    {"top_k": 40, "min_p": 0.05},
    {"repetition_penalty": 1.1},
    PENALTIES,
    {"logit_bias": {5: 1.0}},
    {**PENALTIES, "logit_bias": {5: 1.0}, "top_k": 40, "min_p": 0.05},
]


def text_of(llm: Llama, n: int, temperature: float) -> tuple[list[int], float]:
    """Generate a text; return its token ids, and the seconds for one of them."""
    completion = llm.generate("The", max_tokens=n, ignore_eos=True, seed=1, temperature=temperature)
    return completion.token_ids, 1 / completion.timings.decode_tokens_per_s


def microseconds(call: Callable[[NDArray[np.float32]], Any], logits: NDArray[np.float32], repeat: int) -> list[float]:
    """Return the sorted times of a call for each row of logits, in microseconds."""
    times = []
    for _ in range(repeat):
        for row in logits:
            started = time.perf_counter()
            call(row)
            times.append((time.perf_counter() - started) * 1e6)
    return sorted(times)


def calls(token_ids: list[int]) -> dict[str, Callable[[NDArray[np.float32]], Any]]:
    """Return what is measured, by name. Half of token_ids count as the prompt."""

    def sampling(**params: Any) -> Callable[[NDArray[np.float32]], Any]:
        sampler = Sampler(SamplingParams(**params), 1)
        return lambda row: sampler.sample(row, token_ids, len(token_ids) // 2)

    found = {}
    for params in SETTINGS:
        name = ", ".join(f"{key} {value}" for key, value in params.items() if key != "logit_bias")
        found[(name or "the defaults") + (", a bias" if "logit_bias" in params else "")] = sampling(**params)
    found["5 logprobs, in addition"] = lambda row: log_probabilities_of(row, [0, *largest(row, 5)])
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model")
    parser.add_argument("--quant", choices=("q8", "q4"))
    parser.add_argument("--tokens", type=int, default=200, help="length of the text")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    with Llama(args.model, quant=args.quant) as llm:
        token_ids, token_s = text_of(llm, args.tokens, args.temperature)
        logits = llm.logits(token_ids)
    print(f"a vocabulary of {logits.shape[1]}; a token takes {token_s * 1e3:.2f} ms\n")
    rows, figures = [], {}
    for name, call in calls(token_ids).items():
        times = microseconds(call, logits, args.repeat)
        n, median = len(times), statistics.median(times)
        figures[name] = {"median_us": median, "low_us": times[n // 20], "high_us": times[n - n // 20 - 1]}
        low, high = figures[name]["low_us"], figures[name]["high_us"]
        rows.append([name, f"{median:.1f}", f"{low:.1f}", f"{high:.1f}", f"{median / token_s / 1e4:.1f}%"])
    print(table(["settings", "median us", "5%", "95%", "of a token"], rows))
    if args.json:
        result = {"machine": machine(), "token_ms": token_s * 1e3, "figures": figures}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
