"""pyllama2 doctor: what is here, what can run, and what is missing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pyllama2._gpu import availability
from pyllama2.analysis import diagnosis
from pyllama2.doctor import main
from pyllama2.errors import Pyllama2Error

GB = 10**9


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["--no-measure", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """A GPU with so many free bytes, whose memory gives 360 GB/s."""
    facts = {"name": b"A GPU\x1b[2J", "major": 8, "minor": 6, "memoryClockRate": 7_500_000, "memoryBusWidth": 192}
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: facts,
        memGetInfo=lambda: (memory, 12 * GB),
        driverGetVersion=lambda: 12080,
    )
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    cupy = SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc, Device=lambda device: nullcontext()),
    )
    monkeypatch.setattr(availability, "import_cupy", lambda: cupy)
    monkeypatch.setattr(availability, "unavailable_reason", lambda *_: None)


def rows(out: str, device: str) -> dict[tuple[str, str], list[str]]:
    """The rest of each row of the table of Llamas, by size and type."""
    found = [line.split() for line in out.splitlines() if f" {device} " in line]
    return {(size, quant): rest for size, quant, _, *rest in found}


def test_the_gpu_that_is_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run is said of it, and of the first of several."""
    pretend_gpu(monkeypatch, 12 * GB)
    (gpu,) = availability.gpus()
    monkeypatch.setattr(availability, "gpus", lambda: (replace(gpu, free_bytes=GB), gpu))
    asked = ((), ("--device", "cuda:0"), ("--device", "cuda:1"), ("--device", "cuda:1,cuda:0"))
    fits = [rows(doctor(capsys, "--threads", "1", *flags)[1], "cuda")["7B", "q4"][2] for flags in asked]
    assert fits == ["no", "no", "yes", "yes"]
    assert "What does not fit on a GPU has as many layers there as fit" in doctor(capsys, "--threads", "1")[1]


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "unavailable_reason", lambda *_: "there is no GPU\n")
    monkeypatch.setattr(diagnosis, "available_bytes", lambda: 8 * GB)
    code, out = doctor(capsys, "--threads", "1")
    assert code == 0 and "all is well" in out and "; 1 thread\n" in out
    assert "GPU        none: there is no GPU" in out and not rows(out, "cuda")
    table = rows(out, "cpu")
    assert table["7B", "q4"][2:] == ["yes"] and table["7B", "q8"][2:] == ["no"]


def test_speeds_are_those_of_the_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "available_bytes", lambda: 64 * GB)
    monkeypatch.setattr(diagnosis, "ReadBandwidth", lambda n_threads: SimpleNamespace(measure=lambda: [20.0, 36.0]))
    monkeypatch.setattr(diagnosis, "step_seconds", lambda n_layers, n_threads: 0.0)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "36.0 GB/s" in out
    assert float(rows(out, "cpu")["7B", "q4"][3]) == pytest.approx(36 / 3.58, rel=0.02)  # GB that a token reads


def test_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, 8 * GB)
    monkeypatch.setattr(diagnosis, "select_backend", lambda device: None)
    code, out = doctor(capsys)
    assert code == 0 and "\x1b" not in out
    assert "compute capability 8.6, 8.0 GB of 12.0 GB free, 360 GB/s at most" in out
    assert "CuPy 14.2.0, the driver's CUDA 12.8, NVRTC 12.9" in out
    table = rows(out, "cuda")
    assert table["7B", "q4"][2] == "yes" and float(table["7B", "q4"][3]) == pytest.approx(360 / 3.58, rel=0.02)
    assert table["13B", "q8"][2:] == ["no"]


def test_a_device_that_was_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "unavailable_reason", lambda *_: "there is no GPU")
    monkeypatch.setenv("PYLLAMA2_DEVICE", "cuda")
    code, out = doctor(capsys)
    assert code == 1 and out.endswith("problem: no cuda: there is no GPU\n")
    assert doctor(capsys, "--device", "cpu")[0] == 0


def test_an_installation_that_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise Pyllama2Error("the file is cut")

    monkeypatch.setattr(diagnosis, "Llama", broken)
    code, out = doctor(capsys, "--device", "cpu")
    assert code == 1 and "kernels    do not work" in out
    assert "problem: the bundled model does not run: the file is cut" in out


def test_what_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "numpy>=1",
        'fastapi>=0.1; extra == "serve"',
        "uvicorn; extra == 'serve'",
        'pytest; extra == "test"',
    ]
    monkeypatch.setattr(diagnosis.metadata, "requires", lambda package: requirements)
    monkeypatch.setattr(diagnosis, "_installed", lambda package: package == "uvicorn")
    _, out = doctor(capsys)
    assert [line.split()[:3] for line in out.splitlines() if "pip install" in line] == [
        ["pip", "install", '"pyllama2[serve]"']
    ]
    assert "the server (fastapi)" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = doctor(capsys, "--json", "--device", "cpu")
    found = json.loads(out)
    assert found["problems"] == [] and found["bandwidth"] is None and found["isa"]
    assert {one["model"] for one in found["prospects"]} == {"1.1B", "7B", "13B", "70B"}
