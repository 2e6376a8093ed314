"""The real CuPy on the pretended driver: work that waits, memory, streams, captures, devices, and mistakes it notes."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pretended_driver
import pytest
from helpers.gpu_backend import has_gpu, pretended
from pretended_driver import Driver, Machine

SOURCE = """
template <int kBy> __global__ void scale(float* x, float f) { x[threadIdx.x] *= f * kBy; }
extern "C" __global__ void add(float* x, const float* y) { x[threadIdx.x] += y[threadIdx.x]; }
"""
N = 512


@pytest.fixture
def driver() -> Driver:
    return pretended()


@pytest.fixture
def machine(driver: Driver) -> Iterator[Machine]:
    with driver.machine(n_devices=2, total_bytes=64 << 20) as machine:
        yield machine


@pytest.fixture
def cupy(driver: Driver, machine: Machine) -> Any:
    return driver.cupy


def kernel(cupy: Any, name: str) -> Any:
    names = ("scale<2>",) if "<" in name else None
    return cupy.RawModule(code=SOURCE, options=("--std=c++17",), name_expressions=names).get_function(name)


def ones(cupy: Any) -> Any:
    return cupy.asarray(np.ones(N, np.float32))


def test_it_is_here_where_cupy_is() -> None:
    """A release of CuPy whose runtime cannot be led to the driver is seen here, and does not skip all other tests."""
    if has_gpu() or pretended_driver.missing():
        pytest.skip(pretended_driver.missing() or "there is a GPU")
    assert pretended_driver.install().cupy.__version__


def test_without_a_machine_there_is_no_driver(driver: Driver) -> None:
    runtime = driver.cupy.cuda.runtime
    with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorInsufficientDriver"):
        runtime.getDeviceCount()


def test_work_waits_until_the_host_does(cupy: Any, machine: Machine) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x = ones(cupy)
        kernel(cupy, "scale<2>")((1,), (N,), (x, np.float32(3)))
        result = cupy.cuda.alloc_pinned_memory(4 * N)
        found = np.frombuffer(result, np.float32, N)
        x.get(out=found, blocking=False)
        assert not machine.launches and np.isnan(found).all()
        stream.synchronize()
        assert machine.launches == ["scale<2>"] and (found == 6).all()


def test_denormals_are_flushed_as_cupy_asks_for(cupy: Any) -> None:
    x = cupy.asarray(np.full(N, 1e-38, np.float32))
    kernel(cupy, "scale<2>")((1,), (N,), (x, np.float32(0.25)))
    assert (x.get() == 0).all()
    assert np.float32(1e-38) * np.float32(0.5) > 0  # the host keeps its own mode


def test_streams_are_ordered_by_events_alone(cupy: Any, machine: Machine) -> None:
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    x = ones(cupy)
    cupy.cuda.Device().synchronize()
    scale = kernel(cupy, "scale<2>")
    with first:
        scale((1,), (N,), (x, np.float32(1)))
        event = first.record()
    second.synchronize()
    assert not machine.launches
    with second:
        second.wait_event(event)
        add = kernel(cupy, "add")
        add((1,), (N,), (x, x))
        second.synchronize()
    assert machine.launches == ["scale<2>", "add"]


def test_each_thread_has_its_own_device_and_stream(cupy: Any) -> None:
    seen: list[Any] = []

    def other() -> None:
        seen.append((cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr))

    with cupy.cuda.Device(1), cupy.cuda.Stream(non_blocking=True):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [(0, 0)]


def test_memory_is_limited_and_given_in_pieces(cupy: Any, machine: Machine) -> None:
    before = machine.used.get(0, 0)
    small, large = cupy.empty(1000, np.uint8), cupy.empty((1 << 20) + 1, np.uint8)
    assert machine.used[0] - before == 1024 + (2 << 20)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(63 << 20, np.uint8)
    del small, large
    cupy.get_default_memory_pool().free_all_blocks()
    assert machine.used[0] == before


def test_signals_are_handled_after_a_call(cupy: Any, machine: Machine) -> None:
    """As with CUDA, which is not written in Python: a call that Ctrl-C interrupts has done its work."""
    x = ones(cupy)
    for _ in range(3):
        kernel(cupy, "scale<2>")((1,), (N,), (x, np.float32(1)))
    stream = machine.stream(0)
    assert stream.given > stream.done

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    machine.submit(stream, "an interrupt", interrupt)
    machine.submit(stream, "more", lambda: machine.launches.append("more"))
    with pytest.raises(KeyboardInterrupt):
        cupy.cuda.Device().synchronize()
    assert machine.launches == ["scale<2>"] * 3 + ["more"]


# ---- mistakes


def pinned_array(cupy: Any) -> Any:
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * N), np.float32, N)


def write_before_the_copy(cupy: Any) -> None:
    staged, x = pinned_array(cupy), cupy.empty(N, np.float32)
    staged.fill(1)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x.set(staged, stream)
        staged.fill(2)
        stream.synchronize()


def use_memory_of_another_device(cupy: Any) -> None:
    with cupy.cuda.Device(1):
        x = ones(cupy)
        cupy.cuda.Device(1).synchronize()
    y = ones(cupy)
    kernel(cupy, "add")((1,), (N,), (y, cupy.ndarray(N, np.float32, foreign(cupy, x))))
    cupy.cuda.Device().synchronize()


def foreign(cupy: Any, x: Any) -> Any:
    """The memory of x, whose device CuPy does not know."""
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(x.data.ptr, x.nbytes, x, 0), 0)


def use_a_stream_of_another_device(cupy: Any) -> None:
    x, scale = ones(cupy), kernel(cupy, "scale<2>")
    with cupy.cuda.Device(1):
        other = cupy.cuda.Stream(non_blocking=True)
    with pytest.raises(RuntimeError):
        scale((1,), (N,), (x, np.float32(1)), stream=other)


def launch_after_the_memory_is_freed(cupy: Any) -> None:
    x = ones(cupy)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        add, y = kernel(cupy, "add"), ones(cupy)
        stream.begin_capture()
        add((1,), (N,), (y, x))
        graph = stream.end_capture()
        del x
        cupy.get_default_memory_pool().free_all_blocks()
        graph.launch(stream)
        stream.synchronize()


def capture(cupy: Any, action: Callable[[Any], None]) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x, scale = ones(cupy), kernel(cupy, "scale<2>")
        scale((1,), (N,), (x, np.float32(1)))
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeThreadLocal)
        with pytest.raises(RuntimeError):
            scale((1,), (N,), (x, np.float32(1)))
            action(stream)
            raise RuntimeError
        with pytest.raises(RuntimeError):
            stream.end_capture()
            raise RuntimeError


def allocate_in_a_capture(cupy: Any) -> None:
    capture(cupy, lambda _: cupy.empty(3 << 20, np.uint8))


def wait_in_a_capture(cupy: Any) -> None:
    capture(cupy, lambda stream: stream.synchronize())


def launch_of_another_thread_in_a_capture(cupy: Any) -> None:
    def action(stream: Any) -> None:
        def other() -> None:
            with stream:
                kernel(cupy, "add")((1,), (N,), (y, y))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    y = ones(cupy)
    capture(cupy, action)


@pytest.mark.parametrize(
    ("mistake", "finding"),
    [
        (write_before_the_copy, "pinned memory of the host was written or freed before 2048 bytes"),
        (use_memory_of_another_device, "argument 1 of add is memory of device 1, the kernel runs on 0"),
        (use_a_stream_of_another_device, "scale<2> of device 0 is launched on a stream of 1"),
        (launch_after_the_memory_is_freed, "argument 1 of add is no memory of a device, or none any more"),
        (allocate_in_a_capture, "an allocation during the capture of a graph"),
        (wait_in_a_capture, "waiting for the stream during the capture of a graph"),
        (launch_of_another_thread_in_a_capture, "add of another thread was recorded in a capture, and is not done"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_mistakes_are_found(cupy: Any, machine: Machine, mistake: Callable[[Any], None], finding: str) -> None:
    mistake(cupy)
    machine.run_all()
    found = machine.take_findings()
    assert len(found) == 1 and finding in found[0]


def test_a_temporary_that_the_gpu_reads_late(driver: Driver) -> None:
    """Its memory is given back to the system before the copy is done. Elsewhere the call copies it."""
    for late in (False, True):
        with driver.machine(late_host_reads=late) as machine, driver.cupy.cuda.Stream(non_blocking=True) as stream:
            x = driver.cupy.empty(1 << 20, np.float32)
            x.set(np.ones(1 << 20, np.float32))
            stream.synchronize()
            found = machine.take_findings()
        assert found == (["pageable memory of the host was written or freed before 4194304 bytes were copied"] * late)


def test_compiled_templates_are_kept_on_disk(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That CuPy does since 14.2."""
    compiler = pytest.importorskip("cupy.cuda.compiler")
    compiled: list[Any] = []
    original = compiler._NVRTCProgram.compile

    def compile(self: Any, *arguments: Any) -> Any:
        compiled.append(self.name_expressions)
        return original(self, *arguments)

    monkeypatch.setattr(compiler._NVRTCProgram, "compile", compile)
    source = SOURCE.replace("scale", "rescale")
    for _ in range(2):
        module = cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=("rescale<3>",))
        x = ones(cupy)
        module.get_function("rescale<3>")((1,), (N,), (x, np.float32(1)))
        assert (x.get() == 3).all()
    assert compiled.count(("rescale<3>",)) == 1


def test_nvrtc_works_beside_it(driver: Driver) -> None:
    """It looks for a driver by itself, and must not take this one for a whole one."""
    nvrtc = importlib.import_module("nvrtc")
    try:
        compiler = nvrtc.Nvrtc()
    except nvrtc.CompileError as error:
        pytest.skip(str(error))
    with driver.machine():
        assert compiler.compile('extern "C" __global__ void k() {}', (), (), 80).cubin.startswith(b"\x7fELF")
