"""benchmarks/benchmarking.py and the table of bench_vs_llama_cpp.py: turns and verdicts. Nothing is timed."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.tiny_llama import write_tiny

from pyllama2.analysis.benchmark import Spread
from pyllama2.config import ModelConfig
from pyllama2.errors import Pyllama2Error


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield {
            name: importlib.import_module(name)
            for name in ("benchmarking", "bench_attention", "bench_vs_llama_cpp", "engines", "llama_cpp_drafts")
        }


class Memory:
    """Instead of ReadBandwidth."""

    def measure(self) -> list[float]:
        return [10.0]


class Served:
    """Lives in a worker."""

    def add(self, a: int, b: int) -> tuple[int, int]:
        return a + b, os.getpid()

    def fail(self) -> None:
        raise ValueError("as it should")


@pytest.mark.slow
def test_a_worker_is_another_process(scripts: dict[str, ModuleType]) -> None:
    worker = scripts["benchmarking"].Worker(Served)
    total, process = worker.call("add", 2, 3)
    assert total == 5
    assert process != os.getpid()
    assert worker.cpu_s() > 0
    with pytest.raises(Pyllama2Error, match="ValueError: as it should"):
        worker.call("fail")
    worker.close()


@pytest.mark.parametrize(
    ("disturbed", "taken", "kept"),
    [([], 2, [0, 1]), ([0], 3, [1, 2]), (range(100), 8, [0, 1])],
    ids=["quiet", "one is repeated", "never quiet"],
)
def test_disturbed_turns_are_repeated(
    disturbed: Any, taken: int, kept: list[int], scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = scripts["benchmarking"]
    order: list[tuple[str, int]] = []

    def measure(name: str) -> int:
        number = sum(engine == name for engine, _ in order)
        order.append((name, number))
        return number

    def turn(measure: Any, workers: Any) -> Any:
        value = measure()
        return module.Turn(value, 0.5 + value / 1000 if order[-1][0] == "a" and value in disturbed else 0.01)

    monkeypatch.setattr(module, "_take_turn", turn)
    turns = module.take_turns({"a": lambda: measure("a"), "b": lambda: measure("b")}, [], 2, Memory())
    assert order == [(name, i) for i in range(taken) for name in "ab"]
    assert turns.values("a") == kept
    assert len(turns.values("b")) == 2
    assert turns.repeated == taken - 2
    assert len(turns.rates) == taken + 1


@pytest.mark.parametrize(
    ("asked", "target", "figures", "passed"),
    [
        ("", 0, {}, None),
        ("ratio", 2.0, {}, True),
        ("ratio", 2.1, {}, False),
        ("gain", 1.9, {"gains": (1.95, 1.0)}, True),
        ("share", 0.9, {"shares": (0.85, 0.99)}, False),
        ("seconds", 5, {"unit": "s", "peak_bytes": (90, 200), "most_bytes": 100}, True),
        ("seconds", 5, {"unit": "s", "peak_bytes": (101, 200), "most_bytes": 100}, False),
        ("seconds", 3, {"unit": "s", "peak_bytes": (90, 200), "most_bytes": 100}, False),
    ],
)
def test_verdicts(
    asked: str, target: float, figures: dict[str, Any], passed: bool | None, scripts: dict[str, ModuleType]
) -> None:
    spreads = {"ours": Spread.of([3, 4, 5]), "theirs": Spread.of([2])}
    fields = {"name": "row", "unit": "tokens/s", **spreads, "asked": asked, "target": target, **figures}
    result = scripts["bench_vs_llama_cpp"].Result(**fields)
    assert result.passed is passed
    assert result.ratio == (0.5 if result.unit == "s" else 2)
    columns = result.columns()
    assert len(columns) == len(scripts["bench_vs_llama_cpp"].HEAD)
    assert columns[6] == {None: "", True: "reached", False: "**missed**"}[passed]


def test_rows_are_chosen_by_name(scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    module = scripts["bench_vs_llama_cpp"]
    assert module.main(["--list", "7b-q8", "*-start"]) == 0
    assert capsys.readouterr().out.split() == ["7b-q4-start", "7b-q8-prompt", "7b-q8-decode", "1.1b-q4-start"]
    with pytest.raises(SystemExit, match="no row"):
        module.main(["--list", "8b"])


def test_our_engine(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    """Every method the tables call, on a tiny model that is made once."""
    path = scripts["benchmarking"].random_model(str(tmp_path), "tiny", "q4", None)
    made = os.stat(path).st_mtime_ns
    assert scripts["benchmarking"].random_model(str(tmp_path), "tiny", "q4", None) == path
    assert os.stat(path).st_mtime_ns == made
    engine = scripts["engines"].OurEngine(path)
    for n_sequences, n_threads in ((2, 1), (1, 2)):
        engine.configure(40, n_sequences, n_threads)
        assert engine.describe()["n_threads"] == n_threads
        assert min(engine.prompt(8), engine.decode(2, 30), engine.decode_together(3, n_sequences)) > 0
    # Keys and values of 2 layers, 2 heads of 16, float16.
    assert engine.bytes_per_token(9)[1] == 10 * 2 * 2 * 32 * 2


@pytest.mark.subprocess
def test_the_benchmark_of_servers_asks_for_a_model_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_server = importlib.import_module("bench_server")
    monkeypatch.setattr(bench_server, "_CLIENTS", (2,))
    monkeypatch.setattr(bench_server, "find_spec", lambda name: None)
    model = write_tiny(tmp_path / "tiny.bin", max_seq_len=128)
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", ["bench_server.py", "--gguf", str(model), "-t", "1", "--repeat", "1", "--json", str(figures)]
    )
    assert bench_server.main() == 0
    assert "| 2 clients | pyllama2 |" in capsys.readouterr().out
    assert json.loads(figures.read_text())["2 pyllama2"]["requests_per_s"]["median"] > 0


def test_bench_attention_prints_a_line_for_each_type_of_keys(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = scripts["bench_attention"]
    monkeypatch.setattr(script.Arithmetic, "LOOPS", 1_000_000)
    arguments = ["--shapes", "tiny", "--tokens", "48", "--repeat", "1", "--models-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench_attention.py", *arguments])
    assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(r"tiny: heads of 16, (\w+): \d+ GFLOP/s of \d+, \d+%", line) for line in lines]
    assert [match and match[1] for match in found] == ["float16", "int8"]


def test_operations_of_attention_are_those_of_the_positions_that_are_seen(scripts: dict[str, ModuleType]) -> None:
    """A token at position p has products with p + 1 keys and as many values, and each product is 2 operations."""
    config = ModelConfig(64, 192, 3, 4, 2, 16, 512, 256)
    by_token = sum(3 * 4 * (position + 1) * 16 * 2 * 2 for position in range(48))
    assert scripts["bench_attention"].operations_of(config, 48) == by_token


@pytest.mark.parametrize(("compiler", "message"), [(None, "there is no C compiler"), ("false", "false cannot compile")])
def test_bench_attention_says_what_is_wrong_with_the_compiler(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(scripts["bench_attention"].shutil, "which", lambda name: compiler)
    with pytest.raises(Pyllama2Error, match=message):
        scripts["bench_attention"].Arithmetic("avx2", 1, tmp_path)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bench_neighbour.py", "missing.bin"], 1, "bench_neighbour.py: there is no file or directory missing.bin"),
        (["bench_attention.py", "--tokens", "0"], 2, "argument --tokens: '0' is not a positive integer"),
        (["bench_start.py", "-m", "missing.bin"], 1, "bench_start.py: missing.bin: No such file or directory"),
        (["draft_costs.py", "missing.bin", "b.bin"], 1, "draft_costs.py: there is no file or directory missing.bin"),
        (["many_cores.py", "missing.bin"], 1, "many_cores.py: there is no file or directory missing.bin"),
        (["many_cores.py", "missing.bin", "--cores", "0"], 2, "argument --cores: '0' is not a positive integer"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(arguments: list[str], code: int, message: str) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / arguments[0]
    found = subprocess.run([sys.executable, str(script), *arguments[1:]], capture_output=True, text=True)
    assert found.returncode == code
    assert found.stderr.rstrip().endswith(message)
    assert "Traceback" not in found.stderr


BENCH = "#!/bin/sh\necho '[{\"avg_ts\": 20.0}]'\n"
SPECULATIVE = """#!/bin/sh
echo "0.14.839 I decoded   52 tokens in    2.000 seconds, speed:   26.0 t/s" >&2
echo "n_drafted = 40" >&2
echo "n_accept  = 30" >&2
"""


def make_programs(folder: Path, speculative: str) -> None:
    for name, text in (("llama-bench", BENCH), ("llama-speculative-simple", speculative)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


@pytest.mark.subprocess
def test_the_reports_of_llama_cpp_are_read(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    make_programs(tmp_path, SPECULATIVE)
    found = scripts["llama_cpp_drafts"].run(tmp_path, str(write_tiny(tmp_path / "m.bin")), ["a", "b"], 5, 1)
    assert (found.plain, found.drafted, found.guesses, found.guesses_true) == (20.0, 26.0, 80, 60)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("speculative", "message"),
    [("#!/bin/sh\necho no model >&2\nexit 3\n", "ended with 3: no model"), ("#!/bin/sh\n", "report has nothing like")],
    ids=["fails", "other words"],
)
def test_a_program_of_llama_cpp_that_fails(
    scripts: dict[str, ModuleType], tmp_path: Path, speculative: str, message: str
) -> None:
    make_programs(tmp_path, speculative)
    model = str(write_tiny(tmp_path / "m.bin"))
    with pytest.raises(Pyllama2Error, match=message):
        scripts["llama_cpp_drafts"].run(tmp_path, model, ["a"], 5, 1)
    with pytest.raises(Pyllama2Error, match=r"cannot run .*llama-bench"):
        scripts["llama_cpp_drafts"].run(tmp_path / "none", model, ["a"], 5, 1)
