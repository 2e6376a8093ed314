"""Appends keys and values of a prompt to the cache, and copies rows."""

from __future__ import annotations

from typing import Any

from ..source import compile_module
from .arguments import NULL, expect_at_least, integers

CODES = {"float16": "__half", "int8": "signed char"}
_THREADS = 128


class Append:
    """Appends keys and values of any number of tokens to the cache of one layer."""

    def __init__(self, cupy: Any, head_dim: int, kv_dtype: str) -> None:
        name = f"append<{head_dim}, {CODES[kv_dtype]}>"
        self._kernel = compile_module(cupy, ["cache"], [name]).get_function(name)

    def __call__(self, k: Any, v: Any, rows: Any, positions: Any, n: int, cache: Any) -> None:
        """Launch the kernel.

        Args:
            k: (n, n_kv_heads * head_dim) float32 keys after the rotation.
            v: (n, n_kv_heads * head_dim) float32 values.
            rows, positions: (n,) int32 of the tokens.
            n: number of tokens.
            cache: the LayerCache.
        """
        n_kv_heads, head_dim = cache.values.shape[1], cache.values.shape[3]
        for name, array in (("k", k), ("v", v)):
            expect_at_least(name, array, "float32", n * n_kv_heads * head_dim)
        for name, array in (("rows", rows), ("positions", positions)):
            expect_at_least(name, array, "int32", n)
        scales = (NULL, NULL) if cache.key_scales is None else (cache.key_scales, cache.value_scales)
        sizes = integers(n_kv_heads, cache.n_positions)
        self._kernel((n, n_kv_heads), (64,), (k, v, rows, positions, *sizes, cache.keys, cache.values, *scales))


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
