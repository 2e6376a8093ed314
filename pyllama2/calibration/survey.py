"""What each step of each layer loses as q4, measured on the calibration text.

The layers are calibrated in 8 bits on a part of the text, so that the errors before a matrix hardly change it, and as
q4 in groups of 64 for the same inputs. Then each step by itself gets these 4 bits, and the model's KL divergence from
the unquantized one is measured on the windows that are held out, by the CPU backend.

The other way round, 8 bits for one step of a model in 4, says little: the matrices after that step still make up for
errors that it no longer has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu.backend import CpuBackend
from .._cpu.layer_steps import LayerSteps
from ..backend.base import Batch
from ..convert import quantized_weight
from ..storage.model_file import ModelWriter, StoredModel
from ..storage.weights import STEPS, Quantization, StorageType, Weight
from .budget import BASE, CANDIDATES, FINER, StepLoss
from .estimate import PART
from .layers import Tokens, second_name
from .products import Matrix
from .work import Work, calibrate_layers, exact_output, file_order, finished_layer, plain_weight, read

_MOST_BYTES = 256 << 20  # of the probabilities of these tokens


def survey(work: Work, n_measured: int) -> dict[tuple[int, int], StepLoss]:
    """Measure the losses of all steps.

    Args:
        work: of FINER, with a folder of its own, and BASE as its second type.
        n_measured: tokens that KL is measured on, at most.

    Returns:
        What each (layer, step) loses.
    """
    assert work.quantization == Quantization.of(FINER.type, FINER.group_size, work.quantization.output_type)
    assert work.second == BASE
    config = work.source.config
    embeddings = plain_weight(work, "tok_embeddings.weight")
    calibrate_layers(work, embeddings)
    norm = plain_weight(work, "norm.weight")
    model = _mapped_model(work, embeddings, norm)
    divergence = _Divergence(work, norm, n_measured)
    before = divergence.of(model)
    losses = {}
    for layer in range(config.n_layers):
        found = finished_layer(work, layer)[0]
        for step, names in enumerate(STEPS):
            full = [f"layers.{layer}.{name}.weight" for name in names]
            types = [[FINER] * len(STEPS) for _ in range(config.n_layers)]
            types[layer][step] = BASE
            quantization = replace(work.quantization, layers=tuple(map(tuple, types)))
            changed = model.weights | {name: replace(found[second_name(name)], name=name) for name in full}
            after = divergence.of(replace(model, quantization=quantization, weights=changed))
            losses[layer, step] = StepLoss(after - before, _errors(work, full))
        work.say(f"measured layer {layer + 1} of {config.n_layers}")
    return losses


def _mapped_model(work: Work, embeddings: Weight, norm: Weight) -> StoredModel:
    """The calibrated model, in a file of the folder: memory need not hold all of its layers."""
    others = [embeddings, norm]
    if not work.source.config.tied_embeddings:
        others.append(plain_weight(work, "output.weight"))
    path = os.path.join(work.folder.path, "model.bin")
    with ModelWriter(path, StoredModel(work.source.config, work.quantization)) as writer:
        for weight in file_order(work, {weight.name: weight for weight in others}):
            writer.write(weight)
    return StoredModel.open(path)


def part_of(tokens: Tokens) -> Tokens:
    """Return some of the training windows, evenly, and all that are held out."""
    n = max(1, tokens.n_training // PART)
    training = [i * tokens.n_training // n for i in range(n)]
    return Tokens(tokens.windows[[*training, *range(tokens.n_training, len(tokens.windows))]], n)


def _errors(work: Work, names: list[str]) -> dict[StorageType, float]:
    """The square error of each candidate without calibration, over that of BASE, for matrices together."""
    sums = dict.fromkeys(CANDIDATES, 0.0)
    for name in names:
        matrix = read(work, name)
        for kind in CANDIDATES:
            difference = (quantized_weight(name, matrix, kind).dequantize() - matrix).reshape(-1)
            sums[kind] += float(np.dot(difference, difference))
        work.source.tensor(name).release()
    return {kind: total / max(sums[BASE], 1e-30) for kind, total in sums.items()}


class _Divergence:
    """KL from the unquantized model on the tokens that are held out."""

    def __init__(self, work: Work, norm: Weight, n_measured: int) -> None:
        tokens, config = work.text.tokens, work.source.config
        held_out = tokens.windows[tokens.n_training :]
        most = max(len(held_out), min(n_measured, _MOST_BYTES // (4 * config.vocab_size)))
        self._length = min(held_out.shape[1], most // len(held_out))
        self._windows = held_out[:, : self._length]
        self._n_threads = work.products.n_threads
        streams = work.folder.streams()
        assert streams is not None  # of the last layer
        steps = LayerSteps(config, self._n_threads)
        output = exact_output(work)
        width = tokens.windows.shape[1]
        self._probabilities, self._sums = [], []
        for window in range(tokens.n_training, len(tokens.windows)):
            x = streams.exact[window * width : window * width + self._length]
            logits = work.products.of(output, steps.rms_norm(x, norm.data))
            logits -= _log_normalizers(logits)[:, None]
            p = np.exp(logits)
            self._sums.append(np.einsum("ij,ij->i", p, logits, dtype=np.float64))  # -entropies
            self._probabilities.append(p)

    def of(self, model: StoredModel) -> float:
        """Return the mean KL of a model, in nats."""
        values = [
            negative - np.einsum("ij,ij->i", p, logits) + _log_normalizers(logits)
            for p, negative, logits in zip(self._probabilities, self._sums, self._logits(model), strict=True)
        ]
        return float(np.mean(values, dtype=np.float64))

    def _logits(self, model: StoredModel) -> Iterator[Matrix]:
        backend = CpuBackend(model, n_threads=self._n_threads, kv_dtype="float32")
        cache = backend.new_cache(len(self._windows), self._length)
        for row, window in enumerate(self._windows.tolist()):
            logits = backend.forward(Batch.of_sequence(window, row, outputs="all"), cache)
            yield logits - logits.max(axis=1, keepdims=True)
        cache.close()
        backend.close()


def _log_normalizers(logits: NDArray[np.float32]) -> NDArray[Any]:
    highest = logits.max(axis=1)
    return np.asarray(highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64)))
