"""The weights of a model on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..storage.model_file import StoredModel
from .launchers.matmul import part_of
from .launchers.upload import Uploader
from .layout import DeviceMatrix


@dataclass(frozen=True)
class DeviceLayer:
    """One layer. Matrices with the same inputs lie together. The tiles of w1 and w3 alternate."""

    attention_norm: Any
    wqkv: DeviceMatrix
    wo: DeviceMatrix
    ffn_norm: Any
    w13: DeviceMatrix
    w2: DeviceMatrix

    @cached_property
    def wq_wk_wv(self) -> tuple[DeviceMatrix, ...]:
        """The parts of wqkv. They are not copies."""
        return tuple(part_of(self.wqkv, i) for i in range(3))


@dataclass(frozen=True)
class DeviceModel:
    """All weights. With tied embeddings, output is tok_embeddings."""

    tok_embeddings: DeviceMatrix
    layers: tuple[DeviceLayer, ...]
    norm: Any
    output: DeviceMatrix

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        matrices = [self.tok_embeddings]
        if self.output is not self.tok_embeddings:
            matrices.append(self.output)
        norms = [self.norm]
        for layer in self.layers:
            matrices += [layer.wqkv, layer.wo, layer.w13, layer.w2]
            norms += [layer.attention_norm, layer.ffn_norm]
        return sum(int(m.codes.nbytes + m.scales.nbytes) for m in matrices) + sum(int(norm.nbytes) for norm in norms)


def upload(cupy: Any, model: StoredModel) -> DeviceModel:
    """Copy the weights of a q4 or q8 model to the device, and rearrange them there, on cupy's current stream."""
    uploader, weights = Uploader(cupy), model.weights

    def norm(name: str) -> Any:
        return cupy.asarray(weights[f"{name}.weight"].data)

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
        )

    table = uploader.matrix(weights["tok_embeddings.weight"])
    return DeviceModel(
        tok_embeddings=table,
        layers=tuple(layer(f"layers.{i}") for i in range(model.config.n_layers)),
        norm=norm("norm"),
        output=table if model.config.tied_embeddings else uploader.matrix(weights["output.weight"]),
    )
