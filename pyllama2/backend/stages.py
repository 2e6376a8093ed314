"""Parts of a model that run on several devices, one after the other.

A stage is a backend that can have some layers of a model alone. What goes from a stage to the next one is the residual
stream: (n, dim) float32 of n tokens, the same bits on every device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..sampling.sampler import Draw
from ..storage.model_file import StoredModel
from .base import Backend, Batch
from .kv_cache import KVCache


@dataclass(frozen=True)
class Layers:
    """Consecutive layers of a model: those from first to stop - 1 of n.

    Attributes:
        first: index of the first one.
        stop: index after the last one.
        n: layers of the model.
    """

    first: int
    stop: int
    n: int

    @classmethod
    def all_of(cls, config: ModelConfig) -> Layers:
        """All layers of a model."""
        return cls(0, config.n_layers, config.n_layers)

    @property
    def embeds(self) -> bool:
        """Whether the embedding belongs to these layers."""
        return self.first == 0

    @property
    def outputs(self) -> bool:
        """Whether the norm and the output matrix belong to these layers."""
        return self.stop == self.n

    def __len__(self) -> int:
        return self.stop - self.first

    def __str__(self) -> str:
        """Such as "layers 0 to 19"."""
        return f"layer {self.first}" if len(self) == 1 else f"layers {self.first} to {self.stop - 1}"


def part_of(model: StoredModel, layers: Layers) -> StoredModel:
    """Return the weights of some layers as a model. They are not copied. Its layers are counted from 0 on."""
    if len(layers) == layers.n:
        return model
    quantization = model.quantization
    tied = model.config.tied_embeddings
    wanted = {"tok_embeddings.weight"} if layers.embeds or (layers.outputs and tied) else set()
    wanted |= {"norm.weight", "output.weight"} if layers.outputs else set()
    part = replace(
        model,
        config=replace(model.config, n_layers=len(layers)),
        quantization=replace(quantization, layers=quantization.layers[layers.first : layers.stop]),
        weights={},
    )
    for name, weight in model.weights.items():
        kind, _, rest = name.partition(".")
        if kind == "layers":
            layer, _, rest = rest.partition(".")
            if layers.first <= int(layer) < layers.stop:
                part.weights[f"layers.{int(layer) - layers.first}.{rest}"] = weight
        elif name in wanted:
            part.weights[name] = weight
    return part


class Stage(Backend):
    """A backend that may have some layers of a model alone.

    Attributes:
        layers: which ones. config and the cache are of these.
    """

    layers: Layers

    @abstractmethod
    def run(self, batch: Batch, cache: KVCache, hidden: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Run the layers on a batch, as forward() does with a whole model.

        Args:
            batch: the tokens.
            cache: keys and values of these layers.
            hidden: (n, dim), the residual stream that the stage before gave. None: the stage embeds the tokens.

        Returns:
            The residual stream (n, dim) after the layers; logits (m, vocab_size) of batch.outputs from the last stage.
        """

    def can_sample(self, batch: Batch) -> bool:
        """Whether sample_from() can do it for this batch."""
        return False

    def sample_from(
        self, batch: Batch, cache: KVCache, draws: Sequence[Draw], hidden: NDArray[np.float32] | None
    ) -> NDArray[np.int32]:
        """Run the last stage and sample, as sample() does. can_sample() must be true. hidden: as in run()."""
        raise NotImplementedError
