"""Conversion of any checkpoint to our storage types: into a file, or in memory.

    export             a checkpoint -> our file, float32 or float16
    write_converted    an open checkpoint -> our file of any type
    convert_in_memory  an open checkpoint -> a StoredModel that a backend can use
    convert_model      a StoredModel -> another in fewer bits

One tensor is in memory at a time, apart from those that convert_in_memory keeps. q4 is chosen by the search for the
best scales, with inputs weighted by their mean squares on a short passage (_cpu/passage.py) if there is a tokenizer.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .checkpoint import open_checkpoint
from .checkpoint.base import Checkpoint
from .errors import CheckpointError
from .model_names import Adapters, find_adapters, find_model
from .process.interrupts import Interrupts
from .shown import shown, shown_value
from .storage.floats import as_float
from .storage.model_file import ModelWriter, StoredModel
from .storage.new_file import check_replaceable
from .storage.weights import ROW_BLOCK, Quantization, StorageType, Weight
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ._cpu.passage import Passage

log = logging.getLogger("pyllama2")

FilePath = str | os.PathLike[str]
_DTYPES = {  # that a format has
    "pyllama2": ("float32", "float16"), "gguf": ("float32", "float16", "q8"), "huggingface": ("float32", "float16")
}  # fmt: skip
_SAMPLED_ROWS = 64  # of each matrix, for the loss of rounding once more
Progress = Callable[[int, int, str], None]  # weights done, weights in all, name of the tensor just done


def export(
    checkpoint: FilePath,
    out: FilePath,
    *,
    dtype: str = "float32",
    format: str = "pyllama2",
    lora: Adapters = (),
    tokenizer: FilePath | None = None,
    max_seq_len: int | None = None,
    norm_eps: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Write any checkpoint as one of our files, or in a format that other programs read.

    Whatever happens, out is either complete or unchanged. An existing file is replaced by renaming: a Llama
    that uses the old file keeps it.

    Args:
        checkpoint: a file, a directory, or the name of a model, as Llama() takes it.
        out: path of the file to write; of the directory for format="huggingface".
        dtype: type of the matrices, "float32" or "float16", and for format="gguf" also "q8", which is Q8_0. Norms
            stay float32, but not for format="huggingface".
        format: "pyllama2" for one of our files, "gguf", or "huggingface" for a directory with safetensors.
        lora: LoRA adapters that are merged into the weights, each PATH or PATH:SCALE.
        tokenizer: path of a tokenizer file that replaces the checkpoint's own.
        max_seq_len: longest sequence in tokens, instead of the checkpoint's.
        norm_eps: epsilon of RMSNorm, instead of the checkpoint's.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: the checkpoint cannot be read, a number is not finite or does not fit into dtype, the format
            cannot express the tokenizer, or out cannot be written.
        TypeError: an argument is of the wrong type.
        ValueError: an argument is wrong, for example out is a file of the checkpoint.
    """
    if arguments.string("format", format) not in _DTYPES:
        raise ValueError(f"format must be {', '.join(_DTYPES)}, not {shown_value(format)}")
    if arguments.string("dtype", dtype) not in _DTYPES[format]:
        raise ValueError(f"dtype must be {' or '.join(_DTYPES[format])}, not {shown_value(dtype)}")
    target = arguments.path("out", out)
    arguments.function("progress", progress)
    arguments.path("checkpoint", checkpoint)
    tokenizer = None if tokenizer is None else arguments.path("tokenizer", tokenizer)
    max_seq_len = None if max_seq_len is None else arguments.integer("max_seq_len", max_seq_len, 1, 1 << 31)
    norm_eps = None if norm_eps is None else arguments.real("norm_eps", norm_eps)
    check_target(target, [], folder=format == "huggingface")  # before a model is downloaded
    lora = find_adapters(lora)
    path = find_model(checkpoint, needs_tokenizer=tokenizer is None)
    opened = open_checkpoint(path, tokenizer=tokenizer, max_seq_len=max_seq_len, norm_eps=norm_eps)
    with closing(opened) as source:
        if source.why_it_ends:
            log.warning("the context ends at %d tokens: %s", source.config.max_seq_len, source.why_it_ends)
        if lora:
            from .adapters import with_adapters  # as late as the readers, which it imports

            source = with_adapters(source, lora)
        if format == "pyllama2":
            write_converted(source, target, Quantization.of(dtype), progress)
            return
        check_target(target, source.files, folder=format == "huggingface")
        from . import writers  # not before: it loads the tokenizers

        write = writers.write_gguf if format == "gguf" else writers.write_huggingface
        write(source, target, dtype, progress)


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


def convert_model(model: StoredModel, quantization: Quantization) -> StoredModel:
    """Convert a model that is in memory, or mapped, to another quantized one, by the search that needs no data."""
    converted = StoredModel(model.config, quantization, model.tokenizer, None, model.source)
    for name, weight in model.weights.items():
        kind = quantization.storage_of(name, model.config)
        if kind.group_size:
            array = weight.data if weight.scales is None else weight.dequantize()
            converted.weights[name] = quantized_weight(name, array, kind)
        else:
            converted.weights[name] = replace(weight, data=weight.data.copy())
    return converted


