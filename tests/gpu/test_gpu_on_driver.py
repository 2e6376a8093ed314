"""The CUDA backend on the pretended driver: memory, threads, devices, captures, and memory that the GPU reads late.

Each test also shows that it can fail: with a mistake that is put into the backend.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpu_backend import assert_same_logits, make_model, pair, pretended, random_tokens
from helpers.gpu_layout import Floats
from helpers.tiny import GQA
from pretended_driver import Driver, Machine
from pretended_driver.machine import NODE_BYTES

from pyllama2._gpu import CudaBackend, backend, cache, launchers, workspace
from pyllama2._gpu.launchers.attention import Attend
from pyllama2._gpu.planner import CHUNKS, GRAPHS
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.errors import DeviceMemoryError, Pyllama2Error

pytestmark = pytest.mark.subprocess

# Caches and workspaces of many megabytes, and next to no arithmetic.
WIDE_CACHE = ModelConfig(
    dim=128, hidden_dim=256, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=128, vocab_size=500, max_seq_len=8192
)  # fmt: skip


@pytest.fixture
def driver() -> Driver:
    return pretended()


@pytest.fixture
def machine(driver: Driver) -> Iterator[Machine]:
    with driver.machine() as machine:
        yield machine


def step(position: int, row: int = 0, token: int = 1) -> Batch:
    return Batch.of_sequence([token], row, position)


def in_thread(action: Callable[[], Any]) -> Any:
    """Run action in another thread. Returns its result, or raises its error."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results[0]


def test_a_single_token_is_normed_by_the_products_that_need_it(machine: Machine) -> None:
    """So no block waits for the last one of the kernel before it, which would norm."""
    found = CudaBackend(make_model(GQA))
    ours = found.new_cache(1, 40)
    for n in (1, 2):
        machine.launches.clear()
        found.forward(Batch.of_sequence([1] * n), ours)
        normed = [name for name in machine.launches if name.endswith("true>")]
        names = ["matvec_qkv", "matvec_swiglu"] * GQA.n_layers + ["matvec"] if n == 1 else []
        assert [name.split("<")[0] for name in normed] == names


# ---- memory


def least_memory(machine: Machine, found: CudaBackend, max_seq_len: int, n_rows: int = 1) -> None:
    """Shrink the device to the least memory with which the plan of a cache says that it fits."""
    enough = machine.settings.total_bytes
    too_little = machine.used[0]
    while enough - too_little > 512:
        machine.settings.total_bytes = (enough + too_little) // 2
        if found.plan(n_rows, max_seq_len).problem is None:
            enough = machine.settings.total_bytes
        else:
            too_little = machine.settings.total_bytes
    machine.settings.total_bytes = enough


def test_a_growing_cache_fits_where_the_plan_says_so(machine: Machine) -> None:
    """The old cache is there until its rows are copied, so the pool cannot give back all that it has."""
    found = CudaBackend(make_model(WIDE_CACHE), kv_dtype="float16")
    now = found.new_cache(1, 1024)
    for length in (2048, 4096, 8192):
        machine.settings.total_bytes = 8 << 30
        least_memory(machine, found, length)
        larger = found.new_cache(1, length)
        larger.copy_prefix(0, 0, 10, source=now)
        now.close()
        now = larger
    machine.settings.total_bytes = 8 << 30


def test_a_workspace_makes_room_for_a_cache(machine: Machine) -> None:
    """Chunks of prompts get smaller where a cache has no room otherwise. No bit depends on them."""
    found = CudaBackend(make_model(replace(GQA, hidden_dim=700, max_seq_len=700)), kv_dtype="float16")
    tokens = np.arange(600) % GQA.vocab_size
    prompt, chunks = Batch.of_sequence(tokens, 1, outputs="all"), []

    def logits() -> Floats:
        cache = found.new_cache(2, 600)
        assert found._work is not None
        chunks.append(found._work.n_tokens)
        try:
            return found.forward(prompt, cache)
        finally:
            cache.close()

    with_large, everything = logits(), machine.settings.total_bytes
    least_memory(machine, found, 600, 2)
    with_small = logits()
    machine.settings.total_bytes = everything
    assert np.array_equal(with_small, with_large) and np.array_equal(logits(), with_large)
    assert chunks == [CHUNKS[0], CHUNKS[1], CHUNKS[1]]  # a workspace that is long enough stays
    found.new_cache(1, 700)
    assert found._work is not None and found._work.n_tokens == CHUNKS[0]


