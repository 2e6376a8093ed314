"""Conversion of any checkpoint to our storage types: into a file, or in memory.

    export             a checkpoint -> our file, float32 or float16
    write_converted    an open checkpoint -> our file of any type
    convert_in_memory  an open checkpoint -> a StoredModel that a backend can use

One tensor is in memory at a time, apart from those that convert_in_memory keeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .checkpoint import open_checkpoint
from .checkpoint.base import Checkpoint
from .errors import CheckpointError
from .model_names import find_model
from .process.interrupts import Interrupts
from .shown import shown, shown_value
from .storage.model_file import ModelWriter, StoredModel
from .storage.new_file import check_replaceable
from .storage.weights import Quantization, StorageType, Weight, all_finite

FilePath = str | os.PathLike[str]
Progress = Callable[[int, int, str], None]  # weights done, weights in all, name of the tensor just done

_CHUNK = 1 << 18  # numbers that are converted and checked at a time, so that they are in the CPU's cache


def export(
    checkpoint: FilePath,
    out: FilePath,
    *,
    dtype: str = "float32",
    tokenizer: FilePath | None = None,
    max_seq_len: int | None = None,
    norm_eps: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write any checkpoint as one of our files.

    Whatever happens, out is either complete or unchanged. An existing file is replaced by renaming: a Llama
    that uses the old file keeps it.

    Args:
        checkpoint: a file, a directory, or the name of a model, as Llama() takes it.
        out: path of the file to write.
        dtype: type of the matrices, "float32" or "float16"; norms stay float32.
        tokenizer: path of a tokenizer file that replaces the checkpoint's own.
        max_seq_len: longest sequence in tokens, instead of the checkpoint's.
        norm_eps: epsilon of RMSNorm, instead of the checkpoint's.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: the checkpoint cannot be read, a number is not finite or does not fit into dtype, or out
            cannot be written.
        TypeError: an argument is of the wrong type.
        ValueError: an argument is wrong, for example out is a file of the checkpoint.
    """
    if arguments.string("dtype", dtype) not in ("float32", "float16"):
        raise ValueError(f"dtype must be float32 or float16, not {shown_value(dtype)}")
    target = arguments.path("out", out)
    arguments.function("progress", progress)
    arguments.path("checkpoint", checkpoint)
    opened = open_checkpoint(
        find_model(checkpoint, needs_tokenizer=tokenizer is None),
        tokenizer=None if tokenizer is None else arguments.path("tokenizer", tokenizer),
        max_seq_len=None if max_seq_len is None else arguments.integer("max_seq_len", max_seq_len, 1, 1 << 31),
        norm_eps=None if norm_eps is None else arguments.real("norm_eps", norm_eps),
    )
    with closing(opened) as source:
        write_converted(source, target, Quantization.of(dtype), progress)


def convert_in_memory(
    checkpoint: Checkpoint, quantization: Quantization, progress: Progress | None = None
) -> StoredModel:
    """Convert an open checkpoint to a model in memory.

    Tensors that have the storage type wanted already stay in their mapped file, unless the model is quantized.

    Args:
        checkpoint: stays open, and may be closed afterwards.
        quantization: the storage types wanted.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: a number is not finite or does not fit into its storage type.
    """
    model = _without_weights(checkpoint, quantization)
    for weight in _convert(checkpoint, quantization, progress):
        if quantization.group_size and weight.scales is None:  # a norm: with a copy of it, the file can be unmapped
            weight = replace(weight, data=weight.data.copy())
        model.weights[weight.name] = weight
    return model


def write_converted(source: Checkpoint, out: str, quantization: Quantization, progress: Progress | None) -> None:
    """Write an open checkpoint as one of our files. Matrices are quantized by the search that needs no data.

    Args:
        source: stays open.
        out: path of the file to write.
        quantization: the storage types wanted.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: a number is not finite or does not fit into its storage type, or out cannot be written.
        ValueError: out is a file of the source.
    """
    check_target(out, source.files)
    model = _without_weights(source, quantization)
    with Interrupts() as interrupts, ModelWriter(out, model, interrupts) as writer, interrupts.allowed():
        for weight in _convert(source, quantization, progress):
            writer.write(weight)


def check_target(out: str, inputs: list[str]) -> None:
    """Raise unless out may be written, before any work is done. An input file must not be overwritten."""
    folder = os.path.dirname(out) or os.curdir
    if not os.path.basename(out) and not os.path.isdir(out):
        raise ValueError(f"{shown_value(out)} is not the name of a file")
    if not os.path.isdir(folder):
        raise CheckpointError(f"cannot write {out}: there is no directory {folder}")
    for path in inputs if os.path.exists(out) else []:
        if os.path.exists(path) and os.path.samefile(out, path):  # also through a symbolic or hard link
            raise ValueError(f"{shown(out)} is a file of the model to be read; choose another name for the result")
    check_replaceable(out)


def _without_weights(source: Checkpoint, quantization: Quantization) -> StoredModel:
    return StoredModel(source.config, quantization, source.tokenizer, source.chat_template, source.source)


def _convert(source: Checkpoint, quantization: Quantization, progress: Progress | None) -> Iterator[Weight]:
    """Yield every tensor of source in order, in its storage type."""
    done, total = 0, source.config.n_parameters
    for name, shape, tensor in source.tensors():
        kind = quantization.storage_of(name, source.config)
        array = tensor.read()
        if kind.group_size:
            yield quantized_weight(name, array, kind)
        else:
            yield Weight(name, kind.type, shape, as_float(name, array, np.dtype(kind.type)))
        done += prod(shape)
        if progress is not None:
            progress(done, total, name)


def quantized_weight(name: str, array: NDArray[Any], kind: StorageType) -> Weight:
    """Quantize a float32 or float16 matrix by the search for the best scales, which needs no data.

    Raises:
        CheckpointError: a number is not finite or too large.
    """
    from ._cpu import quantize_matrix

    try:
        data, scales = quantize_matrix(array, kind.type, kind.group_size)
    except ValueError as error:
        raise CheckpointError(f"tensor {name}: {error}") from error
    return Weight(name, kind.type, array.shape, data, scales, kind.group_size)


def as_float(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert array to dtype, float32 or float16, without a copy if it has that type already.

    Raises CheckpointError for NaN, infinity, and numbers that do not fit.
    """
    source = np.require(array, requirements=["C", "A"])
    result = source if source.dtype == dtype else np.empty(source.shape, dtype)
    flat_source, flat_result = source.reshape(-1), result.reshape(-1)
    for start in range(0, flat_source.size, _CHUNK):
        part, converted = flat_source[start : start + _CHUNK], flat_result[start : start + _CHUNK]
        if result is not source:
            with np.errstate(over="ignore"):
                np.copyto(converted, part, casting="same_kind")
        if not all_finite(converted):
            at = start + int(np.flatnonzero(~np.isfinite(converted))[0])
            value = float(flat_source[at])
            what = f"does not fit into {dtype}" if np.isfinite(value) else "is not a finite number"
            raise CheckpointError(f"tensor {name}: the weight {value:g} at {at} of {flat_source.size} {what}")
    return result
