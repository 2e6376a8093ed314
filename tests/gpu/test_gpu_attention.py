"""Attention and the KV cache on the GPU: the CPU backend's bits for every shape and cache type, no finding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import StandIn, missing_compiler
from helpers.gpu_attention import Floats, config_of, cpu_kernels, expected_attention, filled_caches, random_row
from helpers.gpu_layout import SMALLEST_SCALE, assert_quantized

from pyllama2._cpu.cache import CpuKVCache
from pyllama2._gpu.cache import CudaKVCache, LayerCache
from pyllama2._gpu.launchers.attention import Attend, AttendPrompt, attend_arrays, queries_of
from pyllama2._gpu.launchers.cache import FinishQkv
from pyllama2._gpu.layout import Vectors, allocate
from pyllama2.config import ModelConfig
from pyllama2.errors import ClosedError

KV_DTYPES = ("float16", "int8")
# heads, key heads, head_dim: MHA and GQA, heads that are cut by groups, two blocks for the heads of one key head
HEADS = [(2, 2, 64), (6, 2, 64), (2, 1, 80), (1, 1, 128), (8, 1, 128), (12, 1, 8), (4, 2, 6), (4, 1, 256)]
RAGGED = [0, 40, 31, 270, 255]  # positions of five tokens of as many rows


@pytest.fixture(scope="module")
def attention_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cpu_kernels(tmp_path_factory.mktemp("kernels"))


def queries(config: ModelConfig, n: int) -> Floats:
    return np.random.default_rng(n).standard_normal((n, config.n_heads, config.head_dim)).astype(np.float32)


class Single:
    """Attention of single tokens, with what it needs."""

    def __init__(
        self, cupy: Any, cache: CudaKVCache, config: ModelConfig, n: int, type: str = "q4", group_size: int = 32
    ) -> None:
        self.cupy, self.cache, self.config = cupy, cache, config
        self.launch = Attend(cupy, config, cache.dtype, group_size)
        self.scratch = allocate(cupy, attend_arrays(config, n, cache.max_seq_len))
        self.scratch["counters"].fill(0)
        self.out = cupy.empty((n, config.n_heads, config.head_dim), np.float32)
        self.to = Vectors.empty(cupy, type, n, config.q_dim, group_size)

    def __call__(
        self, q: Floats, rows: list[int], positions: list[int], n_positions: int = 0, layer: int = 0
    ) -> Floats:
        device = [self.cupy.asarray(np.asarray(a, np.int32)) for a in (rows, positions)]
        self.launch(
            self.cupy.asarray(q), self.cache.layers[0], *device, len(rows), n_positions or max(positions) + 1,
            self.scratch["parts"], self.scratch["counters"], self.out, self.to,
        )  # fmt: skip
        assert not self.scratch["counters"].get().any()
        return self.out.get()[: len(rows)]


def prompt(
    cupy: Any, cache: CudaKVCache, config: ModelConfig, q: Floats, rows: list[int], positions: list[int]
) -> Floats:
    launch = AttendPrompt(cupy, config, cache.dtype)
    tiles = launch.tiles(np.asarray(rows, np.int32))
    device = [cupy.asarray(np.asarray(a, np.int32)) for a in (rows, positions)]
    out = cupy.empty(q.shape, np.float32)
    launch(cupy.asarray(q), cache.layers[0], *device, len(rows), cupy.asarray(tiles), len(tiles), out)
    return out.get()


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_single_tokens_have_the_bits_of_the_cpu(
    cupy: Any, heads: tuple[int, int, int], dtype: str, attention_of: Any
) -> None:
    config = config_of(heads)
    rows, positions = [1, 0, 3, 4, 2], RAGGED
    lengths = [positions[rows.index(row)] + 1 for row in range(5)]
    cpu, gpu = filled_caches(cupy, config, lengths, dtype)
    q = queries(config, 5)
    expected = expected_attention(attention_of, cpu, q, rows, positions)
    single = Single(cupy, gpu, config, 5)
    assert np.array_equal(single(q, rows, positions), expected)
    assert_quantized(single.to, expected.reshape(5, -1))


@pytest.mark.parametrize("heads", [(1, 1, 8), (4, 2, 6)], ids=str)
def test_many_spans_are_merged_as_on_the_cpu(cupy: Any, heads: tuple[int, int, int], attention_of: Any) -> None:
    """Some, and more than have their factors at once: 36 and 11."""
    config = config_of(heads)
    cpu, gpu = filled_caches(cupy, config, [9000, 2600], "float16")
    q = queries(config, 2)
    expected = expected_attention(attention_of, cpu, q, [0, 1], [8999, 2599])
    assert np.array_equal(Single(cupy, gpu, config, 2)(q, [0, 1], [8999, 2599]), expected)


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prompts_have_the_bits_of_the_cpu(
    cupy: Any, heads: tuple[int, int, int], dtype: str, attention_of: Any
) -> None:
    """Tokens of three rows, of which one goes over a span's end, and one skips positions."""
    config = config_of(heads)
    rows = [1] * 40 + [0] * 3 + [2] * 5
    positions = [*range(230, 270), *range(3), 4, 5, 9, 30, 31]
    cpu, gpu = filled_caches(cupy, config, [3, 270, 32], dtype)
    q = queries(config, len(rows))
    expected = expected_attention(attention_of, cpu, q, rows, positions)
    assert np.array_equal(prompt(cupy, gpu, config, q, rows, positions), expected)


