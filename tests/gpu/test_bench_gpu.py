"""benchmarks/bench_gpu.py: what it prints without a GPU, and its rows on the pretended driver. Nothing is timed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.gpu_backend import pretended
from helpers.tiny_llama import write_tiny

from pyllama2._gpu import availability
from pyllama2._gpu.steps_ahead import SampledStep


@pytest.fixture(scope="module")
def bench_gpu() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module("bench_gpu")


def test_without_a_gpu(
    bench_gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda _: None)
    assert bench_gpu.main([]) == 1
    assert capsys.readouterr().err == 'no cuda: the package cupy is not installed (pip install "pyllama2[gpu]")\n'


def test_the_plan_is_called_counted(bench_gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu.main(["--plan", "--kv-dtypes", "float16", "int8"]) == 0
    out = capsys.readouterr().out
    assert out.count("(counted)") == 2
    totals = [float(line.split()[1]) for line in out.splitlines() if line.startswith("total")]
    assert totals[0] <= 6.0 and totals[1] <= 5.0


@pytest.mark.subprocess
def test_rows(
    bench_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_gpu, "read_rate", lambda _: 100.0)
    model, out = write_tiny(tmp_path / "tiny.bin", weight_type="q4"), tmp_path / "figures.json"
    arguments = ["--model", str(model), "--json", str(out), "--prompt-tokens", "12", "--contexts", "0", "20",
                 "--sequences", "1", "5", "--new-tokens", "3", "--repeat", "1"]  # fmt: skip
    found: list[list[int] | None] = []
    places = SampledStep.places
    monkeypatch.setattr(SampledStep, "places", lambda *steps: found.append(places(*steps)) or found[-1])
    with pretended().machine() as machine:
        assert bench_gpu.main(arguments) == 0
    # The path of generated texts is timed: of three steps two were begun ahead, with a turn before, and the next three
    # wait. Each turn has its tokens.
    assert machine.launches.count("sample") == 4 * 2 * 2 * 3
    assert len(found) == 4 * 2 * 2 and None not in found
    prompt, *steps = json.loads(out.read_text())
    assert prompt["logits_differ_by"] == 0
    assert prompt["prompt_tokens"] == 12 and prompt["tokens_per_s"] > 0
    assert [(row["context"], row["sequences"]) for row in steps] == [(0, 1), (0, 5), (20, 1), (20, 5)]
    assert all(row["share"] == row["read_gb_per_s"] / 100 and abs(row["host_s"]) < 60 for row in steps)
    assert "pretended GPU" in capsys.readouterr().out


@pytest.mark.subprocess
def test_wrong_logits_fail(
    bench_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = bench_gpu.CudaBackend.forward
    monkeypatch.setattr(bench_gpu.CudaBackend, "forward", lambda *arguments: forward(*arguments) * 1.01)
    monkeypatch.setattr(bench_gpu, "read_rate", lambda _: 100.0)
    model = write_tiny(tmp_path / "tiny.bin", weight_type="q4")
    arguments = ["--model", str(model), "--prompt-tokens", "2", "--contexts", "0", "--sequences", "1",
                 "--new-tokens", "1", "--repeat", "1"]  # fmt: skip
    with pretended().machine():
        assert bench_gpu.main(arguments) == 1
    assert "the logits are not those of the CPU" in capsys.readouterr().err


def test_the_read_rate_fits_beside_the_model(bench_gpu: ModuleType) -> None:
    """What is free is less than it would like, and it gives back what it took."""
    taken: list[int] = []

    class Array:
        def __init__(self, n: int, _: Any) -> None:
            self.nbytes = 4 * n
            taken.append(self.nbytes)

        def sum(self) -> None:
            pass

    class Event:
        def record(self) -> None:
            pass

        synchronize = record

    freed: list[bool] = []
    pool = SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    runtime = SimpleNamespace(memGetInfo=lambda: (100 << 20, 8 << 30))
    cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda *_: 1.0, runtime=runtime)
    cupy = SimpleNamespace(empty=Array, float32=None, cuda=cuda, get_default_memory_pool=lambda: pool)
    assert bench_gpu.read_rate(cupy) == (50 << 20) / 1e-3 / 1e9
    assert taken == [50 << 20] and len(freed) == 2
