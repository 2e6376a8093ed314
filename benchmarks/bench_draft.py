"""Compares decoding with a draft and without, on twelve prompts, greedy and sampled. The tokens must be the same.

    python benchmarks/bench_draft.py                       # SmolLM2 in float32, by its own 8 bits
    python benchmarks/bench_draft.py --quant q8            # by its own 4 bits
    python benchmarks/bench_draft.py -m MODEL --draft SMALLER
    python benchmarks/bench_draft.py --llama-cpp FOLDER    # and llama.cpp's, by its programs in that folder

Both take turns, prompt by prompt, with the same number of threads. Figures are tokens/s of all prompts together.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import llama_cpp_drafts

from pyllama2 import Completion, Llama
from pyllama2.cli.running import run_guarded

PROMPTS = (
    "The old house at the end of the street", "In the beginning of the nineteenth century,", "Water boils when",
    "Dear Sir or Madam,", "The difference between a frog and a toad is", "When the train stopped for the third time,",
    "To make bread, you need", "She opened the letter and read:", "The most important invention of all time",
    "Once upon a time", "A good teacher", "The weather in the mountains",
)  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", default="float32", help="type of the model's weights (default: float32)")
    parser.add_argument("--draft", default="self", help='a smaller model, or "self" (default)')
    parser.add_argument("-n", "--max-tokens", type=int, default=128, help="tokens of each text (default: 128)")
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="FOLDER", help="compare with llama.cpp: float32 by its Q8_0, greedy"
    )
    args = parser.parse_args()
    with (
        Llama(args.model, quant=args.quant, prompt_lookup=False) as plain,
        Llama(args.model, quant=args.quant, prompt_lookup=False, draft=args.draft) as drafted,
    ):
        for temperature in (0.0, 0.8):
            found: list[list[Completion]] = [[], []]
            for i, prompt in enumerate(PROMPTS):
                for llm, completions in zip((plain, drafted), found, strict=True):
                    completions.append(
                        llm.generate(prompt, max_tokens=args.max_tokens, temperature=temperature, seed=i)
                    )
            same = [one.token_ids for one in found[0]] == [one.token_ids for one in found[1]]
            rates = [_rate(completions) for completions in found]
            guesses = sum(one.timings.guesses for one in found[1])
            true = sum(one.timings.guesses_true for one in found[1])
            print(
                f"temperature {temperature}: {rates[0]:.1f} tokens/s, with a draft {rates[1]:.1f}: "
                f"{rates[1] / rates[0]:.2f} times; {true} of {guesses} guesses came true; "
                f"tokens are {'the same' if same else 'NOT THE SAME'}"
            )
        n_threads = plain.describe()["n_threads"]
    if args.llama_cpp:
        theirs = llama_cpp_drafts.run(args.llama_cpp, args.model, PROMPTS, args.max_tokens, n_threads)
        print(
            f"llama.cpp, float32 by Q8_0, greedy: {theirs.plain:.1f} tokens/s, with a draft {theirs.drafted:.1f}: "
            f"{theirs.drafted / theirs.plain:.2f} times; {theirs.guesses_true} of {theirs.guesses} guesses came true"
        )
    return 0


def _rate(completions: list[Completion]) -> float:
    return sum(one.usage.completion_tokens - 1 for one in completions) / sum(
        one.timings.decode_s for one in completions
    )


if __name__ == "__main__":
    sys.exit(run_guarded("bench_draft.py", main))
