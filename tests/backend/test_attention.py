"""Attention and the KV cache of the CPU backend: several spans, every shape, cache type and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import instruction_sets
from helpers.tiny import oracle_logits, quantized_model, random_weights
from numpy.typing import NDArray

from pyllama2._cpu import CpuBackend
from pyllama2._cpu.cache import CpuKVCache
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.memory import kv_cache_bytes

# Those that differ in floats.
ISAS = [isa for isa in ("scalar", "avx2", "avx512", "neon") if isa in instruction_sets.HERE]
KV_DTYPES = ("float32", "float16", "int8")
HEADS = [(3, 3, 16), (4, 2, 48), (8, 1, 64), (2, 2, 80), (5, 1, 128), (72, 1, 8)]  # heads, key heads, head_dim
N = 600  # tokens: three spans
TOKENS = np.random.default_rng(6).integers(0, 40, N).tolist()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYLLAMA2_CPU_ISA", request.param)
    return str(request.param)


def config_of(heads: tuple[int, int, int]) -> ModelConfig:
    n_heads, n_kv_heads, head_dim = heads
    return ModelConfig(
        dim=32, hidden_dim=32, n_layers=2, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, vocab_size=40,
        max_seq_len=N,
    )  # fmt: skip


def sharp_weights(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Weights with which some positions get much more attention than others."""
    weights = random_weights(config)
    for name in weights:
        if name.endswith("wq.weight"):
            weights[name] *= 4
    return weights


def make(heads: tuple[int, int, int], kv_dtype: str, n_threads: int = 2) -> CpuBackend:
    config = config_of(heads)
    return CpuBackend(quantized_model(config, sharp_weights(config), "float32"), n_threads=n_threads, kv_dtype=kv_dtype)


