"""What the next kernel reads: its first bytes are prefetched at the end of a kernel (kernels/prefetch.cu)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..layout import DeviceMatrix, is_float
from .arguments import NULL

TILE_AHEAD = 64 << 10  # bytes of a tile that are prefetched at most
RUN = 1024  # bytes that lie together; as many that are not prefetched lie between them
SHARE = 4  # what is prefetched is at most one part of so many of the L2 cache


@dataclass(frozen=True)
class Prefetch:
    """Tiles of a quantized matrix.

    Attributes:
        matrix: the matrix.
        tiles: how many of its tiles are prefetched, from the first on.
    """

    matrix: DeviceMatrix
    tiles: int

    @classmethod
    def of(cls, matrix: DeviceMatrix, l2_bytes: int) -> Prefetch | None:
        """Return what to prefetch of a matrix, if there is an L2 cache of so many bytes. None: nothing."""
        tiles = 0 if is_float(matrix.type) else min(matrix.tiles, l2_bytes // SHARE // TILE_AHEAD)
        return cls(matrix, tiles) if tiles else None


def keys_ahead(l2_bytes: int, n_columns: int, n_kv_heads: int) -> int:
    """Return the bytes of a head's keys to prefetch, if there is an L2 cache of so many bytes."""
    return l2_bytes // SHARE // (n_columns * n_kv_heads) // RUN * RUN


def prefetch_arguments(prefetch: Prefetch | None) -> tuple[Any, ...]:
    """Return the arguments of a kernel that prefetches these tiles."""
    if prefetch is None:
        return NULL, np.uint32(0), np.int32(0)
    codes = prefetch.matrix.codes
    return codes, np.uint32(codes.nbytes // prefetch.matrix.tiles), np.int32(prefetch.tiles)
