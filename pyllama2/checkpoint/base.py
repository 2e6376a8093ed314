"""The interface of checkpoint readers: a config, a tokenizer, and tensors that are read on demand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..families import ContextLimit
from ..storage.weights import StorageType
from ..tokenizer.base import TokenizerSpec


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read yet.

    Attributes:
        dtype: the stored type, as the file format spells it ("BF16", "Q4_K").
        nbytes: bytes that the tensor takes in the checkpoint; copies in other shards do not count.
        read: returns a float32 or float16 array of the tensor's shape, with its rows in the order of model.py.
        read_rows: takes (start, stop) and returns rows start .. stop - 1 only. They are in the order in which they
            are stored, which differs from that of read for Hugging Face's wq and wk.
        release: lets the operating system take back the pages that were read.
        codes: takes a quantized storage type and returns codes and scales that give the same numbers, as
            Weight.of_codes() takes them, or None if the type has not the same numbers. None: no type has.
    """

    dtype: str
    nbytes: int
    read: Callable[[], NDArray[Any]]
    read_rows: Callable[[int, int], NDArray[Any]]
    release: Callable[[], None]
    codes: Callable[[StorageType], tuple[NDArray[np.int8], NDArray[np.float16]] | None] | None = None


class Checkpoint(ABC):
    """An open checkpoint. Opening reads and checks everything but the tensors' numbers.

    Args:
        path: the file or directory.
        tokenizer: path of a tokenizer file that replaces the checkpoint's own.

    Attributes:
        kind: the name of the format.
        config: the model's dimensions.
        tokenizer: None when the checkpoint has none.
        chat_template: Jinja source, None when the checkpoint has none.
        files: every file that belongs to the checkpoint.
        limit: the longest context that can be computed; None: any. config.max_seq_len is not above it.
        changed: names of the tensors that adapters change.
        source: one line with the format and the file name, which is stored in files made from the checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged or not supported.
    """

    kind: ClassVar[str]
    config: ModelConfig
    tokenizer: TokenizerSpec | None
    chat_template: str | None
    files: list[str]
    limit: ContextLimit | None = None
    changed: Collection[str] = ()
    source: str

    @abstractmethod
    def __init__(self, path: str | os.PathLike[str], tokenizer: str | None = None) -> None: ...

    @property
    def why_it_ends(self) -> str:
        """Why the context cannot be longer than config.max_seq_len; "": only since that is what was asked for."""
        return self.limit.reason if self.limit and self.config.max_seq_len == self.limit.n_tokens else ""

    @abstractmethod
    def tensor(self, name: str) -> LazyTensor:
        """Return the tensor of a name in config.tensor_shapes(); opening has checked that it exists, and its shape."""

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], LazyTensor]]:
        """Iterate over every tensor of config.tensor_shapes(), in order.

        Yields:
            Name, shape and tensor. The pages of a tensor are released before the next one is yielded, so that
            memory holds one at a time.
        """
        for name, shape in self.config.tensor_shapes().items():
            tensor = self.tensor(name)
            yield name, shape, tensor
            tensor.release()

    def close(self) -> None:  # noqa: B027 (nothing to close is the common case)
        """Unmap the files. Arrays that were read stay valid."""