def test_close_to_a_softmax_in_double(cupy: Any) -> None:
    config = config_of((4, 2, 64))
    _, gpu = filled_caches(cupy, config, [301], "float16")
    saved = random_row(config, 301, "float16", 0)
    keys, values = (np.repeat(saved[name][0].astype(np.float64), 2, axis=0) for name in ("keys", "values"))
    q = queries(config, 1)
    scores = np.einsum("hd,hsd->hs", q[0].astype(np.float64), keys) / 8
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = np.einsum("hs,hsd->hd", weights / weights.sum(1, keepdims=True), values)
    found = Single(cupy, gpu, config, 1)(q, [0], [300])
    assert np.abs(found[0] - expected).max() < 2e-6


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_a_token_does_not_see_the_batch_nor_the_bucket(cupy: Any, dtype: str) -> None:
    config = config_of((6, 2, 64))
    _, gpu = filled_caches(cupy, config, [600, 600], dtype)
    q = queries(config, 8)
    single = Single(cupy, gpu, config, 8)
    rows, positions = [0, 1, 0, 1, 1, 0, 1, 1], [599, 299, 1, 511, 512, 256, 40, 598]
    together = single(q, rows, positions)
    for token in (0, 1, 6):
        alone = single(q[token : token + 1], rows[token : token + 1], positions[token : token + 1])
        assert np.array_equal(alone[0], together[token])
    assert np.array_equal(single(q[1:2], [1], [299], n_positions=602)[0], together[1])


def test_a_prompt_may_be_cut_anywhere(cupy: Any) -> None:
    config = config_of((3, 1, 64))
    _, gpu = filled_caches(cupy, config, [300], "float16")
    q = queries(config, 60)
    positions = [*range(240, 300)]
    whole = prompt(cupy, gpu, config, q, [0] * 60, positions)
    for cut in (1, 17, 43):
        parts = [prompt(cupy, gpu, config, q[part], [0] * len(q[part]), positions[part])
                 for part in (slice(cut), slice(cut, None))]  # fmt: skip
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(Single(cupy, gpu, config, 1)(q[20:21], [0], [260])[0], whole[20])


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("type", ["q4", "q8"])
@pytest.mark.parametrize("heads", [(2, 1, 64), (3, 3, 80), (5, 5, 6)], ids=str)
def test_the_quantized_form(cupy: Any, heads: tuple[int, int, int], type: str, group_size: int) -> None:
    """By the block that has a whole group, or by the last block of the token; zeros after the end."""
    config = config_of(heads)
    _, gpu = filled_caches(cupy, config, [20, 20], "float16")
    single = Single(cupy, gpu, config, 2, type, group_size)
    out = single(queries(config, 2), [1, 0], [19, 7])
    assert_quantized(single.to, out.reshape(2, -1))


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_not_even_nan_reaches_earlier_tokens(cupy: Any, dtype: str) -> None:
    config = config_of((4, 2, 64))
    _, clean = filled_caches(cupy, config, [64], dtype)
    arrays = random_row(config, 64, dtype, 0)
    for name in ("keys", "values") if dtype == "float16" else ("key_scales", "value_scales"):
        arrays[name][:, :, 41:] = np.nan
    dirty = CudaKVCache(cupy, config, 1, 64, dtype)
    dirty.load_row(0, arrays)
    q = queries(config, 60)
    rows, positions = [0] * 60, [*range(60)]
    expected, found = (prompt(cupy, cache, config, q, rows, positions) for cache in (clean, dirty))
    assert np.array_equal(found[:41], expected[:41]) and np.isnan(found[41:]).all()
    one = Single(cupy, dirty, config, 2)(q[40:42], [0, 0], [40, 41])
    assert np.array_equal(one[0], expected[40]) and np.isnan(one[1]).all()


