"""From any checkpoint to our format: export and quantize to a file, or convert in memory.

One stream of tensors serves all three: Checkpoint.tensors() -> Weight -> where it goes. Memory holds
one tensor at a time. Called by the command lines and by llama.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError
from .modelfile import ModelFile, ModelWriter
from .weights import Quantization, Weight, WeightType

Path = str | os.PathLike[str]
# progress(weights done, weights in all, name of the tensor that was done)
Progress = Callable[[int, int, str], None]


def export(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    max_seq_len: int | None = None,
    norm_eps: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write any checkpoint as one of our files, with dtype "float32" or "float16".

    tokenizer is the path of a tokenizer for checkpoints that have none; max_seq_len and norm_eps
    replace what the checkpoint says. Nothing is left under out, or beside it, when it fails. Raises
    CheckpointError for bad files, ValueError for wrong arguments and when out is one of the checkpoint's files.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, not {dtype!r}")
    opened = open_checkpoint(checkpoint, tokenizer=tokenizer, max_seq_len=max_seq_len, norm_eps=norm_eps)
    _write(opened, Quantization.of(dtype), out, progress)


def quantize(
    source: Path,
    out: Path,
    type: str,
    *,
    group_size: int = 64,
    output_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model, one of our files or any checkpoint, with 8 or 4 bits per weight.

    type is "q8" or "q4", group_size 32, 64 or 128 inputs that share a scale; output_type is that of the
    output matrix, q8 unless told otherwise. Fails like export().
    """
    _check_quantization(type)
    quantization = Quantization.of(type, group_size, output_type)
    _write(open_checkpoint(source), quantization, out, progress)


def convert_in_memory(checkpoint: Checkpoint, quantization: Quantization) -> ModelFile:
    """The model of a checkpoint, converted but not written. Float tensors stay in the mapped file if they can."""
    model = _without_weights(checkpoint, quantization)
    model.weights = {weight.name: weight for weight in _weights(checkpoint, quantization, None)}
    return model


def _check_quantization(type: str) -> None:
    if type not in ("q8", "q4"):
        raise ValueError(f"type must be q8 or q4, not {type!r}")


def _write(checkpoint: Checkpoint, quantization: Quantization, out: Path, progress: Progress | None) -> None:
    try:
        for file in checkpoint.files:
            if os.path.exists(out) and os.path.samefile(file, out):
                raise ValueError(f"the output {os.fspath(out)} is a file of the input, which is never overwritten")
        with ModelWriter(out, _without_weights(checkpoint, quantization)) as writer:
            for weight in _weights(checkpoint, quantization, progress):
                writer.write(weight)
    finally:
        checkpoint.close()


def _without_weights(checkpoint: Checkpoint, quantization: Quantization) -> ModelFile:
    return ModelFile(checkpoint.config, quantization, checkpoint.tokenizer, checkpoint.chat_template, checkpoint.source)


def _weights(checkpoint: Checkpoint, quantization: Quantization, progress: Progress | None) -> Iterator[Weight]:
    """Every tensor of the checkpoint, in file order, as the quantization wants it stored."""
    total, done = checkpoint.config.n_parameters, 0
    for name, shape, tensor in checkpoint.tensors():
        type = quantization.type_of(name, checkpoint.config)
        weight = Weight(name, type, shape, *_stored(name, tensor.read(), type, quantization.group_size))
        if weight.scales is not None:
            weight = replace(weight, group_size=quantization.group_size)
        yield weight
        done += prod(shape)
        if progress is not None:
            progress(done, total, name)


def _stored(
    name: str, array: NDArray[Any], type: WeightType, group_size: int
) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
    """The arrays of a Weight: numbers, or codes and scales."""
    if type in ("q8", "q4"):
        from ._cpu import quantize_matrix

        try:
            return quantize_matrix(array, type, group_size)
        except ValueError as error:
            raise CheckpointError(f"tensor {name}: {error}") from error
    with np.errstate(over="ignore"):
        data = np.require(array, type, ["C_CONTIGUOUS", "ALIGNED"])
    if type == "float16" and array.dtype != np.float16 and np.isinf(data).any():
        raise CheckpointError(f"tensor {name} has numbers too large for float16; export it as float32")
    return data, None
