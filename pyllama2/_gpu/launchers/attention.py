"""Attention to the cache of one layer: of a few tokens, split over its length; and of a prompt's tokens, in tiles.

Both give the same bits for a token, whatever else is in the batch. Before a launch, the tokens' own keys and values
must have been appended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...config import ModelConfig
from ..layout import BITS, Shapes, Vectors
from ..source import compile_module
from .arguments import NULL, expect_at_least, integers
from .cache import CODES
from .prefetch import Prefetch, prefetch_arguments
from .vectors import vector_arguments

if TYPE_CHECKING:
    from ..cache import LayerCache

SPAN = 256  # positions that share a softmax, as in kernels/softmax.cu
_CHUNK = 64  # positions whose values are in shared memory at a time
_SHARED_BYTES = 48 << 10  # shared memory that a block can have on every GPU
_MOST_QUERIES = 8  # query heads of a block
_PROMPT_THREADS = 128
MAX_HEAD_DIM = 256
_LOG2_E = 1.4426950408889634


def queries_of(config: ModelConfig) -> int:
    """Return how many of the query heads that share a key head one block computes."""
    head_dim, shared = config.head_dim, config.n_heads // config.n_kv_heads
    room = _SHARED_BYTES - 64 - _CHUNK * head_dim * 2  # without a chunk of float16 values
    most = min(_MOST_QUERIES, room // (4 * (head_dim + SPAN + 16 + 2)))
    return max(n for n in range(1, max(2, most + 1)) if shared % n == 0)


def spans_of(n_positions: int) -> int:
    """Return the number of spans of so many positions, counted from 0."""
    return -(-n_positions // SPAN)


def attend_arrays(config: ModelConfig, n: int, max_seq_len: int) -> Shapes:
    """Return the scratch arrays of Attend for up to n tokens. counters must be zeros at first."""
    units = config.n_heads // queries_of(config)
    return {
        "parts": ("float32", (n, units, spans_of(max_seq_len), queries_of(config), config.head_dim + 2)),
        "counters": ("uint32", (n * (units + 1),)),
    }


class _Attention:
    """What both launchers have in common: sizes, and the first arguments of the kernels."""

    def __init__(self, config: ModelConfig, kv_dtype: str) -> None:
        if config.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"the GPU computes heads of up to {MAX_HEAD_DIM} numbers, not {config.head_dim}")
        self._config, self._kv_dtype = config, kv_dtype
        self._queries = queries_of(config)
        self._units = config.n_heads // self._queries
        self._scale = np.float32(_LOG2_E / math.sqrt(config.head_dim))

    def _inputs(self, q: Any, cache: LayerCache, rows: Any, positions: Any, n: int) -> tuple[Any, ...]:
        expect_at_least("q", q, "float32", n * self._config.q_dim)
        for name, array in (("rows", rows), ("positions", positions)):
            expect_at_least(name, array, "int32", n)
        for name, array in (("keys", cache.keys), ("values", cache.values)):
            expect_at_least(name, array, self._kv_dtype, cache.n_positions * self._config.kv_dim)
        scales = (NULL, NULL) if cache.key_scales is None else (cache.key_scales, cache.value_scales)
        return q, cache.keys, cache.values, *scales, rows, positions


class Attend(_Attention):
    """Attention of a few tokens, for decoding. There is a block for each span of each token.

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        kv_dtype: of the cache, "float16" or "int8".
        group_size: of the quantized result.

    Raises:
        ValueError: heads are too wide.
    """

    def __init__(self, cupy: Any, config: ModelConfig, kv_dtype: str, group_size: int) -> None:
        super().__init__(config, kv_dtype)
        name = f"attend<{config.head_dim}, {self._queries}, {group_size}, {CODES[kv_dtype]}>"
        self._kernel = compile_module(cupy, ["attention"], [name]).get_function(name)
        self._group_size = group_size

    def __call__(
        self, q: Any, cache: LayerCache, rows: Any, positions: Any, n: int, n_positions: int, parts: Any, counters: Any,
        out: Any, to: Vectors, prefetch: Prefetch | None = None,
    ) -> None:  # fmt: skip
        """Launch the kernel.

        Args:
            q: (n, n_heads * head_dim) float32 queries after the rotation.
            cache: of one layer.
            rows, positions: (n,) int32 of the tokens.
            n: number of tokens.
            n_positions: all positions are below it. The launch has blocks for so many positions.
            parts, counters: the arrays of attend_arrays().
            out: (n, n_heads * head_dim) float32 for the result.
            to: vectors for the result, quantized.
            prefetch: what the next kernel reads. None: nothing is prefetched.
        """
        spans = spans_of(n_positions)
        if to.columns != self._config.q_dim or to.group_size != self._group_size:
            raise ValueError(f"attention of {self._config.q_dim} numbers in groups of {self._group_size} cannot go to "
                             f"{to.columns} in groups of {to.group_size}")  # fmt: skip
        inputs = self._inputs(q, cache, rows, positions, n)
        expect_at_least("out", out, "float32", n * self._config.q_dim)
        expect_at_least("counters", counters, "uint32", n * (self._units + 1))
        if spans > 1:
            expect_at_least("parts", parts, "float32", n * self._config.n_heads * spans * (self._config.head_dim + 2))
        sizes = integers(self._config.n_kv_heads, cache.n_positions)
        arguments = (*inputs, *sizes, self._scale, parts, counters, out, np.int32(BITS[to.type]))
        arguments += (*vector_arguments(to, n), *prefetch_arguments(prefetch))
        self._kernel((spans, self._units, n), (SPAN,), arguments)


class AttendPrompt(_Attention):
    """Attention of many tokens, for prompts, in tiles of consecutive tokens of one row.

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        kv_dtype: of the cache, "float16" or "int8".

    Raises:
        ValueError: heads are too wide.
    """

    def __init__(self, cupy: Any, config: ModelConfig, kv_dtype: str) -> None:
        super().__init__(config, kv_dtype)
        name = f"attend_prompt<{config.head_dim}, {self._queries}, {CODES[kv_dtype]}>"
        self._kernel = compile_module(cupy, ["attention_prompt"], [name]).get_function(name)
        self.tile_tokens = (32 if config.head_dim <= 128 else 16) // self._queries

    def tiles(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Cut tokens into tiles.

        Args:
            rows: (n,) the row of each token.

        Returns:
            (n_tiles, 2): first token and number of tokens of each tile. There are at most n tiles.
        """
        changes = np.flatnonzero(np.diff(rows)) + 1
        tiles = [
            (first, min(self.tile_tokens, end - first))
            for start, end in zip([0, *changes], [*changes, len(rows)], strict=True)
            for first in range(start, end, self.tile_tokens)
        ]
        return np.array(tiles, np.int32).reshape(-1, 2)

    def __call__(
        self, q: Any, cache: LayerCache, rows: Any, positions: Any, n: int, tiles: Any, n_tiles: int, out: Any
    ) -> None:
        """Launch the kernel.

        Args:
            q: (n, n_heads * head_dim) float32 queries after the rotation.
            cache: of one layer.
            rows, positions: (n,) int32 of the tokens.
            n: number of tokens.
            tiles: (n_tiles, 2) int32 on the device, as tiles() returns them.
            n_tiles: number of tiles.
            out: (n, n_heads * head_dim) float32 for the result.
        """
        inputs = self._inputs(q, cache, rows, positions, n)
        expect_at_least("tiles", tiles, "int32", 2 * n_tiles)
        expect_at_least("out", out, "float32", n * self._config.q_dim)
        sizes = integers(self._config.n_kv_heads, cache.n_positions)
        self._kernel(
            (n_tiles, self._units), (_PROMPT_THREADS,), (*inputs, tiles, *sizes, self._scale, out)
        )  # fmt: skip
