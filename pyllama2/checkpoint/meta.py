"""Meta's own checkpoints: a directory with params.json, consolidated.00.pth, ... and tokenizer.model.

N files hold one model, split into N shards. Each shard has all tensor names. Norms are the same in all shards;
each shard has a part of every matrix, and the parts are joined on

    dimension 0    wq wk wv w1 w3 output, and tok_embeddings in Llama-3
    dimension 1    wo w2, and tok_embeddings in Llama-2

wq and wk rotate adjacent rows, as in model.py.
Source: https://github.com/meta-llama/llama (model.py and README).
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig, RopeScaling, default_head_dim
from ..errors import CheckpointError
from ..families import ContextLimit
from ..shown import shown
from .base import Checkpoint, LazyTensor
from .json_file import JsonObject
from .pth import read_pth
from .stored_tensor import StoredTensor
from .tensor_names import check_tensors
from .title import title_of
from .tokenizer_files import read_tokenizer_file

_log = logging.getLogger(__name__)

_SHARD = re.compile(r"consolidated\.(\d\d)\.pth")
# params.json holds no context length; this is Llama-2's.
_MAX_SEQ_LEN = 4096
_ROW_PARALLEL = ("attention.wo.weight", "feed_forward.w2.weight")
# What Meta's reference code uses for use_scaled_rope.
_LLAMA3_SCALING = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


@dataclass(frozen=True)
class _Pieces:
    """One tensor of the model: a piece per shard, all of one shape and type. axis None: the pieces are all the same."""

    shards: list[StoredTensor]
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.shards[0].shape)
        if self.axis is not None:
            shape[self.axis] *= len(self.shards)
        return tuple(shape)

    def read(self) -> NDArray[Any]:
        """Read the joined tensor. Only one piece at a time is in memory beside it."""
        if self.axis is None or len(self.shards) == 1:
            return self.shards[0].read()
        joined = np.empty(self.shape, self.shards[0].read_dtype)
        for part, shard in zip(np.split(joined, len(self.shards), self.axis), self.shards, strict=True):
            shard.read_into(part)
            shard.release()
        return joined

    @property
    def nbytes(self) -> int:
        return self.shards[0].nbytes * (1 if self.axis is None else len(self.shards))

    def read_rows(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows start .. stop - 1 of the joined tensor, and no others."""
        if self.axis is None:
            return self.shards[0].read_rows(start, stop)
        if self.axis == 1:
            return np.concatenate([shard.read_rows(start, stop) for shard in self.shards], axis=1)
        rows = self.shards[0].shape[0]
        bounds = [(max(start - i * rows, 0), min(stop - i * rows, rows)) for i in range(len(self.shards))]
        parts = zip(self.shards, bounds, strict=True)
        return np.concatenate([shard.read_rows(first, end) for shard, (first, end) in parts if first < end])

    def release(self) -> None:
        for shard in self.shards:
            shard.release()


class MetaCheckpoint(Checkpoint):
    """A directory of Meta, also by the path of one of its consolidated.NN.pth files.

    The tokenizer is tokenizer.model in the directory, or in the one above.
    """

    kind = "meta"

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None:
        folder = _folder(os.fspath(path))
        params = _read_params(os.path.join(folder, "params.json"))
        shard_paths = _shard_paths(folder)
        self._pieces = _collect(shard_paths, [read_pth(shard) for shard in shard_paths], params)
        window = params.get("sliding_window", int)
        self.limit = None if window is None else ContextLimit.of_window(window)
        self.config = _config(params, self._pieces, len(shard_paths), window)
        shapes = {name: pieces.shape for name, pieces in self._pieces.items()}
        hint = f" (of {len(shard_paths)} shard(s)); is a shard missing, or params.json from another model?"
        check_tensors(folder, self.config, shapes, hint=hint)
        tokenizer_path = tokenizer or _find_tokenizer(folder)
        self.tokenizer = read_tokenizer_file(tokenizer_path, self.config.vocab_size) if tokenizer_path else None
        self.chat_template = None
        self.files = [params.path, *shard_paths, *([tokenizer_path] if tokenizer_path else [])]
        self.source = f"Meta checkpoint {shown(title_of(folder))}"

    def tensor(self, name: str) -> LazyTensor:
        pieces = self._pieces[name]
        return LazyTensor(pieces.shards[0].dtype, pieces.nbytes, pieces.read, pieces.read_rows, pieces.release)

    def close(self) -> None:
        for pieces in self._pieces.values():
            for shard in pieces.shards:
                shard.file.close()


