"""Files of the sequences in a cache, so that another process can go on with them.

A valid safetensors file (storage/safetensors.py). Its `__metadata__` holds

    format    "pyllama2-state", version "1"
    model     fingerprint() of the model that computed it
    kv_dtype  of the keys and values

Its tensors are, for sequence number N (the one used longest ago comes first): `N.tokens` (length,) I32, and the arrays
of KVCache.save_row() as `N.keys`, `N.values`, ...
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Backend
from ..backend.kv_cache import saved_arrays
from ..errors import CheckpointError
from ..process.interrupts import Interrupts
from ..shown import shown
from ..storage.mapped import MappedFile
from ..storage.model_file import StoredModel
from ..storage.new_file import NewFile
from ..storage.safetensors import ITEM_SIZES, make_header, read_header
from ..storage.tensor_info import TensorInfo
from ..storage.weights import all_finite
from .prefix_cache import MAX_ROWS, PrefixCache
from .scheduler import Scheduler

log = logging.getLogger("pyllama2")

FORMAT = "pyllama2-state"
VERSION = "1"
_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I32": "i4", "I16": "i2", "I8": "i1", "U16": "u2", "U8": "u1"}
_NAMES = {np.dtype(name): stored for stored, name in _DTYPES.items()}
_SAMPLES = 16  # places in each tensor that the fingerprint looks at
_SAMPLE_BYTES = 64


def fingerprint(model: StoredModel) -> str:
    """Return a hash that tells models apart: of the config, the quantization, and samples of each tensor.

    Raises CheckpointError when the model's file has changed.
    """
    digest = hashlib.sha256(model.config.to_json().encode())
    digest.update(json.dumps(asdict(model.quantization)).encode())
    for name, weight in sorted(model.weights.items()):
        for array in (weight.data, weight.scales):
            if array is not None:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                digest.update(f"{name} {len(data)}".encode())
                for start in np.linspace(0, max(0, len(data) - _SAMPLE_BYTES), _SAMPLES, dtype=np.int64):
                    digest.update(data[start : start + _SAMPLE_BYTES].tobytes())
    for file in model.files():
        file.check()
    return digest.hexdigest()


class SequenceLayout:
    """The arrays of a sequence in a model's cache: their names, dtypes and shapes.

    Attributes:
        vocab_size: of the model.
        identity: metadata that a file must have to belong to the model.
    """

    def __init__(self, backend: Backend, model: StoredModel) -> None:
        self.vocab_size = model.config.vocab_size
        self._config = model.config
        self._kv_dtype = backend.describe().kv_dtype
        self.identity = {"model": fingerprint(model), "kv_dtype": self._kv_dtype}

    def infos(self, index: int, length: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name in the file -> (dtype, shape), for each array of a sequence of length tokens."""
        infos: dict[str, tuple[str, tuple[int, ...]]] = {f"{index}.tokens": ("I32", (length,))}
        for name, (dtype, shape) in saved_arrays(self._config, length, self._kv_dtype).items():
            infos[f"{index}.{name}"] = (_NAMES[np.dtype(dtype)], shape)
        return infos

    @property
    def names(self) -> list[str]:
        """Names of the arrays of save_row()."""
        return list(saved_arrays(self._config, 0, self._kv_dtype))


def save_sequences(file: NewFile, rows: PrefixCache, layout: SequenceLayout) -> None:
    """Write the sequences of rows. Raises CheckpointError when the file cannot be written."""
    saved = sorted((row for row in rows.rows if row.ids), key=lambda row: row.used)
    infos: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index, row in enumerate(saved):
        infos |= layout.infos(index, len(row.ids))
    file.write(make_header(_layout(infos), {"format": FORMAT, "version": VERSION, **layout.identity}))
    for index, row in enumerate(saved):
        assert rows.cache is not None
        arrays = {"tokens": np.array(row.ids, np.int32), **rows.cache.save_row(row.index, len(row.ids))}
        for name in layout.infos(index, len(row.ids)):
            file.write(np.ascontiguousarray(arrays[name.partition(".")[2]]).data.cast("B"))


def save_state(path: str, backend: Backend, model: StoredModel, scheduler: Scheduler) -> None:
    """Write the sequences in a scheduler's cache. Raises CheckpointError when the file cannot be written."""
    layout = SequenceLayout(backend, model)
    with (
        Interrupts() as interrupts,
        scheduler.rows(interrupts) as rows,
        NewFile(path, interrupts) as file,
        interrupts.allowed(),
    ):
        save_sequences(file, rows, layout)


