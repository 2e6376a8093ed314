"""Our file: config, tokenizer, chat template and weights of one model, ready to be used in place.

It is a valid safetensors file (safetensors.py) whose `__metadata__` holds

    format "pyllama2", version "1"
    config          ModelConfig as JSON
    quantization    Quantization as JSON
    tokenizer       kind and special ids as JSON (absent without a tokenizer)
    chat_template   Jinja source (absent without one)
    source          where the weights came from
    calibration     CalibrationRecord as JSON (absent unless the weights were chosen on a text)

All tensors start at a multiple of 64 bytes. Weights have Meta's names. The scales of `X.weight` are called
`X.scales`. The tokenizer's own file is the U8 tensor `tokenizer`. Tensors called `padding.N` fill the gaps that
the alignment makes, since safetensors allows no holes.

A backend gets a StoredModel, which is mapped from disk or made in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError
from ..process.interrupts import Interrupts
from ..shown import shown
from ..tokenizer.base import TokenizerSpec
from .calibration_record import CalibrationRecord
from .mapped import MappedFile, files_under
from .new_file import NewFile
from .safetensors import ITEM_SIZES, Header, looks_like_safetensors, make_header, read_header
from .tensor_info import TensorInfo
from .weights import Quantization, Weight, packed_shapes

FORMAT = "pyllama2"
VERSION = 1
ALIGNMENT = 64
_STORED_AS = {"float32": "F32", "float16": "F16", "q8": "I8", "q4": "U8"}
_NUMPY = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}


@dataclass
class StoredModel:
    """One model.

    Attributes:
        config: the model's dimensions.
        quantization: the storage types of the matrices.
        tokenizer: None when the model has none.
        chat_template: Jinja source, None when the model has none.
        source: where the weights came from, in one line.
        calibration: how the weights were chosen; None: without a text.
        weights: the tensors by their names in config.tensor_shapes().
        file: the file that was opened, None for a model made in memory.
    """

    config: ModelConfig
    quantization: Quantization
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    source: str = ""
    calibration: CalibrationRecord | None = None
    weights: dict[str, Weight] = field(default_factory=dict)
    file: MappedFile | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    def files(self) -> list[MappedFile]:
        """Return the mapped files that weights lie in; none when all are in memory."""
        arrays = (array for weight in self.weights.values() for array in (weight.data, weight.scales))
        return files_under(array for array in arrays if array is not None)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StoredModel:
        """Map one of our files, without copying any weight.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or is not one of ours.
        """
        file = MappedFile(path)
        header = read_header(file)
        model = _read_metadata(file, header)
        model.file = file
        unread = {name for name in header.tensors if not name.startswith("padding.")}

        def stored_array(name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
            info = header.tensors.get(name)
            if info is None:
                raise CheckpointError(f"{file.path}: tensor {name} is missing")
            if (info.dtype, info.shape) != (dtype, shape):
                raise CheckpointError(
                    f"{file.path}: tensor {name} should be {dtype} {shape}, the file says {info.dtype} {info.shape}"
                )
            if info.offset % ALIGNMENT:
                raise CheckpointError(f"{file.path}: tensor {name} is not aligned to {ALIGNMENT} bytes")
            unread.discard(name)
            return file.array(info.offset, _NUMPY[dtype], shape)

        for name, shape in model.config.tensor_shapes().items():
            arrays = [stored_array(*entry) for entry in _stored_arrays(model, name, shape)]
            kind = model.quantization.storage_of(name, model.config)
            scales = arrays[1] if len(arrays) == 2 else None
            model.weights[name] = Weight(name, kind.type, shape, arrays[0], scales, kind.group_size)
        unread.discard("tokenizer")
        if unread:
            raise CheckpointError(f"{file.path}: unknown tensor {min(unread)[:80]!r}")
        return model


def is_model_file(file: MappedFile) -> bool:
    """Whether a mapped file is one of ours, of any version.

    Raises:
        CheckpointError: the file looks like safetensors, but its header is damaged.
    """
    return looks_like_safetensors(file) and read_header(file).metadata.get("format") == FORMAT


def _stored_arrays(model: StoredModel, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield name, dtype and shape of each array that stores the tensor called name."""
    kind = model.quantization.storage_of(name, model.config)
    data_shape, scales_shape = packed_shapes(kind.type, shape, kind.group_size)
    yield name, _STORED_AS[kind.type], data_shape
    if scales_shape is not None:
        yield name.removesuffix("weight") + "scales", "F16", scales_shape


