"""Queries, keys and values of a prompt on their way to attention; copies of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...config import ModelConfig
from ..source import compile_module
from .arguments import NULL, expect_at_least, integers

CODES = {"float16": "__half", "int8": "signed char"}
_THREADS, _FINISH_THREADS = 128, 256


class FinishQkv:
    """Biases -> rope -> kv append of any number of tokens, after the products of wq, wk and wv.

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        kv_dtype: of the cache, "float16" or "int8".
    """

    def __init__(self, cupy: Any, config: ModelConfig, kv_dtype: str) -> None:
        self._config, self._kv_dtype = config, kv_dtype
        name = f"finish_qkv<{config.head_dim}, {CODES[kv_dtype]}>"
        self._kernel = compile_module(cupy, ["qkv_prompt"], [name]).get_function(name)

    def __call__(
        self, q: Any, kv: Any, n: int, bias: Any, rope_table: Any, rows: Any, positions: Any, cache: Any
    ) -> None:
        """Launch the kernel.

        Args:
            q: (n, q_dim) float32 products of wq. They become the rotated queries.
            kv: (2, n, kv_dim) float32 products of wk and wv.
            n: number of tokens.
            bias: (q_dim + 2 kv_dim,) float32 of wq, wk and wv; None in models without.
            rope_table: (max_seq_len, head_dim / 2, 2) float32, cosine and sine of each position and pair.
            rows, positions: (n,) int32 of the tokens.
            cache: the LayerCache for the keys and values.
        """
        config = self._config
        expect_at_least("q", q, "float32", n * config.q_dim)
        expect_at_least("kv", kv, "float32", 2 * n * config.kv_dim)
        if bias is not None:
            expect_at_least("bias", bias, "float32", config.q_dim + 2 * config.kv_dim)
        expect_at_least("rope_table", rope_table, "float32", config.head_dim)
        for name, array in (("rows", rows), ("positions", positions)):
            expect_at_least(name, array, "int32", n)
        for name, array in (("keys", cache.keys), ("values", cache.values)):
            expect_at_least(name, array, self._kv_dtype, cache.n_positions * config.kv_dim)
        scales = (NULL, NULL) if cache.key_scales is None else (cache.key_scales, cache.value_scales)
        first = q, kv, *integers(config.n_heads, config.n_kv_heads), NULL if bias is None else bias
        rest = rope_table, rows, positions, np.int32(cache.n_positions), cache.keys, cache.values, *scales
        blocks = -(-(config.n_heads + 2 * config.n_kv_heads) // (_FINISH_THREADS // 32))
        self._kernel((n, blocks), (_FINISH_THREADS,), (*first, *rest))


class CacheRows:
    """Copies rows within a cache, or from one cache to another."""

    def __init__(self, cupy: Any, head_dim: int, kv_dtype: str) -> None:
        name = f"copy_prefix<{head_dim}, {CODES[kv_dtype]}>"
        self._kernel = compile_module(cupy, ["cache_rows"], [name]).get_function(name)

    def copy_prefix(
        self, source: dict[str, Any], src_row: int, target: dict[str, Any], dst_row: int, length: int
    ) -> None:
        """Copy the first length positions of src_row to dst_row. source and target have the names of cache_arrays()."""
        n_layers, _, n_kv_heads, _, _ = target["values"].shape
        grid = (-(-length // 32), n_kv_heads, n_layers)
        self._kernel(grid, (_THREADS,), (*integers(src_row, dst_row, length), *_rows(source), *_rows(target)))


def _rows(arrays: dict[str, Any]) -> tuple[Any, ...]:
    _, n_rows, _, n_positions, _ = arrays["values"].shape
    scales = (arrays.get(name, NULL) for name in ("key_scales", "value_scales"))
    return arrays["keys"], arrays["values"], *scales, *integers(n_rows, n_positions)
