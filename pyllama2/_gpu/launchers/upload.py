"""Copies matrices of a model file to the device, and rearranges them there (kernels/upload.cu)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...storage.weights import ROW_BLOCK, Weight
from ..layout import PIECE, RUNNING_SUMS, TILE_ROWS, DeviceMatrix, copy_to, is_float, kind_of
from ..source import compile_module
from .arguments import integers

SLICE_BYTES = 32 << 20  # of a float weight, which are copied to the device together


class Uploader:
    """Makes device matrices of weights.

    It has scratch memory on the device, as large as the largest quantized weight so far, or as a slice of float ones.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        names = {2: "arrange_numbers<unsigned short>", 4: "arrange_numbers<unsigned>"}  # by bytes of a number
        module = compile_module(cupy, ["upload"], list(names.values()))
        self._codes = module.get_function("arrange_codes")
        self._scales = module.get_function("arrange_scales")
        self._numbers = {size: module.get_function(name) for size, name in names.items()}
        self._scratch: dict[str, Any] = {}

    def matrix(self, *weights: Weight, in_turns: bool = False) -> DeviceMatrix:
        """Make one matrix of the rows of all weights. Each weight begins with a new tile.

        Args:
            weights: weights of one type, width and group size.
            in_turns: the tiles of the weights alternate (w1 w3). Otherwise one weight follows the other (wq wk wv).

        Raises:
            ValueError: the weights do not go together.
        """
        first = weights[0]
        if any((w.type, w.shape[1], w.group_size) != (first.type, first.shape[1], first.group_size) for w in weights):
            raise ValueError("matrices that are laid together must have one type, width and group size")
        if in_turns and len({w.shape[0] for w in weights}) != 1:
            raise ValueError("matrices that are laid in turns must have the same number of rows")
        parts = tuple(w.shape[0] for w in weights)
        type, group_size = kind_of(first.type, first.group_size)
        matrix = DeviceMatrix.empty(self._cupy, type, parts, first.shape[1], group_size)
        arrange = self._arrange_numbers if is_float(type) else self._arrange
        tile = 0
        for i, weight in enumerate(weights):
            step = len(weights) if in_turns else 1
            tiles = -(-weight.shape[0] // TILE_ROWS)
            arrange(weight, matrix, i if in_turns else tile, step, tiles)
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

    def _arrange_numbers(self, weight: Weight, matrix: DeviceMatrix, first_tile: int, step: int, tiles: int) -> None:
        columns = weight.shape[1]
        size = weight.data.itemsize
        most = max(1, SLICE_BYTES // (TILE_ROWS * columns * size))  # tiles of a slice
        for tile in range(0, tiles, most):
            part = weight.data[tile * TILE_ROWS : (tile + most) * TILE_ROWS]
            numbers = self._copy("numbers", part.reshape(-1).view(np.uint8)).view(f"uint{8 * size}")
            self._numbers[size](
                (matrix.groups, -(-len(part) // TILE_ROWS)), (TILE_ROWS * RUNNING_SUMS,),
                (numbers, matrix.codes, *integers(len(part), columns, first_tile + tile * step, step)),
            )  # fmt: skip

    def _copy(self, name: str, array: Any) -> Any:
        if name not in self._scratch or self._scratch[name].size < array.size:
            self._scratch.pop(name, None)  # before the larger one is allocated
            self._scratch[name] = self._cupy.empty(array.shape, array.dtype)
        part = self._scratch[name][: array.size]
        copy_to(self._cupy, np.ascontiguousarray(array), part)
        return part