@pytest.fixture
def emulator() -> Any:
    """Makes an emulated CuPy with these settings, whether there is a GPU or not."""
    if reason := missing_compiler():
        pytest.skip(reason)
    return StandIn


@pytest.mark.subprocess
def test_no_order_of_threads_shows(emulator: Any) -> None:
    """Nor that of blocks: whichever merges the spans, or quantizes a token, is the last."""
    config = config_of((3, 3, 80))
    q, rows, positions = queries(config, 2), [0, 1], [300, 260]
    found = []
    for order in ("forward", "backward", 1, 2):
        cupy = emulator(mode="check", order=order)
        _, gpu = filled_caches(cupy, config, [301, 261], "int8")
        single = Single(cupy, gpu, config, 2, "q4", 64)
        out = single(q, rows, positions)
        assert np.array_equal(prompt(cupy, gpu, config, q, rows, positions), out)
        assert_quantized(single.to, out.reshape(2, -1))
        found.append(out)
    assert all(np.array_equal(out, found[0]) for out in found)


@pytest.mark.subprocess
@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", [(2, 2, 128), (8, 1, 128), (3, 1, 64), (2, 2, 80)], ids=str)
def test_counted_sectors_are_used(emulator: Any, heads: tuple[int, int, int], dtype: str) -> None:
    """Keys and values are read once, for all heads that share them, in whole sectors."""
    config, cupy = config_of(heads), emulator(mode="count")
    _, gpu = filled_caches(cupy, config, [512], dtype)
    Single(cupy, gpu, config, 1)(queries(config, 1), [0], [511])
    counts = cupy.device.counts[-1]
    assert counts.kernel.startswith("attend<")
    assert counts.sector_use > 0.95
    read = 2 * 512 * config.n_kv_heads * (config.head_dim * np.dtype(dtype).itemsize + (4 if dtype == "int8" else 0))
    others = 2 * config.q_dim * 4 + config.n_heads * 2 * (config.head_dim + 2) * 4 + 64  # queries, outputs, parts
    assert read < counts.bytes_read <= read + others


def test_launches_of_wrong_arrays_are_refused(cupy: Any) -> None:
    config = config_of((4, 2, 64))
    _, gpu = filled_caches(cupy, config, [20], "float16")
    single = Single(cupy, gpu, config, 1)
    with pytest.raises(ValueError, match="q must be"):
        single(queries(config, 1)[:, :3], [0], [3])
    with pytest.raises(ValueError, match="parts must be"):
        single(queries(config, 1), [0], [3], n_positions=1000)
    with pytest.raises(ValueError, match="cannot go to"):
        Single(cupy, gpu, config_of((4, 2, 32)), 1).launch(
            None, None, None, None, 1, 1, None, None, None, Vectors.empty(cupy, "q4", 1, 256, 32)
        )
    with pytest.raises(ValueError, match="up to 256"):
        AttendPrompt(cupy, config_of((1, 1, 258)), "float16")


def test_queries_of_a_block_divide_those_of_a_key_head() -> None:
    for heads, expected in {
        (32, 32, 128): 1, (32, 4, 128): 8, (9, 3, 64): 3, (12, 1, 8): 6, (11, 1, 64): 1, (8, 1, 256): 4
    }.items():  # fmt: skip
        assert queries_of(config_of(heads)) == expected