def test_memory_that_cuda_refuses_is_an_error_with_numbers(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes it after the plan. The cache that is there goes on working."""
    found = CudaBackend(make_model(replace(GQA, max_seq_len=4096)), kv_dtype="float16")
    old = found.new_cache(1, 20)
    expected = found.forward(step(0), old)
    used = machine.used[0]
    plan = found.plan
    for n_rows, length in ((1, 4096), (5000, 20)):  # the workspace, and the cache
        with monkeypatch.context() as patch:
            patch.setattr(found, "plan", lambda *arguments: replace(plan(*arguments), problem=None))
            patch.setattr(machine.settings, "total_bytes", used)
            with pytest.raises(DeviceMemoryError, match=r"GiB are needed in all.* tokens .*GiB are free now") as caught:
                found.new_cache(n_rows, length)
        assert isinstance(caught.value, Pyllama2Error) and isinstance(caught.value, MemoryError)
        assert machine.used[0] <= used
        assert np.array_equal(found.forward(step(0), old), expected)


def test_a_model_that_cuda_refuses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.used.get(0, 0)
    upload = backend.upload

    def upload_beside_another(*arguments: Any) -> Any:
        monkeypatch.setattr(machine.settings, "total_bytes", machine.used.get(0, 0) + 4096)
        return upload(*arguments)

    monkeypatch.setattr(backend, "upload", upload_beside_another)
    with pytest.raises(DeviceMemoryError, match="CUDA refuses memory"):
        CudaBackend(make_model(GQA))
    assert machine.used.get(0, 0) == before


def test_graphs_of_all_caches_are_counted(machine: Machine) -> None:
    """As many as the plan has memory for. Those that were not used for the longest time go first."""
    found = CudaBackend(make_model(replace(GQA, n_layers=1)))
    found._graphs._most = 3
    caches = [found.new_cache(1, 30) for _ in range(4)]
    used = machine.used[0]
    nodes = 1 + 5 + 1
    for _ in range(2):
        for each in caches:
            for _ in range(3):
                found.forward(step(0), each)
            assert found._graphs.n_kept <= 3
            assert machine.used[0] - used <= 3 * nodes * NODE_BYTES
    captured = found._graphs.n_captured
    for each in caches[-3:]:
        found.forward(step(0), each)
    assert found._graphs.n_captured == captured
    assert CudaBackend(make_model(GQA))._graphs._most == GRAPHS


# ---- threads and devices


def test_a_row_is_copied_beside_a_capture(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy waits until the graph is recorded. It is neither in the graph nor lost."""
    assert copied_beside_a_capture(monkeypatch) and not machine.take_findings()


def test_a_missing_lock_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_beside_a_capture(monkeypatch, lock=False)
    assert any("copy_prefix" in sentence and "of another thread" in sentence for sentence in machine.take_findings())


def copied_beside_a_capture(monkeypatch: pytest.MonkeyPatch, *, lock: bool = True) -> bool:
    """Whether a row is copied by another thread while one records a graph."""
    found = CudaBackend(make_model(GQA), kv_dtype="float16")
    recorded, other = found.new_cache(1, 40), found.new_cache(2, 40)
    if not lock:
        other._turn = lambda: found._stream  # type: ignore[method-assign, assignment]
    for position in range(9):
        found.forward(step(position, token=position), other)
    for row in range(2):
        other.load_row(row, {name: a * (row + 1) for name, a in other.save_row(0, 9).items()})
    found.forward(step(0), recorded)
    in_capture, copied = threading.Event(), threading.Event()
    plain = found._forward_open().decode_step

    def decode_step(*arguments: Any) -> None:
        plain(*arguments)
        in_capture.set()
        copied.wait(1)

    monkeypatch.setattr(found._forward_open(), "decode_step", decode_step)

    def copy() -> None:
        assert in_capture.wait(60)
        other.copy_prefix(0, 1, 9)
        copied.set()

    thread = threading.Thread(target=copy)
    thread.start()
    found.forward(step(1), recorded)
    thread.join(60)
    first, second = other.save_row(0, 9), other.save_row(1, 9)
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_a_thread_may_record_a_graph(machine: Machine) -> None:
    """CuPy asks for the free memory with a thread's first launch, and a capture does not allow that."""
    found = CudaBackend(make_model(GQA))
    ours = found.new_cache(1, 20)
    found.forward(step(0), ours)
    for position in (1, 2):
        in_thread(lambda position=position: found.forward(step(position), ours))
    found.forward(step(3), ours)
    found.forward(step(4), ours)
    assert found.describe().launches == "one graph for each decoding step" and found._graphs.n_captured == 1
    # The seeded mistake:
    found._graphs._thread = type("Any", (), {"has_launched": True})()
    other = found.new_cache(1, 20)
    for position in (0, 1):
        in_thread(lambda position=position: found.forward(step(position), other))
    assert machine.take_findings() == ["asking for the free memory during the capture of a graph"]
    assert found.describe().launches.startswith("kernel by kernel")


def use_from_another_device(found: CudaBackend, cpu: Any) -> None:
    ours, theirs = found.new_cache(2, 40), cpu.new_cache(2, 40)
    tokens = random_tokens(GQA, 12)
    prompt = Batch.of_sequence(tokens, outputs="all")
    assert_same_logits(cpu, cpu.forward(prompt, theirs), found.forward(prompt, ours))
    ours.copy_prefix(0, 1, 12)
    theirs.copy_prefix(0, 1, 12)
    ours.load_row(0, ours.save_row(1, 5))
    for position in range(12, 16):
        batch = step(position, 1)
        assert_same_logits(cpu, cpu.forward(batch, theirs), found.forward(batch, ours))
    assert found.describe().launches == "one graph for each decoding step"
    free = found.free_bytes()
    assert free is not None and free < 1 << 30
    ours.close()


def test_a_backend_keeps_its_device(driver: Driver) -> None:
    """It is used by threads whose current device is another: one with all memory taken."""
    with driver.machine(n_devices=2, total_bytes=1 << 30) as machine:
        with driver.cupy.cuda.Device(1):
            cpu, found = pair(make_model(GQA), "float16")
        machine.used[0] = machine.settings.total_bytes
        use_from_another_device(found, cpu)
        in_thread(lambda: use_from_another_device(found, cpu))
        machine.used[0] = 0
        assert machine.memory.of_device(0) == []
        found.close()


def test_a_wrong_device_is_found(driver: Driver) -> None:
    with driver.machine(n_devices=2) as machine:
        with driver.cupy.cuda.Device(1):
            _, found = pair(make_model(GQA), "float16")
            ours = found.new_cache(2, 40)
        ours._turn = lambda: found._stream  # type: ignore[method-assign, assignment]
        with pytest.raises((RuntimeError, ValueError)):
            ours.copy_prefix(0, 1, 3)
        machine.take_findings()


def test_rows_are_not_copied_between_backends(machine: Machine) -> None:
    """Their streams are not ordered, and their devices may differ."""
    one, other = (CudaBackend(make_model(GQA)).new_cache(1, 20) for _ in range(2))
    with pytest.raises(ValueError, match="of the same backend"):
        one.copy_prefix(0, 0, 5, source=other)


# ---- captures, and memory of the host


def test_an_allocation_in_a_capture_is_found(driver: Driver, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = CudaBackend(make_model(GQA))
    ours = found.new_cache(1, 20)
    attend = Attend.__call__

    def attend_with_scratch(*arguments: Any) -> None:
        driver.cupy.empty(64 << 20, np.uint8)
        driver.cupy.get_default_memory_pool().free_all_blocks()
        attend(*arguments)

    monkeypatch.setattr(Attend, "__call__", attend_with_scratch)
    for position in range(3):
        found.forward(step(position), ours)
    assert machine.take_findings()
    assert found.describe().launches.startswith("kernel by kernel")


def late_reads(driver: Driver) -> list[str]:
    """Findings of a model that is loaded and used on a GPU that reads all memory of the host by itself."""
    with driver.machine(late_host_reads=True) as machine, perturbed_memory():
        config = replace(GQA, dim=512, hidden_dim=800, vocab_size=1000, max_seq_len=2048)
        cpu, found = pair(make_model(config), "float16")
        ours, theirs = found.new_cache(2, 2000), cpu.new_cache(2, 2000)
        prompt = Batch.of_sequence(random_tokens(config, 40))
        expected = cpu.forward(prompt, theirs)
        logits = found.forward(prompt, ours)
        saved = ours.save_row(0, 40)
        ours.load_row(1, {name: array.copy() for name, array in saved.items()})
        again = ours.save_row(1, 40)
        driver.cupy.cuda.Device().synchronize()
        findings = machine.take_findings()
        if not findings:
            assert_same_logits(cpu, expected, logits)
            assert all(np.array_equal(saved[name], again[name]) for name in saved)
        return findings


@contextmanager
def perturbed_memory() -> Iterator[None]:
    """glibc overwrites memory that is freed."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-6, 0xA5)  # M_PERTURB
    try:
        yield
    finally:
        libc.mallopt(-6, 0)


def test_host_memory_stays_until_a_gpu_has_read_it(driver: Driver) -> None:
    assert late_reads(driver) == []


def test_a_pageable_temporary_is_found(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_to(cupy: Any, source: Any, target: Any) -> None:
        target.set(source)

    for module in (cache, launchers.upload, workspace):
        monkeypatch.setattr(module, "copy_to", copy_to)
    assert any("pageable memory" in sentence for sentence in late_reads(driver))


def test_a_buffer_that_is_reused_too_early_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of a step are written over while the last ones are still to be copied."""
    cpu, found = pair(make_model(GQA), "float16")
    ours, theirs = found.new_cache(1, 40), cpu.new_cache(1, 40)
    none = np.empty(0, np.int32)

    def run() -> bool:
        for position in range(4):
            batch = replace(step(position, token=position + 3), outputs=none)
            found.forward(batch, ours)
            cpu.forward(batch, theirs)
        return np.array_equal(found.forward(step(4), ours), cpu.forward(step(4), theirs))

    assert run() and not machine.take_findings()
    monkeypatch.setattr(type(found._stream), "synchronize", lambda self: None)
    run()
    monkeypatch.undo()
    found._stream.synchronize()
    assert any("pinned memory" in sentence for sentence in machine.take_findings())


# ---- importing cupy


def run_python(code: str, **variables: str) -> list[str]:
    """Run a program without the pretended driver. Returns the lines that it prints."""
    env = {name: value for name, value in os.environ.items() if name != "CUPY_CACHE_DIR"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_home_that_cannot_be_written(driver: Driver, tmp_path: Path) -> None:
    """CuPy makes a folder in it when it is imported. Kernels are kept in a temporary one instead."""
    home = tmp_path / "home"
    home.write_text("no folder")
    code = "from pyllama2._gpu import availability as a; a._provide_cache_folder(); import cupy, os; "
    code += "print(cupy.__version__); print(os.environ['CUPY_CACHE_DIR'])"
    version, folder = run_python(code, HOME=str(home))
    assert version == driver.cupy.__version__
    assert folder and not Path(folder).exists()  # it is gone with the process


def test_without_a_driver_cupy_is_not_imported(driver: Driver) -> None:
    """That would take most of the time in which a command starts."""
    code = "from pyllama2._gpu import CudaBackend; import sys; print(CudaBackend.unavailable_reason()); "
    code += "print('cupy' in sys.modules)"
    reason, is_imported = run_python(code)
    assert reason.startswith("there is no NVIDIA driver") and is_imported == "False"