def load_state(path: str, backend: Backend, model: StoredModel, scheduler: Scheduler, n_ctx: int) -> None:
    """Add a file's sequences, cut to n_ctx tokens, to a scheduler's cache. Raises what StateFile raises."""
    layout = SequenceLayout(backend, model)
    with (
        contextlib.closing(StateFile(path, layout, n_ctx)) as file,
        Interrupts() as interrupts,
        scheduler.rows(interrupts) as rows,
    ):
        file.load_into(rows)


class StateFile:
    """A file of sequences, mapped and checked.

    Only the first n_ctx positions of a sequence are read, whatever length the file claims. Everything but the numbers
    in keys and values is checked at once.

    Args:
        path: the file.
        layout: of the model that will use the sequences.
        n_ctx: longest sequence; longer ones are cut.

    Attributes:
        sequences: the token ids of each.

    Raises:
        CheckpointError: the file is bad, or belongs to another model.
    """

    def __init__(self, path: str, layout: SequenceLayout, n_ctx: int) -> None:
        self._file = MappedFile(path)
        self._layout = layout
        self._n_ctx = n_ctx
        try:
            header = read_header(self._file)
            self._check_metadata(header.metadata, layout.identity)
            self._tensors = header.tensors
            self.sequences = self._read_sequences()
        except BaseException:
            self._file.close()
            raise

    def load_into(self, rows: PrefixCache) -> None:
        """Add the sequences to rows. If there is no room for all, those used last stay.

        A sequence with numbers that are not finite is left out, since no model computes them. Its prompt will be
        computed anew. Raises CheckpointError when the file changes meanwhile.
        """
        longest = max(map(len, self.sequences), default=0)
        for index, ids in enumerate(self.sequences):
            views = {
                name: self._array(self._tensors[f"{index}.{name}"])[:, :, : len(ids)] for name in self._layout.names
            }
            if not all(all_finite(part) for view in views.values() if view.dtype.kind == "f" for part in view):
                log.warning(
                    "%s: sequence %d has numbers that are not finite, and is left out", shown(self._file.path), index
                )
                continue
            row = rows.add(ids, longest)
            if row is not None:
                assert rows.cache is not None
                rows.cache.load_row(row.index, {name: np.ascontiguousarray(view) for name, view in views.items()})
                self._file.check()
                row.ids = ids

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()

    def _check_metadata(self, metadata: dict[str, str], identity: dict[str, str]) -> None:
        path = self._file.path
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is a safetensors file, but not one that save_state() wrote")
        if metadata.get("version") != VERSION:
            version = metadata.get("version", "")[:20]
            raise CheckpointError(f"{path} has version {version!r} of the format, this pyllama2 reads {VERSION}")
        if metadata.get("model") != identity["model"]:
            raise CheckpointError(f"{path} was saved with another model, or another quantization of it")
        if metadata.get("kv_dtype") != identity["kv_dtype"]:
            saved = metadata.get("kv_dtype", "")[:20]
            raise CheckpointError(f"{path} has keys and values of kv_dtype {saved!r}, not {identity['kv_dtype']!r}")

    def _read_sequences(self) -> list[list[int]]:
        """The first n_ctx tokens of each sequence. Raises CheckpointError for an array that is missing or unknown."""
        path, tensors = self._file.path, self._tensors
        n_sequences, rest = divmod(len(tensors), 1 + len(self._layout.names))
        if rest or n_sequences > MAX_ROWS:
            raise CheckpointError(f"{path} has {len(tensors)} tensors, which no saved state has")
        sequences = []
        for index in range(n_sequences):
            info = tensors.get(f"{index}.tokens")
            length = info.shape[0] if info is not None and len(info.shape) == 1 else 0
            if info is None or length == 0:
                raise CheckpointError(f"{path}: the tokens of sequence {index} are missing")
            for name, (dtype, shape) in self._layout.infos(index, length).items():
                tensor = tensors.get(name)
                if tensor is None or (tensor.dtype, tensor.shape) != (dtype, shape):
                    raise CheckpointError(f"{path}: tensor {name} is missing, or not {dtype} {shape}")
            tokens = self._array(info)[: self._n_ctx]
            if tokens.min() < 0 or tokens.max() >= self._layout.vocab_size:
                raise CheckpointError(f"{path}: sequence {index} has token ids outside the vocabulary")
            sequences.append(tokens.tolist())
        self._file.check()
        return sequences

    def _array(self, info: TensorInfo) -> NDArray[Any]:
        return self._file.array(info.offset, _DTYPES[info.dtype], info.shape)


def _layout(infos: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Places of the arrays, one after the other."""
    layout: dict[str, TensorInfo] = {}
    offset = 0
    for name, (dtype, shape) in infos.items():
        layout[name] = TensorInfo(dtype, shape, offset, prod(shape) * ITEM_SIZES[dtype])
        offset += layout[name].nbytes
    return layout