def append(
    cupy: Any, config: ModelConfig, dtype: str, k: Floats, v: Floats, rows: Any, positions: Any, cache: LayerCache
) -> None:
    """Append keys and values (n, n_kv_heads, head_dim), without biases, by angles of 0."""
    q, kv = cupy.zeros(len(k) * config.q_dim, np.float32), cupy.asarray(np.stack([k, v]))
    turns = np.zeros((40, config.head_dim // 2, 2), np.float32)
    turns[..., 0] = 1
    FinishQkv(cupy, config, dtype)(q, kv, len(k), None, cupy.asarray(turns), rows, positions, cache)


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("head_dim", [6, 8, 48, 64, 80, 128])
def test_appended_numbers_are_those_of_the_cpu(cupy: Any, head_dim: int, dtype: str) -> None:
    """Rounded in the same way: float16 to nearest, int8 by the vector's largest number; zeros, huge and tiny ones."""
    config = config_of((2, 2, head_dim))
    cache = CudaKVCache(cupy, config, 2, 40, dtype)
    rng = np.random.default_rng(head_dim)
    k, v = (rng.standard_normal((34, 2, head_dim)).astype(np.float32) for _ in range(2))
    k[3] = 0
    k[4] *= 1e-42
    k[6], k[7] = k[6] * 1e-37, k[7] * 1e-35
    v[5] *= 1e4
    rows, positions = (cupy.asarray(np.asarray(a, np.int32)) for a in ([1] * 34, range(34)))
    append(cupy, config, dtype, k, v, rows, positions, cache.layers[0])
    saved = cache.save_row(1, 34)
    for name, numbers in (("keys", k), ("values", v)):
        numbers = numbers.transpose(1, 0, 2)
        if dtype == "float16":
            assert np.array_equal(saved[name][0], numbers.astype(np.float16))
            continue
        most = np.abs(numbers).max(-1)
        most[most < 127 * SMALLEST_SCALE] = 0
        scales = most / np.float32(127)
        with np.errstate(divide="ignore"):
            factors = np.where(scales > 0, np.float32(1) / scales, 0)
        codes = np.rint(numbers * factors[..., None].astype(np.float32))
        assert np.array_equal(saved[name][0], codes)
        assert np.array_equal(saved[name.removesuffix("s") + "_scales"][0], scales)


def test_a_vector_with_nan_stays_visible(cupy: Any) -> None:
    config = config_of((1, 1, 64))
    for bad in (np.nan, np.inf):
        cache = CudaKVCache(cupy, config, 1, 32, "int8")
        x = np.ones((1, 1, 64), np.float32)
        x[0, 0, 40] = bad
        zero = cupy.asarray(np.zeros(1, np.int32))
        append(cupy, config, "int8", x, x, zero, zero, cache.layers[0])
        assert np.isnan(Single(cupy, cache, config, 1)(queries(config, 1), [0], [0])).all()


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("head_dim", [6, 64, 80])
def test_rows_go_from_one_backend_to_the_other(cupy: Any, head_dim: int, dtype: str) -> None:
    config = config_of((2, 2, head_dim), n_layers=2)
    cpu, gpu = filled_caches(cupy, config, [70, 33], dtype)
    for row, length in ((0, 70), (0, 64), (1, 33), (1, 1), (0, 0)):
        expected, found = cpu.save_row(row, length), gpu.save_row(row, length)
        assert list(expected) == list(found)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    other = CpuKVCache(config, 1, 70, dtype)
    other.load_row(0, gpu.save_row(0, 70))
    assert all(
        np.array_equal(a, b) for a, b in zip(other.save_row(0, 70).values(), cpu.save_row(0, 70).values(), strict=True)
    )


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 70])
def test_copy_prefix_leaves_the_rest(cupy: Any, length: int, dtype: str) -> None:
    config = config_of((2, 2, 80), n_layers=2)
    cpu, gpu = filled_caches(cupy, config, [70, 70, 70], dtype)
    for cache in (cpu, gpu):
        cache.copy_prefix(2, 0, length)
        cache.copy_prefix(1, 1, length)
        cache.load_row(2, random_row(config, length, dtype, 9))
    for row in range(3):
        for name, array in cpu.save_row(row, 70).items():
            assert np.array_equal(gpu.save_row(row, 70)[name], array)


def test_what_a_cache_refuses(cupy: Any) -> None:
    config = config_of((2, 2, 64))
    cache = CudaKVCache(cupy, config, 2, 40, "float16")
    for call in (
        lambda: cache.copy_prefix(0, 2, 1),
        lambda: cache.copy_prefix(-1, 1, 1),
        lambda: cache.save_row(0, 41),
        lambda: cache.load_row(0, random_row(config, 5, "int8", 0)),
        lambda: cache.load_row(0, random_row(config_of((2, 2, 32)), 5, "float16", 0)),
        lambda: CudaKVCache(cupy, config, 0, 40, "float16"),
        lambda: CudaKVCache(cupy, config, 1, 40, "float32"),
    ):
        with pytest.raises(ValueError):
            call()
    assert cache.nbytes == 2 * 2 * 2 * 64 * 64 * 2  # kinds, rows, heads, positions, numbers, bytes
    cache.close()
    assert cache.nbytes == 0
    with pytest.raises(ClosedError, match="this cache is closed"):
        cache.save_row(0, 1)
