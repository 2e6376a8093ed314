"""The weights of a model on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.stages import Layers
from ..storage.model_file import StoredModel
from .launchers.upload import Uploader
from .layout import DeviceMatrix, copy_to, kind_of


@dataclass(frozen=True)
class DeviceLayer:
    """One layer. Matrices with the same inputs lie together. The tiles of w1 and w3 alternate.

    Biases are None in models without.
    """

    attention_norm: Any
    wqkv: DeviceMatrix
    wo: DeviceMatrix
    ffn_norm: Any
    w13: DeviceMatrix
    w2: DeviceMatrix
    wqkv_bias: Any = None
    wo_bias: Any = None


@dataclass(frozen=True)
class DeviceModel:
    """All weights. With tied embeddings, output is tok_embeddings.

    A part of a model may have no embeddings, or no norm and output. Its matrices have a kind then, and no arrays.
    """

    tok_embeddings: DeviceMatrix
    layers: tuple[DeviceLayer, ...]
    norm: Any
    output: DeviceMatrix

    @property
    def embeds(self) -> bool:
        """Whether it begins with the embedding of tokens, and not with the residual stream."""
        return self.tok_embeddings.codes is not None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        tables = {id(table): table for table in (self.tok_embeddings, self.output) if table.codes is not None}
        matrices = list(tables.values())
        norms = [] if self.norm is None else [self.norm]
        for layer in self.layers:
            matrices += [layer.wqkv, layer.wo, layer.w13, layer.w2]
            norms += [layer.attention_norm, layer.ffn_norm]
            norms += [bias for bias in (layer.wqkv_bias, layer.wo_bias) if bias is not None]
        return sum(matrix.nbytes for matrix in matrices) + sum(int(norm.nbytes) for norm in norms)


def upload(cupy: Any, model: StoredModel, layers: Layers | None = None) -> DeviceModel:
    """Copy the weights of a model to the device, and rearrange them there, on cupy's current stream.

    layers: which layers model has; None: all.
    """
    uploader, weights = Uploader(cupy), model.weights
    layers = layers or Layers.all_of(model.config)

    def copied(data: NDArray[np.float32]) -> Any:
        array = cupy.empty(data.shape, data.dtype)
        copy_to(cupy, np.ascontiguousarray(data), array)
        return array

    def norm(name: str) -> Any:
        return copied(weights[f"{name}.weight"].data)

    def bias(*names: str) -> Any:
        parts = [weights[f"{name}.bias"].data for name in names if f"{name}.bias" in weights]
        return copied(np.concatenate(parts)) if parts else None

    def layer(prefix: str) -> DeviceLayer:
        wq, wk, wv, wo = (weights[f"{prefix}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo"))
        w1, w2, w3 = (weights[f"{prefix}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3"))
        return DeviceLayer(
            attention_norm=norm(f"{prefix}.attention_norm"),
            wqkv=uploader.matrix(wq, wk, wv),
            wo=uploader.matrix(wo),
            ffn_norm=norm(f"{prefix}.ffn_norm"),
            w13=uploader.matrix(w1, w3, in_turns=True),
            w2=uploader.matrix(w2),
            wqkv_bias=bias(*(f"{prefix}.attention.{name}" for name in ("wq", "wk", "wv"))),
            wo_bias=bias(f"{prefix}.attention.wo"),
        )

    def table(name: str, is_wanted: bool) -> DeviceMatrix:
        if is_wanted:
            return uploader.matrix(weights[f"{name}.weight"])
        stored = model.quantization.storage_of(f"{name}.weight", model.config)
        type, group_size = kind_of(stored.type, stored.group_size)
        return DeviceMatrix(type, (model.config.vocab_size,), model.config.dim, group_size, None)

    embedding, tied = table("tok_embeddings", layers.embeds), model.config.tied_embeddings
    shared = tied and layers.embeds and layers.outputs
    return DeviceModel(
        tok_embeddings=embedding,
        layers=tuple(layer(f"layers.{i}") for i in range(model.config.n_layers)),
        norm=norm("norm") if layers.outputs else None,
        output=embedding if shared else table("tok_embeddings" if tied else "output", layers.outputs),
    )
