"""The order of the rows of wq and wk, and of their biases: ours, and that of Hugging Face.

model.py rotates adjacent rows of a head, (2i, 2i + 1). Hugging Face, and GGUF files of some architectures, rotate its
two halves, (i, i + head_dim/2), and store the rows permuted:

    row (head, half, i) of theirs = row (head, i, half) of ours        half in {0, 1}, i < head_dim/2

Source: convert_llama_weights_to_hf.py of https://github.com/huggingface/transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..storage.weights import StorageType
from .base import LazyTensor


def in_our_order(name: str, array: NDArray[Any], config: ModelConfig) -> NDArray[Any]:
    """Bring the rows of a tensor that are in their order into that of model.py.

    Args:
        name: the tensor, as in config.tensor_shapes().
        array: its numbers, or anything else with as many rows. Those of other tensors than wq and wk stay as they are.
        config: the model's dimensions.
    """
    n_heads = _rotated_heads(name, config)
    return array if n_heads is None else _swapped(array, (n_heads, 2, config.head_dim // 2, -1))


def in_their_order(name: str, array: NDArray[Any], config: ModelConfig) -> NDArray[Any]:
    """Undo in_our_order()."""
    n_heads = _rotated_heads(name, config)
    return array if n_heads is None else _swapped(array, (n_heads, config.head_dim // 2, 2, -1))


def read_in_our_order(name: str, tensor: LazyTensor, config: ModelConfig) -> LazyTensor:
    """Return a tensor whose numbers and codes are read in the order of model.py, from one in their order."""
    if _rotated_heads(name, config) is None:
        return tensor

    def codes(kind: StorageType) -> tuple[NDArray[np.int8], NDArray[np.float16]] | None:
        found = None if tensor.codes is None else tensor.codes(kind)
        return None if found is None else (in_our_order(name, found[0], config), in_our_order(name, found[1], config))

    return replace(
        tensor,
        read=lambda: in_our_order(name, tensor.read(), config),
        codes=None if tensor.codes is None else codes,
    )


def _rotated_heads(name: str, config: ModelConfig) -> int | None:
    """The number of heads of wq or wk, or of a bias of them; None for other tensors."""
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])


def _swapped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Swap the two middle axes of an array of this shape."""
    return np.ascontiguousarray(array.reshape(shape).swapaxes(1, 2)).reshape(array.shape)
