"""One layer after another, with the text's tokens in two residual streams: of the model itself, and of the quantized.

A layer has four steps, whose matrices have one input: {wq wk wv}, {wo}, {w1 w3}, {w2}. At each of them the inputs of
both streams are known; the matrices are quantized for them, and what they are then makes the next inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._cpu.layer_steps import LayerSteps
from ..config import ModelConfig
from ..storage.weights import STEPS, StorageType, Weight
from .products import Matrix, Products
from .solver import Inputs, solve


@dataclass(frozen=True)
class Tokens:
    """Which tokens the streams have, one window after another.

    Attributes:
        windows: int32 (n_windows, tokens of a window).
        n_training: the first windows, which matrices are quantized for; the others are held out.
    """

    windows: NDArray[np.int32]
    n_training: int

    def training(self, x: Matrix) -> Matrix:
        """Of x (all tokens, width) the tokens that statistics are of.

        The first token of a window is one of them, though its numbers are far larger than those of the others: they
        attend to it. Without it the matrices that make these numbers lose much.
        """
        return x[: self.n_training * self.windows.shape[1]]


@dataclass
class Pair:
    """The same numbers (tokens, width) in the model itself and in the quantized one."""

    exact: Matrix
    quantized: Matrix


@dataclass(frozen=True)
class MatrixLoss:
    """What a matrix lost: the share of its outputs' mean square that is error, on the text.

    Attributes:
        name: the tensor's.
        own: error of rounding, with the inputs that it gets.
        total: difference to the unquantized model.
    """

    name: str
    own: float
    total: float


def second_name(name: str) -> str:
    """Return the name that a tensor has in its second type."""
    return f"{name}:second"


class LayerCalibrator:
    """Quantizes layers in order.

    Args:
        config: the model's.
        tokens: of the text.
        products: what multiplies matrices.
        streams: the embeddings of all tokens; afterwards the residual streams after the layers so far.
    """

    def __init__(self, config: ModelConfig, tokens: Tokens, products: Products, streams: Pair) -> None:
        self._config, self._tokens, self._products = config, tokens, products
        self.streams = streams
        self._steps = LayerSteps(config, products.n_threads)
        self._biases = {name for name in config.tensor_shapes() if name.endswith(".bias")}

    def quantize(
        self,
        layer: int,
        read: Callable[[str], Matrix],
        types: tuple[StorageType, ...],
        second: StorageType | None = None,
    ) -> tuple[dict[str, Weight], list[MatrixLoss]]:
        """Quantize the next layer, and take the streams through it.

        Args:
            layer: its number.
            read: returns a tensor of the model as float32, by its name.
            types: of the four steps.
            second: another type, of the same group size, that the matrices are quantized to as well.

        Returns:
            The layer's tensors by their names, those of the second type by second_name(), and what each matrix lost.
        """
        prefix = f"layers.{layer}."
        weights: dict[str, Weight] = {}
        losses: list[MatrixLoss] = []

        def step(index: int, inputs: Pair) -> list[Pair]:
            names = [f"{prefix}{name}.weight" for name in STEPS[index]]
            outputs = self._step(names, inputs, [read(name) for name in names], types[index], second, weights, losses)
            for name, output in zip(STEPS[index], outputs, strict=True):
                bias_name = f"{prefix}{name}.bias"
                if bias_name in self._biases:
                    bias = read(bias_name).astype(np.float32)
                    weights[bias_name] = Weight(bias_name, "float32", bias.shape, bias)
                    output.exact += bias
                    output.quantized += bias
            return outputs

        def normed(name: str) -> Pair:
            norm = read(f"{prefix}{name}.weight").astype(np.float32)
            weights[f"{prefix}{name}.weight"] = Weight(f"{prefix}{name}.weight", "float32", norm.shape, norm)
            return Pair(*(self._steps.rms_norm(x, norm) for x in (self.streams.exact, self.streams.quantized)))

        q, k, v = step(0, normed("attention_norm"))
        attention = Pair(
            self._attention(q.exact, k.exact, v.exact), self._attention(q.quantized, k.quantized, v.quantized)
        )
        del q, k, v
        self._add(step(1, attention)[0])
        gate, up = step(2, normed("ffn_norm"))
        self._steps.silu_product(gate.exact, up.exact)
        self._steps.silu_product(gate.quantized, up.quantized)
        del up
        self._add(step(3, gate)[0])
        return weights, losses

    def _step(
        self,
        names: list[str],
        inputs: Pair,
        matrices: list[Matrix],
        kind: StorageType,
        second: StorageType | None,
        weights: dict[str, Weight],
        losses: list[MatrixLoss],
    ) -> list[Pair]:
        """Quantize the matrices of one step, and multiply with them: a pair of outputs for each."""
        products = self._products
        x, y = self._tokens.training(inputs.quantized), self._tokens.training(inputs.exact)
        factored = Inputs.of(products, products.second_moments(x), kind.group_size, corrected=True)
        cross = products.cross_moments(y - x, x)
        del x, y
        outputs = []
        for name, matrix in zip(names, matrices, strict=True):
            matrix = np.require(matrix, np.float32, ["C", "A"])
            solution = solve(products, matrix, factored, cross, kind.type, kind.group_size)
            weight = Weight.of_codes(name, kind, matrix.shape, solution.codes, solution.scales)
            weights[name] = weight
            if second is not None:
                also = solve(products, matrix, factored, cross, second.type, second.group_size)
                weights[second_name(name)] = Weight.of_codes(name, second, matrix.shape, also.codes, also.scales)
            exact = products.times(inputs.exact, matrix)
            quantized = products.of(weight, inputs.quantized)
            outputs.append(Pair(exact, quantized))
            losses.append(self._loss(name, exact, quantized, solution.losses))
        return outputs

    def _loss(self, name: str, exact: Matrix, quantized: Matrix, own: NDArray[np.float32]) -> MatrixLoss:
        exact, quantized = self._tokens.training(exact), self._tokens.training(quantized)
        exact = exact.reshape(-1)
        difference = exact - quantized.reshape(-1)
        n_tokens = len(exact) // len(own)
        energy = max(float(np.dot(exact, exact)), 1e-30)
        return MatrixLoss(
            name, float(own.sum(dtype=np.float64)) * n_tokens / energy, float(np.dot(difference, difference)) / energy
        )

    def _attention(self, q: Matrix, k: Matrix, v: Matrix) -> Matrix:
        """Attention within each window."""
        length = self._tokens.windows.shape[1]
        out = np.empty_like(q)
        for start in range(0, len(q), length):
            part = slice(start, start + length)
            out[part] = self._steps.attention(q[part], k[part], v[part])
        return out

    def _add(self, change: Pair) -> None:
        self.streams.exact += change.exact
        self.streams.quantized += change.quantized
