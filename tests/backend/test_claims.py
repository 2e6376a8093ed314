"""Work is claimed, not dealt: threads that are stopped anywhere, and the trace of what they did."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import CONFIGS, quantized_model, random_weights

from pyllama2._cpu import CpuBackend, trace, wait_policy
from pyllama2.backend.base import Batch

CONFIG = next(iter(CONFIGS.values()))
SOURCE = Path(__file__).parents[1] / "kernels" / "team.c"


@pytest.mark.subprocess
@pytest.mark.parametrize("sanitizer", [(), ("-fsanitize=thread",)], ids=["plain", "ThreadSanitizer"])
def test_every_unit_is_written_once_whoever_is_stopped(sanitizer: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    program = tmp_path / "team"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-O2", "-std=gnu11", "-pthread"]
    built = subprocess.run(
        ["gcc", *flags, *sanitizer, str(SOURCE), "-o", str(program)], capture_output=True, text=True, env=environment
    )
    if sanitizer and "tsan" in built.stderr:
        pytest.skip("gcc has no library of ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, env=environment)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run with this system's addresses")
    assert result.returncode == 0, result.stdout + result.stderr
    of_others, redone = map(int, result.stdout.split())
    assert of_others > redone > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 2000),
        ({"OMP_WAIT_POLICY": "passive"}, 0),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 1 << 40),
        ({"GOMP_SPINCOUNT": "17"}, 17),
        ({"GOMP_SPINCOUNT": "17", "OMP_WAIT_POLICY": "passive"}, 17),
        ({"GOMP_SPINCOUNT": "infinity"}, 1 << 40),
        ({"GOMP_SPINCOUNT": "many"}, 2000),
    ],
)
def test_waiting_follows_the_settings_of_openmp(
    settings: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert wait_policy.spins() == expected


class TestTrace:
    PROGRAM = """
import os, sys
from helpers.tiny import CONFIGS, quantized_model, random_weights
from pyllama2._cpu import CpuBackend
from pyllama2.backend.base import Batch
CONFIG = next(iter(CONFIGS.values()))
backends = [CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4", 32), n_threads=2) for _ in range(2)]
for backend in backends:
    cache = backend.new_cache(1, 64)
    backend.forward(Batch.of_sequence(list(range(20))), cache)
    backend.forward(Batch.of_sequence([1], start=20), cache)
if os.fork() == 0:
    sys.exit()
os.wait()
backends[0].close()
"""

    def test_steps_and_waits_of_each_thread(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.json"
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "PYLLAMA2_TRACE": str(path)}
        subprocess.run([sys.executable, "-c", self.PROGRAM], check=True, env=environment, timeout=60)
        for file in (path, Path(f"{path}.2")):  # the second one is written at exit
            events = json.loads(file.read_text())["traceEvents"]
            passes = [event for event in events if event["tid"] == 0]
            assert [event["name"] for event in passes] == ["pass of 20 tokens", "pass of 1 token"]
            first, last = passes[0]["ts"], passes[1]["ts"] + passes[1]["dur"]
            for thread in (1, 2):
                own = [event for event in events if event["tid"] == thread]
                names = [event["name"] for event in own]
                assert names.count("w1 w3, silu *") >= 2 * CONFIG.n_layers
                assert names.count("wait: w1 w3, silu *") >= 2 * CONFIG.n_layers
                assert all(event["ph"] == "X" and event["dur"] >= 0 for event in own)
                ends = [event["ts"] + event["dur"] for event in own]
                assert first <= own[0]["ts"] and ends[-1] <= last
                assert all(end <= event["ts"] + 0.01 for end, event in zip(ends, own[1:], strict=False))
            rows = [event["args"]["pieces"] for event in events if event["name"] == "wo + residual"]
            assert sum(rows) >= 2 * CONFIG.n_layers

    def test_without_it_nothing_is_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PYLLAMA2_TRACE", raising=False)
        backend = CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4", 32), n_threads=2)
        backend.forward(Batch.of_sequence([1]), backend.new_cache(1, 8))
        assert backend._forward is not None
        assert backend._forward.workspace.events() == []

    @pytest.mark.parametrize(("place", "why"), [("no/trace", "No such file or directory"), ("", "Is a directory")])
    def test_a_file_that_cannot_be_written_is_refused(
        self, place: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_TRACE", str(tmp_path / place))
        monkeypatch.setattr(trace, "_numbers", itertools.count(1))
        with pytest.raises(ValueError, match=f"PYLLAMA2_TRACE: cannot write .*: {why}"):
            CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4", 32), n_threads=1)

    def test_a_file_that_cannot_be_written_at_the_end_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder := tmp_path / "folder").mkdir()
        monkeypatch.setenv("PYLLAMA2_TRACE", str(folder / "trace"))
        backend = CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4", 32), n_threads=1)
        shutil.rmtree(folder)
        backend.close()
        assert "PYLLAMA2_TRACE: cannot write" in caplog.text
        assert [record.levelname for record in caplog.records] == ["ERROR"]  # which -q says, too
