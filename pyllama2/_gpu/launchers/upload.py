"""Copies matrices of a model file to the device, and rearranges them there (kernels/upload.cu)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...storage.weights import ROW_BLOCK, Weight
from ..layout import PIECE, TILE_ROWS, DeviceMatrix, copy_to
from ..source import compile_module
from .arguments import integers


class Uploader:
    """Makes device matrices of quantized weights.

    It has scratch memory on the device, as large as the largest weight so far.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        module = compile_module(cupy, ["upload"], [])
        self._codes = module.get_function("arrange_codes")
        self._scales = module.get_function("arrange_scales")
        self._scratch: dict[str, Any] = {}

    def matrix(self, *weights: Weight, in_turns: bool = False) -> DeviceMatrix:
        """Make one matrix of the rows of all weights. Each weight begins with a new tile.

        Args:
            weights: quantized weights of one type, width and group size.
            in_turns: the tiles of the weights alternate (w1 w3). Otherwise one weight follows the other (wq wk wv).

        Raises:
            ValueError: the weights do not go together, or are not quantized.
        """
        first = weights[0]
        if any((w.type, w.shape[1], w.group_size) != (first.type, first.shape[1], first.group_size) for w in weights):
            raise ValueError("matrices that are laid together must have one type, width and group size")
        if first.type not in ("q4", "q8"):
            raise ValueError(f"the GPU computes with q8 and q4 matrices; {first.name} is {first.type}")
        if in_turns and len({w.shape[0] for w in weights}) != 1:
            raise ValueError("matrices that are laid in turns must have the same number of rows")
        parts = tuple(w.shape[0] for w in weights)
        matrix = DeviceMatrix.empty(self._cupy, first.type, parts, first.shape[1], first.group_size)
        tile = 0
        for i, weight in enumerate(weights):
            step = len(weights) if in_turns else 1
            tiles = -(-weight.shape[0] // TILE_ROWS)
            self._arrange(weight, matrix, i if in_turns else tile, step, tiles)
            tile += tiles
        return matrix

    def _arrange(self, weight: Weight, matrix: DeviceMatrix, first_tile: int, step: int, tiles: int) -> None:
        assert weight.scales is not None
        blocks, groups, _ = weight.scales.shape
        words = weight.data.size // (blocks * ROW_BLOCK * 4)  # words of 4 bytes in a row
        codes = self._copy("codes", weight.data.reshape(-1).view(np.uint8))
        scales = self._copy("scales", weight.scales.reshape(-1))
        pieces = words * 4 // PIECE
        self._codes(
            (pieces, tiles), (128,),
            (codes.view(np.uint32), matrix.codes.view(np.uint32), *integers(blocks, words, first_tile, step)),
        )  # fmt: skip
        self._scales(
            (groups, tiles), (TILE_ROWS,),
            (scales.view(np.uint16), matrix.scales.view(np.uint16), *integers(blocks, groups, first_tile, step)),
        )  # fmt: skip

    def _copy(self, name: str, array: Any) -> Any:
        if name not in self._scratch or self._scratch[name].size < array.size:
            self._scratch.pop(name, None)  # before the larger one is allocated
            self._scratch[name] = self._cupy.empty(array.shape, array.dtype)
        part = self._scratch[name][: array.size]
        copy_to(self._cupy, np.ascontiguousarray(array), part)
        return part