def _read_metadata(file: MappedFile, header: Header) -> StoredModel:
    metadata = header.metadata
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file.path} is a safetensors file, but not one that pyllama2 wrote")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{file.path} has version {metadata.get('version', '')[:20]!r} of the format, this pyllama2 reads version "
            f"{VERSION}; make the file again with `python -m pyllama2.export`"
        )
    try:
        config = ModelConfig.from_json(metadata["config"])
        quantization = Quantization.from_json(metadata["quantization"])
        quantization.check(config)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path}: bad config or quantization in its metadata: {error!s:.200}") from error
    tokenizer = None
    if "tokenizer" in metadata:
        info = header.tensors.get("tokenizer")
        if info is None or info.dtype != "U8" or len(info.shape) != 1:
            raise CheckpointError(f"{file.path}: the tokenizer's tensor is missing or not U8")
        try:
            tokenizer = TokenizerSpec.from_json(metadata["tokenizer"], file.bytes(info.offset, info.nbytes))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file.path}: bad tokenizer in its metadata: {error!s:.200}") from error
    calibration = None
    if "calibration" in metadata:
        try:
            calibration = CalibrationRecord.from_json(metadata["calibration"])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file.path}: bad calibration in its metadata: {error!s:.200}") from error
    source = shown(metadata.get("source", ""))
    return StoredModel(config, quantization, tokenizer, metadata.get("chat_template"), source, calibration)


class ModelWriter:
    """Writes one of our files tensor by tensor, under a temporary name that is changed to path at the end.

        with ModelWriter(path, model) as writer:      # model.weights is not used
            for weight in ...:                        # in the order of config.tensor_shapes()
                writer.write(weight)

    When the block fails, the temporary file is removed and path is unchanged.

    Args:
        path: the file to write.
        model: everything but the weights.
        interrupts: signals that the caller holds back; see NewFile.

    Raises:
        CheckpointError: the file cannot be written.
        ValueError: the block ended before every tensor was written.
    """

    def __init__(self, path: str | os.PathLike[str], model: StoredModel, interrupts: Interrupts | None = None) -> None:
        self._model = model
        self._layout, self._header = _plan(model)
        self._pending = list(model.config.tensor_shapes())[::-1]
        self._file = NewFile(path, interrupts)

    def __enter__(self) -> ModelWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._file)
            self._file.write(self._header)
            if self._model.tokenizer is not None:
                self._put("tokenizer", self._model.tokenizer.data)
            stack.pop_all()
        return self

    def write(self, weight: Weight) -> None:
        """Append the next tensor.

        Raises:
            CheckpointError: the file cannot be written.
            ValueError: weight is not the next tensor, or its arrays are not what the model's config asks for.
        """
        if not self._pending or self._pending.pop() != weight.name:
            raise ValueError(f"{weight.name} is not the next tensor of the file")
        arrays = [weight.data] if weight.scales is None else [weight.data, weight.scales]
        entries = list(_stored_arrays(self._model, weight.name, weight.shape))
        for (name, dtype, shape), array in zip(entries, arrays, strict=True):
            if array.shape != shape or array.dtype != _NUMPY[dtype]:
                raise ValueError(f"{name} should be {dtype} {shape}, not {array.dtype} {array.shape}")
            self._put(name, np.ascontiguousarray(array).data.cast("B"))

    def _put(self, name: str, data: bytes | memoryview) -> None:
        self._file.fill_to(self._layout[name].offset)
        self._file.write(data)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.__exit__(kind, value, trace)
            return
        with contextlib.ExitStack() as stack:
            stack.push(self._file)
            if self._pending:
                raise ValueError(f"{self._pending[-1]} was not written")
            self._file.fill_to(max(info.offset + info.nbytes for info in self._layout.values()))


def _plan(model: StoredModel) -> tuple[dict[str, TensorInfo], bytes]:
    """Place every array in the file; returns the places (offsets from the start of the file) and the header."""
    arrays: list[tuple[str, str, tuple[int, ...]]] = []
    if model.tokenizer is not None:
        arrays.append(("tokenizer", "U8", (len(model.tokenizer.data),)))
    for name, shape in model.config.tensor_shapes().items():
        arrays.extend(_stored_arrays(model, name, shape))

    layout: dict[str, TensorInfo] = {}
    offset = 0
    for name, dtype, shape in arrays:
        if offset % ALIGNMENT:
            filler = -offset % ALIGNMENT
            layout[f"padding.{len(layout)}"] = TensorInfo("U8", (filler,), offset, filler)
            offset += filler
        nbytes = int(np.prod(shape, dtype=np.int64)) * ITEM_SIZES[dtype]
        layout[name] = TensorInfo(dtype, shape, offset, nbytes)
        offset += nbytes

    header = make_header(layout, _metadata(model), ALIGNMENT)
    moved = {
        name: TensorInfo(info.dtype, info.shape, info.offset + len(header), info.nbytes)
        for name, info in layout.items()
    }
    return moved, header


def _metadata(model: StoredModel) -> dict[str, str]:
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": model.config.to_json(),
        "quantization": model.quantization.to_json(),
        "source": model.source,
    }
    if model.tokenizer is not None:
        metadata["tokenizer"] = model.tokenizer.to_json()
    if model.chat_template is not None:
        metadata["chat_template"] = model.chat_template
    if model.calibration is not None:
        metadata["calibration"] = model.calibration.to_json()
    return metadata
