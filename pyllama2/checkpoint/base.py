"""What every reader gives: a config, a tokenizer, and tensors that are read when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..config import ModelConfig
from ..tokenizer.base import TokenizerSpec


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read yet.

    dtype      the name of its stored type, as its format spells it ("BF16", "Q4_K")
    nbytes     bytes that it is stored in, once
    read       gives a float32 or float16 array of its shape, in the order of rows that model.py expects
    read_rows  (start, stop) gives these rows alone, in the order in which they are stored, which for Hugging
               Face's wq and wk is another; nothing else is read
    release    lets the system take back the pages that were touched
    """

    dtype: str
    nbytes: int
    read: Callable[[], NDArray[Any]]
    read_rows: Callable[[int, int], NDArray[Any]]
    release: Callable[[], None]


class Checkpoint(ABC):
    """An opened checkpoint. Opening reads and checks everything but the tensors' numbers.

    config         the model's dimensions
    tokenizer      None when the checkpoint has none
    chat_template  Jinja source, None when the checkpoint has none
    files          every file that belongs to it
    source         one line: format and file name, kept in what is made from it
    """

    kind: ClassVar[str]
    config: ModelConfig
    tokenizer: TokenizerSpec | None
    chat_template: str | None
    files: list[str]
    source: str

    @abstractmethod
    def tensor(self, name: str) -> LazyTensor:
        """The tensor of that name in config.tensor_shapes(); its existence and shape were checked on opening."""

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], LazyTensor]]:
        """Every tensor of config.tensor_shapes() in order: name, shape, tensor.

        The pages of one are released when the next is asked for, so that memory holds one at a time.
        """
        for name, shape in self.config.tensor_shapes().items():
            tensor = self.tensor(name)
            yield name, shape, tensor
            tensor.release()

    def close(self) -> None:  # noqa: B027 (nothing to close is the common case)
        """Unmap the files. Arrays that were read stay valid."""


def with_overrides(config: ModelConfig, *, max_seq_len: int | None, norm_eps: float | None) -> ModelConfig:
    """config with what the caller wants in place of the checkpoint's values. Raises ValueError when out of range."""
    if max_seq_len is not None:
        config = replace(config, max_seq_len=max_seq_len)
    if norm_eps is not None:
        config = replace(config, norm_eps=norm_eps)
    return config
