"""The stand-in for cupy refuses what a GPU would do wrongly in silence, and allows what is right."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_emulator import CUDARuntimeError, EmulationError, OutOfMemoryError, StandIn, missing_compiler

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=missing_compiler() or "")

SOURCE = """
#include <cuda_fp16.h>
extern "C" __global__ void scale(const float* x, float* y, int n, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * factor;
}
extern "C" __global__ void types(const __half* h, signed char* c, const unsigned* u, const void* any, long long n) {}
extern "C" __global__ void take_shared(int n) { extern __shared__ float s[]; s[threadIdx.x] = 0.0f; }
template <int kAdd>
__global__ void add(int* x) { atomicAdd(x, kAdd); }
"""


@pytest.fixture
def cupy() -> StandIn:
    return StandIn(mode="fast")


@pytest.fixture
def scale(cupy: StandIn) -> Any:
    return cupy.RawModule(code=SOURCE).get_function("scale")


def arguments(cupy: StandIn, n: int = 8) -> list[Any]:
    return [cupy.asarray(np.arange(n, dtype=np.float32)), cupy.zeros(n, np.float32), np.int32(n), np.float32(2)]


def test_right_arguments_are_taken(cupy: StandIn, scale: Any) -> None:
    given = arguments(cupy)
    scale((1,), (32,), tuple(given))
    assert (given[1].get() == 2 * np.arange(8)).all()
    types = scale.module.get_function("types")
    types(
        (1,), (1,), (cupy.zeros(1, np.float16), cupy.zeros(1, np.int8), cupy.zeros(1, np.uint32), given[0], np.int64(1))
    )
    byte, word = cupy.zeros(1, np.int8), cupy.zeros(1, np.uint32)  # an address does not keep its array
    types((1,), (1,), (np.uint64(0), byte.data, word, given[0].data.ptr, np.int64(1)))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (2, 8), (3, 2.0), (2, True), (2, np.int64(8)), (2, np.uint32(8)), (2, np.float32(8)), (3, np.float64(2)),
        (3, np.float16(2)), (3, np.int32(2)), (0, np.zeros(8, np.float32)), (0, None), (2, "8"), (0, np.float32(1)),
        (0, 12345), (2, np.zeros(1, np.int32)),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(cupy: StandIn, scale: Any, at: int, value: Any) -> None:
    given = arguments(cupy)
    given[at] = value
    with pytest.raises(EmulationError, match=f"argument {at} of scale"):
        scale((1,), (32,), tuple(given))


@pytest.mark.parametrize(
    ("at", "dtype"), [(0, np.float64), (0, np.int32), (0, np.float16), (1, np.uint32), (1, np.uint8)]
)
def test_arrays_of_another_type_are_refused(cupy: StandIn, scale: Any, at: int, dtype: Any) -> None:
    given = arguments(cupy)
    given[at] = cupy.zeros(8, dtype)
    with pytest.raises(EmulationError, match=f"argument {at} of scale is a"):
        scale((1,), (32,), tuple(given))


def test_views_with_gaps_are_refused(cupy: StandIn, scale: Any) -> None:
    wide = cupy.zeros((8, 2), np.float32)
    given = arguments(cupy)
    for gaps in (wide[:, 0], wide.T):
        with pytest.raises(EmulationError, match="not C-contiguous"):
            scale((1,), (32,), (gaps, *given[1:]))
    scale((1,), (32,), (wide[2:6].reshape(-1), *given[1:]))


def test_an_array_of_another_device_is_refused(cupy: StandIn, scale: Any) -> None:
    with pytest.raises(EmulationError, match="another device"):
        scale((1,), (32,), (StandIn().zeros(8, np.float32), *arguments(cupy)[1:]))


@pytest.mark.parametrize(
    "launch",
    [
        lambda f, a: f((1,), (1025,), a),
        lambda f, a: f((1,), (32, 64), a),
        lambda f, a: f((0,), (32,), a),
        lambda f, a: f((1, 65536), (32,), a),
        lambda f, a: f((1,), (1, 1, 65), a),
        lambda f, a: f((1,), (32,), a, shared_mem=(48 << 10) + 1),
    ],
)
def test_impossible_launches_are_refused(cupy: StandIn, scale: Any, launch: Callable[[Any, Any], None]) -> None:
    with pytest.raises(CUDARuntimeError):
        launch(scale, tuple(arguments(cupy)))


def test_the_number_of_arguments_counts(cupy: StandIn, scale: Any) -> None:
    for given in (arguments(cupy)[:3], [*arguments(cupy), np.int32(1)]):
        with pytest.raises(EmulationError, match="4 parameters"):
            scale((1,), (32,), tuple(given))


def test_shared_memory_beyond_48_kib_is_asked_for(cupy: StandIn, scale: Any) -> None:
    kernel = scale.module.get_function("take_shared")
    with pytest.raises(CUDARuntimeError):
        kernel((1,), (32,), (np.int32(1),), shared_mem=64 << 10)
    kernel.max_dynamic_shared_size_bytes = 64 << 10
    kernel((1,), (32,), (np.int32(1),), shared_mem=64 << 10)
    old = StandIn(arch=61)
    kernel = old.RawModule(code=SOURCE).get_function("take_shared")
    with pytest.raises(CUDARuntimeError):
        kernel.max_dynamic_shared_size_bytes = 64 << 10


def test_templates_are_found_by_their_expressions(cupy: StandIn) -> None:
    module = cupy.RawModule(code=SOURCE, options=("--std=c++17",), name_expressions=["add<3>", "add<5>"])
    counter = cupy.zeros(1, np.int32)
    for name in ("add<3>", "add<5>"):
        module.get_function(name)((2,), (4,), (counter,))
    assert counter.get()[0] == 8 * (3 + 5)
    for name in ("add<4>", "add", "nothing"):
        with pytest.raises(CUDARuntimeError, match="not found"):
            module.get_function(name)


# ---- capture


@pytest.fixture
def stream(cupy: StandIn) -> Any:
    return cupy.cuda.Stream(non_blocking=True)


def captured(cupy: StandIn, stream: Any, scale: Any, given: list[Any]) -> Any:
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        scale((1,), (32,), tuple(given))
        scale((1,), (32,), (given[1], given[1], *given[2:]))
        return stream.end_capture()


def test_a_graph_replays_its_launches(cupy: StandIn, stream: Any, scale: Any) -> None:
    given = arguments(cupy)
    graph = captured(cupy, stream, scale, given)
    assert not given[1].get().any()  # recorded, not run
    assert graph.nodes == ["scale", "scale"] and cupy.device.launches == []
    for factor in (1, 3):
        given[0].set(np.full(8, factor, np.float32), stream)
        graph.launch(stream)
        assert (given[1].get(stream) == 4 * factor).all()
    assert cupy.device.graph_launches == 2 and len(cupy.device.launches) == 4


def test_arguments_are_frozen_at_capture(cupy: StandIn, stream: Any, scale: Any) -> None:
    given = arguments(cupy)
    factor = np.full(1, 2, np.float32)
    given[3] = factor[0]
    graph = captured(cupy, stream, scale, given)
    factor[0] = 100
    graph.launch(stream)
    assert given[1].get(stream)[1] == 4


@pytest.mark.parametrize(
    "action",
    [
        lambda cupy, x, stream: cupy.empty(4, np.float32),
        lambda cupy, x, stream: cupy.zeros(4, np.float32),
        lambda cupy, x, stream: cupy.asarray(np.zeros(4)),
        lambda cupy, x, stream: x.get(),
        lambda cupy, x, stream: cupy.asnumpy(x),
        lambda cupy, x, stream: x.set(np.zeros(8, np.float32)),
        lambda cupy, x, stream: x.fill(0),
        lambda cupy, x, stream: x.__setitem__(slice(0, 4), 1),
        lambda cupy, x, stream: stream.synchronize(),
        lambda cupy, x, stream: cupy.cuda.Device().synchronize(),
        lambda cupy, x, stream: cupy.cuda.runtime.deviceSynchronize(),
        lambda cupy, x, stream: cupy.matmul(x.reshape(1, 8), x.reshape(8, 1)),
        lambda cupy, x, stream: cupy.RawModule(code=SOURCE + "// new").get_function("scale"),
        lambda cupy, x, stream: stream.begin_capture(),
    ],
)
def test_a_capture_refuses(cupy: StandIn, stream: Any, action: Callable[[Any, Any, Any], None]) -> None:
    x = cupy.zeros(8, np.float32)
    cupy.cuda.Device().synchronize()
    action_outside = cupy.zeros(8, np.float32)
    with stream:
        stream.begin_capture()
        with pytest.raises(CUDARuntimeError):
            action(cupy, x, stream)
        stream.end_capture()
    assert action_outside.get().shape == (8,)


def test_the_default_stream_cannot_be_captured(cupy: StandIn, stream: Any, scale: Any) -> None:
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream.null.begin_capture()
    given = tuple(arguments(cupy))
    cupy.cuda.Device().synchronize()
    stream.begin_capture()
    with pytest.raises(CUDARuntimeError, match="default stream"):
        scale((1,), (32,), given)
    stream.end_capture()
    with pytest.raises(CUDARuntimeError):
        stream.end_capture()


def test_a_graph_does_not_keep_its_arrays(cupy: StandIn, stream: Any, scale: Any) -> None:
    given = arguments(cupy)
    graph = captured(cupy, stream, scale, given)
    graph.launch(stream)
    del given[1]
    gc.collect()
    with pytest.raises(EmulationError, match="freed"):
        graph.launch(stream)


# ---- streams


def test_streams_that_are_not_ordered_do_not_share_arrays(cupy: StandIn, stream: Any, scale: Any) -> None:
    given = tuple(arguments(cupy))
    cupy.cuda.Device().synchronize()
    with stream:
        scale((1,), (32,), given)
    with pytest.raises(EmulationError, match="stream"):
        given[1].get()  # on the default stream
    with pytest.raises(EmulationError, match="stream"):
        given[0].fill(0)  # the kernel may still be reading it
    assert given[0].get()[1] == 1  # two readers are no conflict
    assert given[1].get(stream)[1] == 2
    given[0].fill(0)


def test_events_order_streams(cupy: StandIn, stream: Any, scale: Any) -> None:
    given = tuple(arguments(cupy))
    other = cupy.cuda.Stream(non_blocking=True)
    stream.wait_event(cupy.cuda.Stream.null.record())
    with stream:
        scale((1,), (32,), given)
    event = stream.record()
    with pytest.raises(EmulationError, match="stream"), other:
        scale((1,), (32,), (given[1], *given[1:]))
    other.wait_event(event)
    with other:
        scale((1,), (32,), (given[1], *given[1:]))
    other.synchronize()
    assert given[1].get()[1] == 4


def test_a_copy_that_does_not_block_arrives_with_the_synchronisation(cupy: StandIn) -> None:
    x = cupy.asarray(np.arange(4, dtype=np.float32))
    out = np.zeros(4, np.float32)
    x.get(out=out, blocking=False)
    assert np.isnan(out).all()
    cupy.cuda.get_current_stream().synchronize()
    assert (out == np.arange(4)).all()


# ---- memory


def test_memory_is_accounted_to_the_byte(cupy: StandIn) -> None:
    x, y = cupy.zeros(1000, np.float32), cupy.zeros(3, np.int8)
    view = x[10:20]
    assert cupy.device.exact_bytes == 4003
    pool = cupy.get_default_memory_pool()
    assert pool.used_bytes() == 4096 + 512 == pool.total_bytes()
    del x, y
    gc.collect()
    assert cupy.device.exact_bytes == 4000  # a view keeps its array
    del view
    gc.collect()
    assert (cupy.device.exact_bytes, pool.used_bytes(), pool.total_bytes()) == (0, 0, 4608)
    assert cupy.device.peak_exact_bytes == 4003
    total = cupy.cuda.runtime.memGetInfo()[1]
    assert cupy.cuda.runtime.memGetInfo() == (total - 4608, total)
    pool.free_all_blocks()
    assert cupy.cuda.Device().mem_info == (total, total)


def test_memory_ends() -> None:
    cupy = StandIn(total_bytes=1 << 20)
    kept = cupy.zeros(3 << 18, np.uint8)
    with pytest.raises(OutOfMemoryError):
        cupy.zeros(1 << 19, np.uint8)
    assert kept.nbytes == 3 << 18


def test_there_is_no_silent_conversion_to_numpy(cupy: StandIn) -> None:
    x = cupy.zeros(4, np.float32)
    for convert in (np.asarray, np.sum, lambda x: np.zeros(4) + x):
        with pytest.raises(TypeError):
            convert(x)
    with pytest.raises(TypeError):
        x.set([1, 2, 3, 4])
    with pytest.raises(TypeError):
        x.set(np.zeros(4))
    with pytest.raises(ValueError, match="hape"):
        x.set(np.zeros(5, np.float32))


def test_products_of_halves_have_float_sums(cupy: StandIn) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((4, 2048), (2048, 3)))
    out = cupy.empty((4, 3), np.float16)
    cupy.matmul(cupy.asarray(a), cupy.asarray(b), out=out)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(out.get() - exact).max() <= np.abs(exact).max() * 2.0**-11
    with pytest.raises(TypeError):
        cupy.matmul(cupy.asarray(a), cupy.asarray(b.astype(np.float32)))


def test_it_can_be_imported(cupy: StandIn) -> None:
    with cupy.installed():
        import cupy as imported
        from cupy.cuda import Stream

        assert imported is cupy and Stream is cupy.cuda.Stream