def shard_names(folder: str) -> list[str]:
    """List the names of the consolidated.NN.pth files in a directory, sorted.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    try:
        return sorted(name for name in os.listdir(folder) if _SHARD.fullmatch(name))
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}") from error


def _folder(path: str) -> str:
    if os.path.isdir(path):
        return path
    folder, name = os.path.split(path)
    if not _SHARD.fullmatch(name):
        raise CheckpointError(
            f"{path} is a torch file; a Meta checkpoint is a directory with params.json and consolidated.00.pth"
        )
    return folder or os.curdir


def _shard_paths(folder: str) -> list[str]:
    names = shard_names(folder)
    expected = [f"consolidated.{i:02}.pth" for i in range(len(names))]
    if not names:
        raise CheckpointError(f"{folder} has no consolidated.00.pth")
    if names != expected:
        missing = min(set(expected) - set(names))
        raise CheckpointError(f"{folder}: {missing} is missing, though there is a {names[-1]}")
    return [os.path.join(folder, name) for name in names]


def _read_params(path: str) -> JsonObject:
    params = JsonObject.read(path)
    if "dim" not in params.values and isinstance(params.values.get("model"), dict):
        params = JsonObject(path, params.values["model"])
    return params


def _collect(paths: list[str], shards: list[dict[str, StoredTensor]], params: JsonObject) -> dict[str, _Pieces]:
    """Return the tensors of all shards by name. Raises CheckpointError if shards have different names, shapes or types.

    Tensors called rope.freqs are left out.
    """
    dim = params.positive("dim")
    collected = {}
    for path, shard in zip(paths[1:], shards[1:], strict=True):
        for name in sorted(shards[0].keys() ^ shard.keys()):
            without = path if name in shards[0] else paths[0]
            raise CheckpointError(f"{without}: tensor {name[:80]!r} is missing, though another shard has it")
    for name, first in shards[0].items():
        if name.endswith("rope.freqs"):  # these follow from the config; Llama-1 has them in every layer
            continue
        for path, shard in zip(paths, shards, strict=True):
            if (shard[name].shape, shard[name].dtype) != (first.shape, first.dtype):
                raise CheckpointError(
                    f"{path}: tensor {name[:80]!r} is {shard[name].dtype} {shard[name].shape}, "
                    f"but {first.dtype} {first.shape} in {os.path.basename(paths[0])}"
                )
        collected[name] = _Pieces([shard[name] for shard in shards], _axis(name, first.shape, dim))
    return collected


def _axis(name: str, shape: tuple[int, ...], dim: int) -> int | None:
    """Return the dimension on which the pieces of a tensor are joined; None for a norm."""
    if len(shape) != 2:
        return None
    if name == "tok_embeddings.weight":
        return 0 if shape[1] == dim else 1
    return 1 if name.endswith(_ROW_PARALLEL) else 0


def _config(params: JsonObject, pieces: dict[str, _Pieces], n_shards: int, window: int | None) -> ModelConfig:
    dim, n_heads = params.positive("dim"), params.positive("n_heads")
    vocab_size = _rows(params, pieces, "tok_embeddings.weight")
    if params.get("vocab_size", int, -1) not in (-1, vocab_size):
        raise CheckpointError(
            f"{params.path}: vocab_size is {params.values['vocab_size']}, but tok_embeddings.weight of "
            f"{n_shards} shard(s) has {vocab_size} rows"
        )
    hidden_dim = _rows(params, pieces, "layers.0.feed_forward.w1.weight")
    _compare_hidden_dim(params, dim, hidden_dim)
    head_dim = params.get("head_dim", int)
    try:
        return ModelConfig(
            dim=dim,
            hidden_dim=hidden_dim,
            n_layers=params.positive("n_layers"),
            n_heads=n_heads,
            n_kv_heads=params.positive("n_kv_heads", n_heads),
            head_dim=default_head_dim(dim, n_heads) if head_dim is None else head_dim,
            vocab_size=vocab_size,
            max_seq_len=_MAX_SEQ_LEN if window is None else window,
            norm_eps=params.get("norm_eps", (float, int), 1e-5),
            rope_theta=params.get("rope_theta", (float, int), 10000.0),
            rope_scaling=_LLAMA3_SCALING if params.get("use_scaled_rope", bool, False) else None,
        )
    except ValueError as error:
        raise CheckpointError(f"{params.path}: {error}") from error


def _rows(params: JsonObject, pieces: dict[str, _Pieces], name: str) -> int:
    if name not in pieces or len(pieces[name].shape) != 2:
        raise CheckpointError(f"{os.path.dirname(params.path)}: matrix {name} is missing")
    return pieces[name].shape[0]


def _compare_hidden_dim(params: JsonObject, dim: int, hidden_dim: int) -> None:
    """Warn when Meta's formula gives another hidden_dim than the shape of w1, which is the one that is used."""
    multiple_of = params.positive("multiple_of", 256)
    formula = int(2 * 4 * dim / 3)
    multiplier = params.get("ffn_dim_multiplier", (float, int))
    if multiplier is not None and 0 < multiplier < 1000:
        formula = int(multiplier * formula)
    formula = -(-formula // multiple_of) * multiple_of
    if "multiple_of" in params.values and formula != hidden_dim:
        _log.warning("%s: hidden_dim should be %d, the weights have %d", shown(params.path), formula, hidden_dim)


def _find_tokenizer(folder: str) -> str | None:
    for place in (folder, os.path.join(folder, os.pardir)):
        path = os.path.join(place, "tokenizer.model")
        if os.path.exists(path):
            return path
    return None
