"""What a LoRA adapter holds, and a checkpoint with adapters merged into its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.base import Checkpoint, LazyTensor
from ..checkpoint.row_order import in_our_order
from ..config import ModelConfig
from ..errors import CheckpointError
from ..shown import shown_value

MAX_FACTOR = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Change:
    """The change of one matrix: factor * b @ a.

    Attributes:
        a: (r, columns) float16 or float32. r may be 0.
        b: (rows, r), with its rows in the order of model.py.
        factor: alpha / r, times the scale that the user gave.
        base: (rows, columns), which the change is added to instead of the model's own matrix; None: the model's own.
    """

    a: NDArray[Any]
    b: NDArray[Any]
    factor: float
    base: NDArray[Any] | None = None

    def added_to(self, matrix: NDArray[Any]) -> NDArray[np.float32]:
        """Return a float32 (rows, columns) matrix with the change added."""
        changed = (self.b.astype(np.float32) * np.float32(self.factor)) @ self.a.astype(np.float32)
        changed += matrix if self.base is None else self.base
        return changed


def rows_in_our_order(name: str, b: NDArray[Any], config: ModelConfig) -> NDArray[Any]:
    """Bring the rows of b into the order of model.py, if they rotate the halves of a head.

    Args:
        name: the tensor that b @ a changes.
        b: (rows, r). A shape that does not fit is left for Adapter.check().
        config: the model's dimensions.
    """
    return in_our_order(name, b, config) if len(b) == config.tensor_shapes()[name][0] else b


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        title: its name for people, with its scale unless that is 1.
        files: the files that were read.
        changes: by the names of the tensors in ModelConfig.tensor_shapes().
    """

    title: str
    files: tuple[str, ...]
    changes: Mapping[str, Change]

    def check(self, config: ModelConfig) -> None:
        """Raise CheckpointError unless the adapter is for a model of this config, and its factors are finite."""
        shapes = config.tensor_shapes()
        embedding = self.changes.get("tok_embeddings.weight")
        if config.tied_embeddings and embedding is not None and len(embedding.a):
            raise CheckpointError(
                f"{self.files[0]} changes the embedding, which is the output matrix, too, in this model; "
                "merge this adapter with peft first"
            )
        for name, change in self.changes.items():
            if name not in shapes:
                raise CheckpointError(f"{self.files[0]} changes {shown_value(name)}, which the model does not have")
            (r, columns), (rows, other_r) = change.a.shape, change.b.shape
            fits = change.base is None or change.base.shape == shapes[name]
            if (rows, columns) != shapes[name] or r != other_r or not fits:
                raise CheckpointError(
                    f"{self.files[0]} changes {name} by ({rows}, {other_r}) times ({r}, {columns}), but it is "
                    f"{shapes[name]} in this model; is the adapter for another one?"
                )
            if not abs(change.factor) <= MAX_FACTOR:
                raise CheckpointError(f"{self.files[0]} changes {name} by the factor {change.factor:g}: out of range")


class MergedCheckpoint(Checkpoint):
    """A checkpoint whose tensors have adapters merged into them. close() closes the checkpoint itself.

    Args:
        checkpoint: the model.
        adapters: what is added to its tensors, one after another.

    Attributes:
        changed: the names of the tensors that the adapters change.

    Raises:
        CheckpointError: an adapter is for another model, or would discard the changes of one before it.
    """

    kind = "merged"
    changed: set[str]

    def __init__(self, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
        self.changed = set()
        for adapter in adapters:
            adapter.check(checkpoint.config)
            for name, change in adapter.changes.items():
                if change.base is not None and name in self.changed:
                    raise CheckpointError(
                        f"{adapter.files[0]} replaces {name}, which an adapter before it changes; name this one first"
                    )
            self.changed |= adapter.changes.keys()
        self._checkpoint = checkpoint
        self._adapters = adapters
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.chat_template, self.limit = checkpoint.chat_template, checkpoint.limit
        self.files = [*checkpoint.files, *(file for adapter in adapters for file in adapter.files)]
        self.source = f"{checkpoint.source} with {', '.join(adapter.title for adapter in adapters)}"

    def tensor(self, name: str) -> LazyTensor:
        tensor = self._checkpoint.tensor(name)
        if name not in self.changed:
            return tensor
        return replace(
            tensor,
            read=lambda: merged(name, tensor.read(), self._adapters),
            read_rows=lambda start, stop: merged(name, tensor.read(), self._adapters)[start:stop],
            codes=None,
        )

    def close(self) -> None:
        self._checkpoint.close()


def merged(name: str, matrix: NDArray[Any], adapters: Sequence[Adapter]) -> NDArray[Any]:
    """Add the changes of all adapters to a matrix."""
    for adapter in adapters:
        if name in adapter.changes:
            matrix = adapter.changes[name].added_to(matrix)
    return matrix
