"""The .bin files of llama2.c, versions 0, 1 and 2. All numbers are little-endian.

    version 0   7 x int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size
                means that there is an output matrix; then float32 tensors, of all layers one kind after another:
                tok_embeddings, attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3, norm,
                cosines and sines of the rotations (seq_len x head_dim / 2 each, not needed), output
    version 1   "24ka", int32 1, the 7 numbers, byte 1 when the embedding is the output matrix, zeros to byte 256;
                then attention_norm, ffn_norm, norm, tok_embeddings, wq, wk, wv, wo, w1, w2, w3, output
    version 2   as version 1, with int32 group_size after the byte; each matrix is int8 codes, then a float32 scale
                for every group_size codes

wq and wk rotate adjacent rows, as in model.py. Constants are Llama-2's: norm_eps 1e-5, rope_theta 10000.
Source: https://github.com/karpathy/llama2.c (export.py, run.c, runq.c).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig, default_head_dim
from ..errors import CheckpointError
from ..shown import shown
from ..storage.mapped import MappedFile
from .base import Checkpoint, LazyTensor
from .tokenizer_files import read_tokenizer_file

_MAGIC = b"24ka"  # 0x616b3432
_HEADER_V0 = 28
_HEADER = 256
_ORDER_V0 = (
    "tok_embeddings", "attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
    "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "norm", "rotations", "output",
)  # fmt: skip
_ORDER = (
    "attention_norm", "ffn_norm", "norm", "tok_embeddings", "attention.wq", "attention.wk", "attention.wv",
    "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "output",
)  # fmt: skip
_TOP = ("tok_embeddings", "norm", "output")


@dataclass(frozen=True)
class _Header:
    """What a header says; group_size is 0 for float32 tensors."""

    config: ModelConfig
    version: int
    length: int
    group_size: int = 0


class Llama2cCheckpoint(Checkpoint):
    """A .bin file of llama2.c. It has no tokenizer in it."""

    kind = "llama2.c"
    chat_template = None

    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None:
        self._file = MappedFile(path)
        header = _read_header(self._file)
        self._group_size = header.group_size
        self._offsets, end = _layout(header)
        if end != self._file.size:
            raise CheckpointError(
                f"{self._file.path} should have {end} bytes as a version {header.version} file of llama2.c, "
                f"it has {self._file.size}"
            )
        self.config = header.config
        self.tokenizer = read_tokenizer_file(tokenizer, self.config.vocab_size) if tokenizer else None
        self.files = [self._file.path, *([tokenizer] if tokenizer else [])]
        self.source = f"llama2.c {shown(os.path.basename(self._file.path))}"

    def tensor(self, name: str) -> LazyTensor:
        shape = self.config.tensor_shapes()[name]
        offset = self._offsets[name]
        nbytes = _stored_size(shape, self._group_size)
        release = partial(self._file.release, offset, nbytes)
        if self._group_size and len(shape) == 2:
            rows = partial(self._dequantized, offset, shape)
            return LazyTensor("Q8_0", nbytes, partial(rows, 0, shape[0]), rows, release)
        rows = partial(self._floats, offset, shape)
        return LazyTensor("F32", nbytes, partial(rows, 0, shape[0]), rows, release)

    def close(self) -> None:
        self._file.close()

    def _floats(self, offset: int, shape: tuple[int, ...], start: int, stop: int) -> NDArray[Any]:
        row = prod(shape[1:])
        return self._file.array(offset + 4 * start * row, "<f4", (stop - start, *shape[1:]))

    def _dequantized(self, offset: int, shape: tuple[int, ...], start: int, stop: int) -> NDArray[Any]:
        """Read rows of a version 2 matrix as float32. A group may continue from one row into the next."""
        size, columns = self._group_size, shape[1]
        first, end = start * columns // size, -(-stop * columns // size)  # groups that the rows lie in
        codes = self._file.array(offset + first * size, np.int8, (end - first, size))
        scales = self._file.array(offset + prod(shape) + 4 * first, "<f4", (end - first, 1))
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks that the numbers are finite
            numbers: NDArray[np.float32] = codes * scales
        begin = start * columns - first * size
        return numbers.reshape(-1)[begin:][: (stop - start) * columns].reshape(stop - start, columns)


def is_llama2c(file: MappedFile) -> bool:
    """Whether a mapped file is one of llama2.c.

    It has the format's first four bytes, or a plausible version 0 header and exactly the size that the header implies.
    """
    if file.size >= 4 and file.bytes(0, 4) == _MAGIC:
        return True
    try:
        return _layout(_read_header(file))[1] == file.size
    except CheckpointError:
        return False


def _read_header(file: MappedFile) -> _Header:
    if file.size < _HEADER_V0:
        raise CheckpointError(f"{file.path} is truncated: {file.size} bytes are no llama2.c file")
    if file.bytes(0, 4) != _MAGIC:
        numbers = struct.unpack("<7i", file.bytes(0, _HEADER_V0))
        return _Header(_config(file.path, numbers, tied=numbers[5] > 0), 0, _HEADER_V0)
    version, *rest, tied, group_size = struct.unpack("<8iBi", file.bytes(4, 37))
    if version not in (1, 2):
        raise CheckpointError(f"{file.path} has version {version} of llama2.c's format; 0, 1 and 2 are supported")
    if tied > 1 or rest[5] < 0:
        raise CheckpointError(f"{file.path}: the header of the llama2.c file is damaged")
    config = _config(file.path, tuple(rest), tied=tied == 1)
    if version == 1:
        return _Header(config, version, _HEADER)
    if group_size < 1 or any(prod(shape) % group_size for shape in config.tensor_shapes().values() if len(shape) == 2):
        raise CheckpointError(f"{file.path}: a group size of {group_size} does not divide every matrix")
    return _Header(config, version, _HEADER, group_size)


def _config(path: str, numbers: tuple[int, ...], tied: bool) -> ModelConfig:
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = numbers
    try:
        return ModelConfig(
            dim=dim,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=default_head_dim(dim, n_heads),
            vocab_size=abs(vocab_size),
            max_seq_len=seq_len,
            tied_embeddings=tied,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _layout(header: _Header) -> tuple[dict[str, int], int]:
    """Return the offset of every tensor by name, and where the last one ends."""
    config = header.config
    shapes = config.tensor_shapes()
    offsets = {}
    position = header.length
    for kind in _ORDER if header.version else _ORDER_V0:
        if kind == "rotations":
            position += 4 * config.max_seq_len * config.head_dim
            continue
        for name in _names(kind, config):
            offsets[name] = position
            position += _stored_size(shapes[name], header.group_size)
    return offsets, position


def _names(kind: str, config: ModelConfig) -> Iterator[str]:
    if kind == "output" and config.tied_embeddings:
        return
    if kind in _TOP:
        yield f"{kind}.weight"
    else:
        yield from (f"layers.{i}.{kind}.weight" for i in range(config.n_layers))


def _stored_size(shape: tuple[int, ...], group_size: int) -> int:
    """Return the bytes of a tensor. Norms are float32 in every version."""
    if group_size and len(shape) == 2:
        return prod(shape) + 4 * (prod(shape) // group_size)
    return 4 * prod(shape)
