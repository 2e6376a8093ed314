"""The numbers of random models. One block of numbers is repeated, so that a large model is made quickly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyllama2.config import ModelConfig

_BLOCK = (1 << 22) + 3  # float16 numbers; odd, so that repetitions do not line up with rows


class RandomWeights:
    """The tensors of a model, float16. A tensor is made when it is asked for.

    A matrix of n columns repeats numbers(n), from starts[name] on.

    Args:
        config: the model's dimensions.
        seed: seed of the random numbers.

    Attributes:
        period: after how many numbers they repeat.
        shapes: shape of each tensor.
        starts: place in the numbers where each tensor starts.
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
        """Return the numbers (period,) float16 that matrices of so many columns repeat."""
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
