"""The numbers of random models: one block of them, repeated, so that a model of any size costs little to make."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyllama2.config import ModelConfig

_BLOCK = (1 << 22) + 3  # halves; odd, so that the repetitions do not line up with rows


class RandomWeights:
    """The tensors of a model, float16, made when asked for.

    A matrix of n columns is numbers(n), read from starts[name] on and again from the beginning after its end.
    """

    period = _BLOCK

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.shapes = config.tensor_shapes()
        rng = np.random.default_rng(seed)
        self._normal = rng.standard_normal(_BLOCK, np.float32)
        self._norms = rng.uniform(0.5, 1.5, config.dim).astype(np.float16)
        self._scaled: dict[int, NDArray[np.float16]] = {}
        self.starts = {name: int(rng.integers(_BLOCK)) for name in self.shapes}

    def numbers(self, columns: int) -> NDArray[np.float16]:
        """The numbers (period,) that matrices of so many columns repeat."""
        if columns not in self._scaled:
            self._scaled[columns] = (self._normal * columns**-0.5).astype(np.float16)
        return self._scaled[columns]

    def __getitem__(self, name: str) -> NDArray[np.float16]:
        shape = self.shapes[name]
        if len(shape) == 1:
            return self._norms
        block = self.numbers(shape[1])
        tensor = np.empty(math.prod(shape), np.float16)
        done, start = 0, self.starts[name]
        while done < tensor.size:
            piece = block[start : start + tensor.size - done]
            tensor[done : done + piece.size] = piece
            done, start = done + piece.size, 0
        return tensor.reshape(shape)
