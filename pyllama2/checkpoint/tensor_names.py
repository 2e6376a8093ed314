"""What other formats call the tensors of a Llama, and the check that a checkpoint has these and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config import ModelConfig
from ..errors import CheckpointError
from ..shown import shown_value


@dataclass(frozen=True)
class TensorNames:
    """A format's names of the tensors in ModelConfig.tensor_shapes().

    All names end with ".weight" or ".bias", theirs and ours.

    Attributes:
        layer: what stands before the number of a layer: "blk" in "blk.7.attn_q.weight".
        theirs: the rest of their names by the rest of ours: "attn_q" by "attention.wq".
    """

    layer: str
    theirs: Mapping[str, str]

    def of(self, name: str) -> str:
        """Their name of the tensor that we call name."""
        name, _, kind = name.rpartition(".")
        if name in self.theirs:
            return f"{self.theirs[name]}.{kind}"
        _, number, rest = name.split(".", 2)
        return f"{self.layer}.{number}.{self.theirs[rest]}.{kind}"


def check_tensors(
    path: str,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    name_of: Callable[[str], str] = str,
    *,
    hint: str = "",
) -> None:
    """Check that a checkpoint has the tensors of its config, and no others.

    Args:
        path: the checkpoint, for error messages.
        config: the model's dimensions.
        shapes: the shape of every tensor in the checkpoint, by its name there.
        name_of: gives the name there for a name in config.tensor_shapes(); they are the same by default.
        hint: what the message says after a wrong shape.

    Raises:
        CheckpointError: a tensor is missing, unknown or of the wrong shape.
    """
    expected = {name_of(name): shape for name, shape in config.tensor_shapes().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise CheckpointError(f"{path}: tensor {name} is missing")
        if shapes[name] != shape:
            raise CheckpointError(f"{path}: tensor {name} is {shapes[name]} and should be {shape}{hint}")
    unknown = shapes.keys() - expected.keys()
    if unknown:
        raise CheckpointError(
            f"{path}: unknown tensor {shown_value(min(unknown))} (biases of the feed-forward network, norms of queries "
            "and keys, and adapters are not supported here)"
        )
