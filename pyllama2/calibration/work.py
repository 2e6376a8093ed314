"""The work of one calibration: what it needs to know, and the layers one after another, kept as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from ..checkpoint.base import Checkpoint
from ..convert import Progress, quantized_weight
from ..storage.floats import as_float
from ..storage.weights import STEPS, Quantization, StorageType, Weight
from .estimate import duration, measured_rate, seconds
from .layers import LayerCalibrator, MatrixLoss, Pair, second_name
from .products import Matrix, Products
from .text import CalibrationText
from .work_folder import WorkFolder


@dataclass(frozen=True)
class Work:
    """What a calibration needs to know.

    Attributes:
        source: the open checkpoint.
        out: path of the file to write.
        quantization: the storage types.
        text: what the weights are chosen for.
        products: what multiplies matrices.
        folder: what was done before an interruption.
        say: takes sentences for the user.
        progress: called as progress(weights done, weights in all, name of the tensor just done).
        second: another type, of the same group size, that each matrix is kept in as well; None: there is none.
    """

    source: Checkpoint
    out: str
    quantization: Quantization
    text: CalibrationText
    products: Products
    folder: WorkFolder
    say: Callable[[str], None]
    progress: Progress | None
    second: StorageType | None = None


def calibrate_layers(work: Work, embeddings: Weight) -> list[MatrixLoss]:
    """Calibrate the layers that are not done yet. Return what all matrices lost."""
    config, folder, tokens = work.source.config, work.folder, work.text.tokens
    first = folder.finished()
    losses: list[MatrixLoss] = []
    for layer in range(first):
        losses += finished_layer(work, layer)[1]
    done = _n_weights(work, "tok_embeddings.weight") + sum(
        _n_weights(work, name) for layer in range(first) for name in tensor_names(work, layer)
    )
    if first:
        work.say(f"going on after layer {first} of {config.n_layers}")
    elif work.progress is not None:
        work.progress(done, config.n_parameters, "tok_embeddings.weight")
    if first == config.n_layers:
        return losses
    estimate = seconds(config, tokens.windows.size, measured_rate(work.products))
    left = estimate * (config.n_layers - first) / config.n_layers
    work.say(f"calibrating {config.n_layers - first} layers on {tokens.windows.size} tokens: about {duration(left)}")
    streams = folder.streams() if first else _embedded(work, embeddings)
    assert streams is not None  # finished() found them
    calibrator = LayerCalibrator(config, tokens, work.products, streams)
    for layer in range(first, config.n_layers):
        weights, layer_losses = calibrator.quantize(
            layer, lambda name: read(work, name), _types(work, layer), work.second
        )
        folder.save_layer(layer, weights, layer_losses, calibrator.streams)
        losses += layer_losses
        for name in tensor_names(work, layer):
            work.source.tensor(name).release()
            done += _n_weights(work, name)
            if work.progress is not None:
                work.progress(done, config.n_parameters, name)
    return losses


def _types(work: Work, layer: int) -> tuple[StorageType, ...]:
    """Of the four steps of a layer."""
    return tuple(work.quantization.of_step(layer, step) for step in range(len(STEPS)))


def tensor_names(work: Work, layer: int) -> list[str]:
    """Return the names of the tensors of a layer, in file order."""
    return [name for name in work.source.config.tensor_shapes() if name.startswith(f"layers.{layer}.")]


def _n_weights(work: Work, name: str) -> int:
    return prod(work.source.config.tensor_shapes()[name])


def finished_layer(work: Work, layer: int) -> tuple[dict[str, Weight], list[MatrixLoss]]:
    """Return the tensors of a layer that is done, those of the second type too, and what its matrices lost."""
    shapes = work.source.config.tensor_shapes()
    matrices = [f"layers.{layer}.{name}.weight" for names in STEPS for name in names]
    types = {name: work.quantization.storage_of(name, work.source.config) for name in matrices}
    wanted = {name: shapes[name] for name in tensor_names(work, layer)}
    if work.second is not None:
        types |= {second_name(name): work.second for name in matrices}
        wanted |= {second_name(name): shapes[name] for name in matrices}
    return work.folder.layer(layer, wanted, types, matrices)


def file_order(work: Work, others: Mapping[str, Weight]) -> Iterator[Weight]:
    """Yield the finished layers' tensors and others, by their names, in the order in which a file has them."""
    config = work.source.config
    yield others["tok_embeddings.weight"]
    for layer in range(config.n_layers):
        found = finished_layer(work, layer)[0]
        yield from (found[name] for name in tensor_names(work, layer))
    yield others["norm.weight"]
    if not config.tied_embeddings:
        yield others["output.weight"]


def read(work: Work, name: str) -> Matrix:
    """Return a tensor of the model as float32, checked to be finite."""
    return as_float(name, work.source.tensor(name).read(), np.dtype(np.float32))


def plain_weight(work: Work, name: str) -> Weight:
    """Return a tensor that is not calibrated, in its storage type."""
    kind = work.quantization.storage_of(name, work.source.config)
    array = work.source.tensor(name).read()
    if kind.group_size:
        return quantized_weight(name, array, kind)
    array = as_float(name, array, np.dtype(np.float32))
    return Weight(name, "float32", array.shape, array.copy())


def _embedded(work: Work, embeddings: Weight) -> Pair:
    """The residual streams before the first layer."""
    ids = work.text.tokens.windows.reshape(-1)
    exact = read(work, "tok_embeddings.weight")[ids]
    return Pair(exact, embeddings.dequantize()[ids])


def exact_output(work: Work) -> Weight:
    """Return the output matrix as float32."""
    name = "tok_embeddings.weight" if work.source.config.tied_embeddings else "output.weight"
    matrix = read(work, name)
    return Weight(name, "float32", matrix.shape, np.require(matrix, np.float32, ["C", "A"]))