def write_converted(source: Checkpoint, out: str, quantization: Quantization, progress: Progress | None) -> None:
    """Write an open checkpoint as one of our files. Matrices are quantized by the quick search.

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


def check_target(out: str, inputs: list[str], *, folder: bool = False) -> None:
    """Raise unless out may be written, before any work is done. An input file must not be overwritten.

    Args:
        out: the file; with folder, the directory.
        inputs: files of the model that is read.
        folder: out is a directory, which its writer checks.
    """
    if folder:
        out = os.path.normpath(out)
    parent = os.path.dirname(out) or os.curdir
    if not os.path.basename(out) and not os.path.isdir(out):
        raise ValueError(f"{shown_value(out)} is not the name of a file")
    if not os.path.isdir(parent):
        raise CheckpointError(f"cannot write {out}: there is no directory {parent}")
    for path in inputs if os.path.exists(out) else []:
        if os.path.exists(path) and os.path.samefile(out, path):  # also through a symbolic or hard link
            raise ValueError(f"{shown(out)} is a file of the model to be read; choose another name for the result")
    if not folder:
        check_replaceable(out)


def _without_weights(source: Checkpoint, quantization: Quantization) -> StoredModel:
    return StoredModel(source.config, quantization, source.tokenizer, source.chat_template, source.source)


def _convert(source: Checkpoint, quantization: Quantization, progress: Progress | None) -> Iterator[Weight]:
    """Yield every tensor of source in order, in its storage type."""
    done, total = 0, source.config.n_parameters
    shapes = source.config.tensor_shapes()
    rounding = Rounding()
    passage: Passage | None = None
    ready: dict[str, Weight] = {}
    order = _order_of_use(list(shapes))
    for name in shapes:
        while name not in ready:
            used = next(order)
            kind, tensor = quantization.storage_of(used, source.config), source.tensor(used)
            if used == "tok_embeddings.weight" and quantization.type == "q4":
                passage = _passage(source)
            in_layer = used.startswith("layers.")
            codes = None if tensor.codes is None or not kind.group_size else tensor.codes(kind)
            if codes is not None:
                weight = Weight.of_codes(used, kind, shapes[used], *codes)
            elif kind.group_size:
                array = tensor.read()
                known = passage is not None and in_layer and kind.type == "q4"
                weight = quantized_weight(used, array, kind, passage.importance() if passage and known else None)
                if tensor.codes is not None:
                    rounding.add(array, weight)
            else:
                weight = Weight(used, kind.type, shapes[used], as_float(used, tensor.read(), np.dtype(kind.type)))
            if passage is not None and in_layer:
                passage.take(weight)
            ready[used] = weight
        yield ready.pop(name)
        source.tensor(name).release()
        done += prod(shapes[name])
        if progress is not None:
            progress(done, total, name)
    if rounding.loss:
        log.warning(
            "weights that were quantized before are rounded again, which changes them by %.1f %% (root mean square)",
            100 * rounding.loss,
        )


def _order_of_use(names: list[str]) -> Iterator[str]:
    """The names in the order in which a passage needs them: w3 before w2, and biases before all of their layer."""
    place = {name: i for i, name in enumerate(names)}

    def key(name: str) -> tuple[int, bool, int]:
        if not name.startswith("layers."):
            return place[name], False, 0
        first = place[".".join(name.split(".")[:2]) + ".attention_norm.weight"]
        return first, not name.endswith(".bias"), place[name] + 2 * name.endswith(".w2.weight")

    return iter(sorted(names, key=key))


def _passage(source: Checkpoint) -> Passage | None:
    """A passage to see the inputs of matrices on. None for a model without a tokenizer that can be used."""
    from ._cpu.passage import TEXT, TOKENS, Passage
    from ._cpu.threads import default_threads

    if source.tokenizer is None:
        return None
    try:
        tokenizer = load_tokenizer(source.tokenizer, source.config.vocab_size)
        ids = tokenizer.with_bos(tokenizer.encode(TEXT))[: min(TOKENS, source.config.max_seq_len)]
    except (CheckpointError, ImportError, ValueError) as error:  # which matters to whoever uses the model
        log.info("weights are quantized without a passage of text: %s", error)
        return None
    if not ids:
        return None
    rows = source.tensor("tok_embeddings.weight").read_rows
    embeddings = np.concatenate([rows(token_id, token_id + 1) for token_id in ids])
    return Passage(source.config, embeddings.astype(np.float32), default_threads())


class Rounding:
    """What a second quantization changes, as the first rows of each matrix show it."""

    def __init__(self) -> None:
        self._errors = self._squares = 0.0

    def add(self, array: NDArray[Any], weight: Weight) -> None:
        """Count a matrix and the weight that was made of it."""
        assert weight.scales is not None
        rows = min(len(array), _SAMPLED_ROWS)
        blocks = slice(0, -(-rows // ROW_BLOCK))
        part = replace(weight, shape=(rows, *weight.shape[1:]), data=weight.data[blocks], scales=weight.scales[blocks])
        exact = array[:rows].astype(np.float32)
        self._errors += float(np.square(part.dequantize() - exact).sum(dtype=np.float64))
        self._squares += float(np.square(exact).sum(dtype=np.float64))

    @property
    def loss(self) -> float:
        """The root mean square of the change, as a share of that of the weights."""
        return sqrt(self._errors / self._squares) if self._squares else 0.0


def quantized_weight(
    name: str, array: NDArray[Any], kind: StorageType, importance: NDArray[np.float32] | None = None
) -> Weight:
    """Quantize a float32 or float16 matrix by the search for the best scales.

    Args:
        name: the tensor's.
        array: (rows, columns).
        kind: q8 or q4, and the group size.
        importance: for q4: of each input, as quantize_matrix() takes it.

    Raises:
        CheckpointError: a number is not finite or too large.
    """
    from ._cpu import quantize_matrix

    try:
        data, scales = quantize_matrix(array, kind.type, kind.group_size, importance=importance)
    except ValueError as error:
        raise CheckpointError(f"tensor {name}: {error}") from error
    return Weight(name, kind.type, array.shape, data, scales, kind.group_size)
