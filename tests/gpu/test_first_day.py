"""scripts/cuda/first_day.py: from top to bottom on the pretended driver, without a GPU, and with mistakes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.gpu_backend import has_gpu, pretended
from helpers.tiny_llama import write_tiny

from pyllama2._gpu import CudaBackend, workspace
from pyllama2._gpu.cache import CudaKVCache
from pyllama2._gpu.step_graphs import StepGraphs
from pyllama2._gpu.workspace import Workspace

pytestmark = pytest.mark.subprocess
FORWARD, RUN, PLAN, BEGIN_FETCH = CudaBackend.forward, CudaBackend.run, CudaBackend.plan, Workspace.begin_fetch
Report = Callable[..., tuple[int, dict[str, list[str]]]]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A model instead of the bundled one, which takes minutes on the emulator, and one instead of 7B."""
    folder = tmp_path_factory.mktemp("models")
    bundled = write_tiny(folder / "bundled.bin", weight_type="q8", max_seq_len=256, vocab_size=3072)
    yield bundled, write_tiny(folder / "tiny.bin", weight_type="q4", max_seq_len=640)


@pytest.fixture
def report(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Report]:
    """Runs first_day.py in this process. Gives the exit code and the lines of each section."""
    bundled, model = paths
    first_day, steps = (importlib.import_module(name) for name in ("first_day", "first_day_steps"))
    monkeypatch.setattr(steps, "find_model", lambda _: str(bundled))
    monkeypatch.setattr(steps, "_REPEATS", 3)

    def run(*arguments: str) -> tuple[int, dict[str, list[str]]]:
        figures = ["--new-tokens", "2", "--repeat", "1", "--tests", "tests/gpu/test_cuda_sources.py"]
        code = first_day.main(["--together", "--model", str(model), *figures, *arguments])
        return code, sections(capsys.readouterr().out)

    with pretended().machine(total_bytes=1 << 29):
        yield run


def sections(report: str) -> dict[str, list[str]]:
    """The lines of each step, and the summary; those of a single step under an empty name."""
    if "\n== " not in report:
        return {"": report.splitlines()}
    parts = [part.splitlines() for part in report.split("\n== ")[1:]]
    return {lines[0]: [line for line in lines[1:] if line] for lines in parts}


def results(found: dict[str, list[str]]) -> dict[str, str]:
    """What the summary says, without the times."""
    return {name: result.split(",")[0] for name, result in (line.split(maxsplit=1) for line in found["summary"])}


def test_from_top_to_bottom(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "report.txt"
    code, found = report("--out", str(out))
    assert code == 0
    assert results(found) == dict.fromkeys(results(found), "done") | {"sanitizer": "not done"}
    assert list(found) == [*results(found), "summary"]
    assert found["sanitizer"] == ["not done: compute-sanitizer is missing; it comes with the CUDA toolkit"]
    assert "nvidia-smi is missing" in found["machine"] and any(line.startswith("cupy") for line in found["machine"])
    assert len(found["logits"]) == 8 and all(": the CPU's bits" in line for line in found["logits"])
    assert "to position 600" in found["logits"][-1]
    assert len(found["devices"]) == 3 and all(line.endswith(": all bits of the CPU") for line in found["devices"])
    assert found["devices"][2].startswith("layer 0 on cuda:0, layer 1 on cuda:1")
    assert re.match(r"40 steps of two threads, [1-9]\d* copies", found["threads"][0])
    assert sum("24 steps recorded" in line for line in found["memory"]) == 2
    assert len(found["speed"]) == 2 * 2 * (8 + 2)
    for kernel, launches in (
        ("matvec_qkv", 2),
        ("matvec_residual", 4),
        ("attend", 2),
        ("matvec", 1),
        ("matmul_mma", 8),
        ("finish_qkv", 2),
    ):
        assert any(re.match(rf"  {kernel}<.*> +{launches} launches", line) for line in found["kernels"])
    assert re.fullmatch(r"\d+ passed in .*", found["tests"][0])
    assert sections(out.read_text()) == found


def test_it_stops_at_nothing(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong numbers, memory that is not planned, and calls that end with errors."""
    forward = CudaBackend.forward
    monkeypatch.setattr(CudaBackend, "forward", lambda *arguments: forward(*arguments) * 1.01)
    monkeypatch.setattr(workspace, "rope_table", lambda *_: 1 / 0)
    code, found = report("--quick")
    assert code == 1
    said = results(found)
    assert said["machine"] == "done" and said["sanitizer"] == said["tests"] == "left out by --quick"
    assert all(said[name] == "FAILED" for name in ("logits", "devices", "threads", "memory", "speed", "kernels"))
    assert found["logits"][-1] == "ZeroDivisionError: division by zero"


def begin_fetch_in_one_place(work: Workspace, n: int) -> int:
    """A mistake: the tokens of the next step come to where the host reads those of the last."""
    work._slot = 0
    return BEGIN_FETCH(work, n)


@pytest.mark.parametrize(
    ("step", "owner", "name", "mistake", "sentence"),
    [
        ("logits", CudaBackend, "forward", lambda *given: FORWARD(*given) * 1.01, "100.0% of the logits differ"),
        (
            "logits",
            StepGraphs,
            "_capture",
            lambda graphs, _: graphs._give_up(ValueError("no")),
            "kernel by kernel (no)",
        ),
        (
            "logits",
            Workspace,
            "begin_fetch",
            lambda *given: begin_fetch_in_one_place(*given),
            "those that are begun ahead",
        ),
        ("devices", CudaBackend, "run", lambda *given: RUN(*given) * 1.01, "several devices give other logits"),
        ("threads", CudaBackend, "forward", lambda *given: FORWARD(*given) * 1.01, "40 of 40 steps have other logits"),
        ("threads", CudaKVCache, "_copy_prefix", lambda *_: None, "the copied sequence differs"),
        (
            "memory",
            CudaBackend,
            "plan",
            lambda *given: replace(PLAN(*given), arrays=(), driver_bytes=0),
            "is taken than",
        ),
    ],
)
def test_what_is_wrong_is_said(
    report: Report, monkeypatch: pytest.MonkeyPatch, step: str, owner: Any, name: str, mistake: Any, sentence: str
) -> None:
    monkeypatch.setattr(owner, name, mistake)
    code, found = report("--step", step)
    assert code == 1 and "WRONG: " in found[""][-1] and sentence in found[""][-1] + found[""][0]


def test_each_step_has_a_process_and_a_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU each says so."""
    if has_gpu():
        pytest.skip("there is a GPU")
    main = importlib.import_module("first_day").main
    assert main(["--quick"]) == 0
    found = sections(capsys.readouterr().out)
    said = results(found)
    assert said.pop("machine") == "done" and "the bundled model has just run" in found["machine"][-1]
    assert set(said.values()) == {"not done", "left out by --quick"}
    assert all(line.startswith("not done: no cuda: ") for name in said for line in found.get(name, ()))
    assert main(["--quick", "--limit", "0.05"]) == 1
    assert sections(capsys.readouterr().out)["logits"] == ["not finished after 0.05 s"]
