"""What every backend does, as backend/base.py says it: each backend's tests have a class that inherits these."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.tiny import GQA, MHA
from pyllama2.backend.base import Backend, Batch
from pyllama2.config import ModelConfig
from pyllama2.errors import ClosedError

TOKENS = np.random.default_rng(5).integers(0, 50, 45).tolist()


def ints(*values: int) -> NDArray[np.int32]:
    return np.asarray(values, np.int32)


def all_logits(backend: Backend, tokens: list[int]) -> NDArray[np.float32]:
    cache = backend.new_cache(1, len(tokens))
    return backend.forward(Batch.of_sequence(tokens, outputs="all"), cache)


class BackendContract:
    """The tests; a class that inherits them says how its backend is made."""

    @staticmethod
    def make(config: ModelConfig, name: str, kv_dtype: str = "float32") -> Backend:
        """A backend with random weights of that config, in the format of that name or one as near as it has."""
        raise NotImplementedError

    def test_outputs_in_any_order_and_number(self) -> None:
        backend = self.make(GQA, "float32")
        tokens = TOKENS[:9]
        every = all_logits(backend, tokens)
        for outputs in ([], [8], [3, 3, 0], [8, 7, 6, 5, 4, 3, 2, 1, 0], [4] * 300):
            batch = replace(Batch.of_sequence(tokens), outputs=np.asarray(outputs, np.int32))
            logits = backend.forward(batch, backend.new_cache(1, 16))
            assert logits.shape == (len(outputs), GQA.vocab_size)
            assert np.array_equal(logits, every[np.asarray(outputs, int)])

    def test_an_empty_batch(self) -> None:
        backend = self.make(GQA, "q4g32")
        assert backend.forward(Batch.of_sequence([], outputs="none"), backend.new_cache(1, 4)).shape == (0, 70)

    @pytest.mark.parametrize(
        "batch",
        [
            Batch(ints(70), ints(0), ints(0), ints(0)),
            Batch(ints(-1), ints(0), ints(0), ints(0)),
            Batch(ints(1), ints(2), ints(0), ints(0)),
            Batch(ints(1), ints(-1), ints(0), ints(0)),
            Batch(ints(1), ints(0), ints(10), ints(0)),
            Batch(ints(1), ints(0), ints(-1), ints(0)),
            Batch(ints(1), ints(0), ints(0), ints(1)),
            Batch(ints(1), ints(0), ints(0), ints(-1)),
            Batch(ints(1, 2), ints(0), ints(0, 1), ints(0)),
            Batch(ints(1, 2), ints(0, 0), ints(0), ints(0)),
            Batch(ints(1, 2), ints(0, 0), ints(1, 0), ints(0)),
            Batch(ints(1, 2, 3), ints(0, 1, 0), ints(3, 0, 3), ints(0)),
        ],
    )
    def test_indices_out_of_bounds_never_reach_compiled_code(self, batch: Batch) -> None:
        backend = self.make(GQA, "float32")
        with pytest.raises(ValueError):
            backend.forward(batch, backend.new_cache(2, 10))

    def test_wrong_types_never_reach_compiled_code(self) -> None:
        backend = self.make(GQA, "float32")
        good = Batch.of_sequence([1, 2])
        for wrong in (np.zeros(2, np.int64), np.zeros((2, 1), np.int32), [0, 1], None):
            with pytest.raises(TypeError):
                backend.forward(replace(good, rows=wrong), backend.new_cache(1, 10))  # type: ignore[arg-type]

    @pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
    def test_cache_copies_saves_and_loads_prefixes(self, kv_dtype: str) -> None:
        backend = self.make(GQA, "float32", kv_dtype=kv_dtype)
        cache = backend.new_cache(3, 20)
        expected = backend.forward(Batch.of_sequence(TOKENS[:12], row=0, outputs="all"), cache)
        cache.copy_prefix(0, 2, 7)
        saved = cache.save_row(0, 7)
        other = backend.new_cache(2, 40)
        other.load_row(0, saved)
        other.copy_prefix(2, 1, 7, source=cache)
        for where, row in ((cache, 2), (other, 0), (other, 1)):
            again = backend.forward(Batch.of_sequence(TOKENS[7:9], row=row, start=7, outputs="all"), where)
            assert np.array_equal(again, expected[7:9])

    def test_cache_takes_no_copies_of_another_kind(self) -> None:
        source = self.make(GQA, "float32", kv_dtype="float32").new_cache(1, 4)
        with pytest.raises(ValueError, match="same kind"):
            self.make(GQA, "float32", kv_dtype="float16").new_cache(1, 4).copy_prefix(0, 0, 4, source=source)

    def test_rewinding_a_cache_is_free(self) -> None:
        backend = self.make(GQA, "q8g64")
        cache = backend.new_cache(1, 30)
        first = backend.forward(Batch.of_sequence(TOKENS[:10], outputs="all"), cache)
        backend.forward(Batch.of_sequence([1] * 10, start=10), cache)
        again = backend.forward(Batch.of_sequence(TOKENS[4:10], start=4, outputs="all"), cache)
        assert np.array_equal(first[4:], again)

    def test_bytes_of_a_cache(self) -> None:
        cache = self.make(MHA, "float32", kv_dtype="float16").new_cache(2, 32)
        assert cache.nbytes == 2 * 2 * (2 * 32 * 4 * 16) * 3  # bytes, keys and values, sizes, layers

    def test_bounds_of_a_cache(self) -> None:
        backend = self.make(GQA, "float32")
        cache = backend.new_cache(2, 10)
        for call in (
            lambda: cache.copy_prefix(0, 2, 1), lambda: cache.copy_prefix(-1, 0, 1),
            lambda: cache.copy_prefix(0, 1, 11), lambda: cache.save_row(0, -1), lambda: backend.new_cache(0, 5),
            lambda: cache.load_row(0, {"keys": np.zeros((2, 3, 4, 8), "f4"), "values": np.zeros((2, 3, 5, 8), "f4")}),
            lambda: cache.load_row(0, {"keys": np.zeros((2, 3, 4, 8), "f2"), "values": np.zeros((2, 3, 4, 8), "f2")}),
        ):  # fmt: skip
            with pytest.raises(ValueError):
                call()

    def test_a_closed_cache(self) -> None:
        backend = self.make(GQA, "float32")
        cache = backend.new_cache(1, 10)
        saved = cache.save_row(0, 3)
        cache.close()
        cache.close()
        assert cache.nbytes == 0
        for use in (
            lambda: backend.forward(Batch.of_sequence([1]), cache), lambda: cache.copy_prefix(0, 0, 1),
            lambda: cache.save_row(0, 1), lambda: cache.load_row(0, saved),
            lambda: backend.new_cache(1, 10).copy_prefix(0, 0, 1, source=cache),
        ):  # fmt: skip
            with pytest.raises(ClosedError, match="this cache is closed"):
                use()
