"""How much the inputs of each matrix matter, seen on a short passage, while a model is being quantized to q4.

The passage goes through the layers as they become ready: a matrix is quantized for its inputs, and its quantized
numbers make the next inputs. The importance of an input is its mean square over the tokens of the passage. That of
inputs which it happens to leave at zero is not known: every input counts at least LEAST of the mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..storage.weights import Weight
from .layer_steps import LayerSteps
from .matrix import MatrixProduct

LEAST = 0.01

# Talk, a report, a question, code: what it is about does not matter much.
TEXT = (
    '"Is it far?" asked Anna. In 1987 the company sold 250 new machines. How do plants make sugar? '
    "def area(w, h): return w * h\n"
)
TOKENS = 32  # of the text. More take longer, and a model did not lose less: with 96, or 256 of broad texts


class Passage:
    """A passage on its way through the layers of a model.

    Args:
        config: the model's.
        embeddings: of its tokens, float32 (n, dim).
        n_threads: number of threads, which results do not depend on.
    """

    def __init__(self, config: ModelConfig, embeddings: NDArray[np.float32], n_threads: int) -> None:
        self._steps, self._n_threads = LayerSteps(config, n_threads), n_threads
        self._residual = np.array(embeddings, np.float32)
        self._inputs = self._residual
        self._outputs: list[NDArray[np.float32]] = []
        self._biases: dict[str, NDArray[np.float32]] = {}

    def importance(self) -> NDArray[np.float32] | None:
        """Of the inputs of the next matrix, with a mean of 1, float32 (columns,); None: the numbers overflow."""
        squares = np.square(self._inputs, dtype=np.float64).mean(axis=0)
        mean = squares.mean()
        if not (np.isfinite(mean) and mean > 0):
            return None
        result: NDArray[np.float32] = np.maximum(squares / mean, LEAST).astype(np.float32)
        return result

    def take(self, weight: Weight) -> None:
        """Go through the next tensor of a layer.

        Args:
            weight: norms and matrices have the order of config.tensor_shapes(), but that w3 comes before w2, and
                biases before all others of their layer.
        """
        kind = weight.name.split(".")[-2]
        if weight.name.endswith(".bias"):
            self._biases[kind] = weight.data
            return
        if kind in ("attention_norm", "ffn_norm"):
            self._inputs = self._steps.rms_norm(self._residual, weight.data)
            return
        with np.errstate(all="ignore"):
            outputs = MatrixProduct(weight, len(self._inputs), self._n_threads)(self._inputs)
            outputs += self._biases.pop(kind, np.float32(0))
        self._outputs.append(outputs)
        if kind == "wv":
            self._inputs = self._steps.attention(*self._outputs)
        elif kind == "w3":
            gate, up = self._outputs
            self._steps.silu_product(gate, up)
            self._inputs = gate
        elif kind in ("wo", "w2"):
            self._residual += outputs
        else:
            return  # a matrix with the same inputs follows
        self._outputs = []
