"""Scratch memory and caches of the CPU backend: what is counted is what is allocated, and no more than its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny import quantized_model, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2._cpu import CpuBackend
from pyllama2._cpu.cache import CpuKVCache, allocated_bytes
from pyllama2._cpu.workspace import Workspace
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.storage.weights import Quantization

configs = st.builds(
    lambda dim, hidden, layers, kv_heads, queries, half_head, vocab, tied: ModelConfig(
        dim=dim,
        hidden_dim=hidden,
        n_layers=layers,
        n_heads=kv_heads * queries,
        n_kv_heads=kv_heads,
        head_dim=2 * half_head,
        vocab_size=vocab,
        max_seq_len=600,
        tied_embeddings=tied,
    ),
    *(st.integers(1, most) for most in (300, 300, 3, 4, 5, 40, 400)),
    st.booleans(),
)
quantizations = st.builds(
    Quantization.of, st.sampled_from(("float32", "float16", "q8", "q4")), st.sampled_from((32, 64, 128))
)


class TestScratch:
    @pytest.mark.slow
    @settings(deadline=None, max_examples=50)
    @given(configs, quantizations, st.integers(1, 5))
    def test_what_is_counted_is_what_is_allocated(
        self, config: ModelConfig, quantization: Quantization, n_threads: int
    ) -> None:
        counted = Workspace(config, quantization, n_threads, counts_only=True)
        taken = Workspace(config, quantization, n_threads)
        assert counted.arrays == []
        assert counted.nbytes == taken.nbytes == sum(array.nbytes for array in taken.arrays)

    @pytest.mark.slow
    @settings(deadline=None, max_examples=20)
    @given(configs, st.sampled_from(("float32", "q4")), st.integers(1, 4), st.integers(1, 600))
    def test_a_pass_takes_no_more_than_was_counted(
        self, config: ModelConfig, type: str, n_threads: int, n_tokens: int
    ) -> None:
        model = quantized_model(config, random_weights(config), type)
        backend = CpuBackend(model, n_threads=n_threads)
        assert backend._forward is not None
        cache = backend.new_cache(1, 600)
        backend.forward(Batch.of_sequence([i % config.vocab_size for i in range(n_tokens)]), cache)
        counted = Workspace(config, model.quantization, n_threads, counts_only=True)
        assert sum(array.nbytes for array in backend._forward.workspace.arrays) <= counted.most_bytes(600)
        assert backend.pending_bytes() <= counted.most_bytes(600)

    def test_wide_vectors_make_chunks_short(self) -> None:
        wide = ModelConfig(
            dim=1 << 17, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, vocab_size=2, max_seq_len=4096
        )
        for type in ("float32", "q4"):
            found = Workspace(wide, Quantization.of(type), 2, counts_only=True)
            assert found.chunk_size < 512 and found.nbytes < 256 << 20

    @pytest.mark.parametrize("type", ["q4", "q8"])
    def test_models_as_large_as_70b_have_whole_chunks(self, type: str) -> None:
        config = ModelConfig(
            dim=8192, hidden_dim=28672, n_layers=80, n_heads=64, n_kv_heads=8, head_dim=128, vocab_size=32000,
            max_seq_len=4096,
        )  # fmt: skip
        assert Workspace(config, Quantization.of(type), 2, counts_only=True).chunk_size == 512

    @pytest.mark.slow
    def test_a_short_chunk_computes_the_same(self) -> None:
        config = ModelConfig(
            dim=1 << 18, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2, vocab_size=3, max_seq_len=100
        )
        backend = CpuBackend(quantized_model(config, random_weights(config), "float32"), n_threads=1)
        assert backend._forward is not None and backend._forward.workspace.chunk_size == 64
        ids, cache = [i % 3 for i in range(66)], backend.new_cache(1, 100)
        together = backend.forward(Batch.of_sequence(ids, outputs="all"), cache)
        again = backend.forward(Batch.of_sequence(ids[60:], start=60, outputs="all"), cache)
        assert np.array_equal(again, together[60:])


class TestCaches:
    @settings(deadline=None, max_examples=50)
    @given(configs, st.integers(1, 4), st.integers(1, 100), st.sampled_from(("float32", "float16", "int8")))
    def test_what_is_counted_is_what_is_allocated(
        self, config: ModelConfig, n_rows: int, n_positions: int, dtype: str
    ) -> None:
        cache = CpuKVCache(config, n_rows, n_positions, dtype)
        assert allocated_bytes(config, n_rows, n_positions, dtype) == cache.nbytes
        assert n_rows * allocated_bytes(config, 1, n_positions, dtype) == cache.nbytes

    def test_what_is_resident_was_written_to(self) -> None:
        config = ModelConfig(
            dim=64, hidden_dim=64, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=64, vocab_size=10, max_seq_len=1 << 18
        )
        cache = CpuKVCache(config, 1, 1 << 18, "float32")
        assert cache.resident_bytes < cache.nbytes / 10
        cache.keys.fill(1)
        assert 0.45 * cache.nbytes < cache.resident_bytes < 0.6 * cache.nbytes
        cache.values.fill(1)
        assert 0.95 * cache.nbytes < cache.resident_bytes <= cache.nbytes