def all_logits(backend: CpuBackend, tokens: list[int]) -> NDArray[np.float32]:
    return backend.forward(Batch.of_sequence(tokens, outputs="all"), backend.new_cache(1, N))


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_float32_equals_the_oracle(heads: tuple[int, int, int], isa: str) -> None:
    config = config_of(heads)
    expected = oracle_logits(config, sharp_weights(config), TOKENS)
    assert np.abs(all_logits(make(heads, "float32"), TOKENS) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_bits_depend_on_the_sequence_alone(heads: tuple[int, int, int], kv_dtype: str, isa: str) -> None:
    expected = all_logits(make(heads, kv_dtype, 1), TOKENS)
    for n_threads in (1, 2, 3):
        backend = make(heads, kv_dtype, n_threads)
        cache = backend.new_cache(2, N + 1)  # the sequence is in row 1, amid tokens of row 0
        rng = np.random.default_rng(n_threads)
        start = other = 0
        for length in (1, 250, 1, 9, 1, 290, 1, 2, 40, 5):
            tokens, rows, positions = TOKENS[start : start + length], [1] * length, [*range(start, start + length)]
            for at in sorted(rng.integers(0, length + 1, 3)):
                tokens, rows, positions = ([*a[:at], b, *a[at:]] for a, b in ((tokens, 3), (rows, 0), (positions, -1)))
            for at in np.flatnonzero(np.equal(rows, 0)):
                positions[at], other = other, other + 1
            outputs = np.flatnonzero(np.equal(rows, 1))
            batch = Batch(*(np.asarray(a, np.int32) for a in (tokens, rows, positions, outputs)))
            assert np.array_equal(backend.forward(batch, cache), expected[start : start + length])
            start += length
        assert start == N


@pytest.mark.parametrize("n_threads", [3, 8])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_threads_share_the_spans_of_a_long_sequence(n_threads: int, kv_dtype: str) -> None:
    """More threads than key heads, several sequences of different lengths, several tokens of each."""
    single, many = make((4, 2, 48), kv_dtype, 1), make((4, 2, 48), kv_dtype, n_threads)
    lengths = (590, 30, 300)
    found = []
    for backend in (single, many):
        cache = backend.new_cache(3, N)
        for row, length in enumerate(lengths):
            backend.forward(Batch.of_sequence(TOKENS[:length], row=row), cache)
        rows = [0, 1, 2, 2, 2, 0]
        positions = [590, 30, 300, 301, 302, 591]
        batch = Batch(*(np.asarray(a, np.int32) for a in ([1, 2, 3, 4, 5, 6], rows, positions, range(6))))
        found.append(backend.forward(batch, cache))
    assert np.array_equal(*found)


@pytest.mark.parametrize(("kv_dtype", "least", "most"), [("float16", 1e-6, 1e-3), ("int8", 1e-4, 3e-2)])
def test_narrow_caches_are_close(kv_dtype: str, least: float, most: float, isa: str) -> None:
    exact = all_logits(make((4, 2, 48), "float32"), TOKENS)
    errors = np.abs(all_logits(make((4, 2, 48), kv_dtype), TOKENS) - exact).max(1) / np.abs(exact).max()
    assert least < np.median(errors) < most


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_narrow_caches_are_what_they_say(kv_dtype: str, isa: str) -> None:
    """A float32 cache with the same numbers gives the same, but for the last token's own key and value."""
    narrow, wide = make((4, 2, 48), kv_dtype), make((4, 2, 48), "float32")
    caches = narrow.new_cache(1, N), wide.new_cache(1, N)
    for backend, cache in zip((narrow, wide), caches, strict=True):
        backend.forward(Batch.of_sequence(TOKENS[:-1]), cache)
    last = Batch.of_sequence(TOKENS[-1:], start=N - 1)
    expected, exact = narrow.forward(last, caches[0]), wide.forward(last, caches[1])
    saved = caches[0].save_row(0, N - 1)
    numbers = {name: saved[name].astype(np.float32) for name in ("keys", "values")}
    if kv_dtype == "int8":
        numbers["keys"] *= saved["key_scales"][..., None]
        numbers["values"] *= saved["value_scales"][..., None]
    caches[1].load_row(0, numbers)
    assert np.abs(wide.forward(last, caches[1]) - expected).max() < 0.1 * np.abs(exact - expected).max()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_not_even_nan_reaches_earlier_tokens(kv_dtype: str, isa: str) -> None:
    config = config_of((4, 4, 16))
    weights = sharp_weights(config)
    backend = CpuBackend(quantized_model(config, weights, "float32"), n_threads=1, kv_dtype=kv_dtype)
    expected = all_logits(backend, TOKENS[:300])
    weights["tok_embeddings.weight"] = weights["tok_embeddings.weight"].copy()
    weights["tok_embeddings.weight"][39] = np.nan
    backend = CpuBackend(quantized_model(config, weights, "float32"), n_threads=1, kv_dtype=kv_dtype)
    tokens = [t % 39 for t in TOKENS[:300]]
    clean = all_logits(backend, tokens)
    for at in (255, 270, 299):
        found = all_logits(backend, [*tokens[:at], 39, *tokens[at + 1 :]])
        assert np.array_equal(found[:at], clean[:at])
        assert np.isnan(found[at:]).all()
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
class TestCache:
    def test_saved_rows_are_plain(self, kv_dtype: str) -> None:
        backend, exact = make((4, 2, 48), kv_dtype), make((4, 2, 48), "float32")
        caches = [b.new_cache(2, 50) for b in (backend, exact)]
        for b, cache in zip((backend, exact), caches, strict=True):
            b.forward(Batch.of_sequence(TOKENS[:37], row=1), cache)
        saved, expected = (cache.save_row(1, 37) for cache in caches)
        for name in ("keys", "values"):
            assert saved[name].shape == (2, 2, 37, 48) and saved[name].dtype == kv_dtype
            numbers = saved[name].astype(np.float32)
            if kv_dtype == "int8":
                scales = saved["key_scales" if name == "keys" else "value_scales"]
                assert scales.shape == (2, 2, 37) and scales.dtype == np.float32
                numbers *= scales[..., None]
            # The first layer's input is the same for all types.
            error = np.abs(numbers[0] - expected[name][0]).max() / np.abs(expected[name][0]).max()
            assert error < {"float32": 1e-9, "float16": 1e-3, "int8": 5e-3}[kv_dtype]

    @pytest.mark.parametrize("length", [0, 1, 16, 37, 48, 50])
    def test_prefixes_go_elsewhere_and_nothing_else(self, kv_dtype: str, length: int) -> None:
        cache = make((3, 3, 16), kv_dtype).new_cache(3, 50)
        rng = np.random.default_rng(0)
        full = {name: array.copy() for name, array in cache.save_row(0, 50).items()}
        for array in full.values():
            array[...] = rng.integers(-99, 99, array.shape)
        for row in (0, 1, 2):
            cache.load_row(row, {name: array + row for name, array in full.items()})
        cache.copy_prefix(0, 1, length)
        cache.load_row(2, cache.save_row(0, length))
        for row in (1, 2):
            for name, array in cache.save_row(row, 50).items():
                assert np.array_equal(array[:, :, :length], full[name][:, :, :length])
                assert np.array_equal(array[:, :, length:], (full[name] + row).astype(array.dtype)[:, :, length:])

    def test_bytes(self, kv_dtype: str) -> None:
        config = config_of((3, 3, 16))
        cache = CpuKVCache(config, 2, 70, kv_dtype)
        assert cache.nbytes == 2 * kv_cache_bytes(config, 80, kv_dtype)  # positions are rounded up to 16
        assert cache.keys.ctypes.data % 64 == cache.values.ctypes.data % 64 == 0

    def test_rows_of_other_caches_are_refused(self, kv_dtype: str) -> None:
        cache = make((3, 3, 16), kv_dtype).new_cache(1, 50)
        saved = cache.save_row(0, 20)
        for name in saved:
            with pytest.raises(ValueError, match=name):
                cache.load_row(0, {**saved, name: saved[name][:, :2]})
            with pytest.raises(ValueError, match=name):
                cache.load_row(0, {**saved, name: saved[name].astype(np.float64)})
        if kv_dtype == "int8":
            with pytest.raises(ValueError, match="key_scales"):
                cache.load_row(0, {"keys": saved["keys"], "values": saved["values"]})
