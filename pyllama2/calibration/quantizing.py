"""A calibrated file, from a checkpoint and a text: the flow from the first layer to the record in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, prod, sqrt

import numpy as np

from .._cpu.layer_steps import LayerSteps
from ..analysis.evaluation import divergence
from ..checkpoint.base import Checkpoint
from ..convert import Progress, as_float, quantized_weight
from ..errors import NumericalError
from ..process.interrupts import Interrupts
from ..sampling.sampler import log_probabilities_of
from ..storage.calibration_record import CalibrationRecord
from ..storage.model_file import ModelWriter, StoredModel
from ..storage.weights import STEPS, Quantization, StorageType, Weight
from .estimate import measured_rate, seconds
from .layers import LayerCalibrator, MatrixLoss, Pair
from .products import Matrix, Products
from .text import CalibrationText
from .work_folder import WorkFolder

_PIECE = 64  # tokens whose logits are in memory at once
_NAMED = 5  # matrices that lost most

METHOD = "GPTQ, asymmetric"


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
    """

    source: Checkpoint
    out: str
    quantization: Quantization
    text: CalibrationText
    products: Products
    folder: WorkFolder
    say: Callable[[str], None]
    progress: Progress | None


def write_calibrated(work: Work) -> CalibrationRecord:
    """Write a calibrated file.

    Returns:
        What the file says of its calibration.

    Raises:
        CheckpointError: the file cannot be written.
        NumericalError: the model computes numbers that are not finite.
    """
    config = work.source.config
    embeddings = _plain_weight(work, "tok_embeddings.weight")
    losses = _calibrate_layers(work, embeddings)
    streams = work.folder.streams()
    assert streams is not None  # of the last layer
    norm = _plain_weight(work, "norm.weight")
    output = embeddings if config.tied_embeddings else _plain_weight(work, "output.weight")
    measured = _measure(work, streams, norm, output)
    del streams
    text = work.text
    record = CalibrationRecord(
        method=METHOD,
        text=text.kind,
        n_tokens=text.tokens.windows[: text.tokens.n_training].size,
        window=text.tokens.windows.shape[1],
        sha256=text.sha256,
        starts=text.starts,
        n_held_out=measured.n_tokens,
        kl_divergence=measured.kl_divergence,
        kl_standard_error=measured.kl_standard_error,
        top_1_agreement=measured.top_1_agreement,
        perplexity_ratio=measured.perplexity_ratio,
    )
    _write_file(work, record, {weight.name: weight for weight in (embeddings, norm, output)})
    work.folder.remove()
    _say_result(work, record, losses)
    return record


def _calibrate_layers(work: Work, embeddings: Weight) -> list[MatrixLoss]:
    """Calibrate the layers that are not done yet. Returns what all matrices lost."""
    config, folder, tokens = work.source.config, work.folder, work.text.tokens
    first = folder.finished()
    losses: list[MatrixLoss] = []
    for layer in range(first):
        losses += _finished_layer(work, layer)[1]
    done = _n_weights(work, "tok_embeddings.weight") + sum(
        _n_weights(work, name) for layer in range(first) for name in _names(work, layer)
    )
    if first:
        work.say(f"going on after layer {first} of {config.n_layers}")
    elif work.progress is not None:
        work.progress(done, config.n_parameters, "tok_embeddings.weight")
    if first == config.n_layers:
        return losses
    estimate = seconds(config, tokens.windows.size, measured_rate(work.products))
    left = estimate * (config.n_layers - first) / config.n_layers
    work.say(f"calibrating {config.n_layers - first} layers on {tokens.windows.size} tokens: about {_duration(left)}")
    streams = folder.streams() if first else _embedded(work, embeddings)
    assert streams is not None  # finished() found them
    calibrator = LayerCalibrator(config, tokens, work.products, streams)
    for layer in range(first, config.n_layers):
        weights, layer_losses = calibrator.quantize(layer, lambda name: _read(work, name), _types(work, layer))
        folder.save_layer(layer, weights, layer_losses, calibrator.streams)
        losses += layer_losses
        for name in _names(work, layer):
            work.source.tensor(name).release()
            done += _n_weights(work, name)
            if work.progress is not None:
                work.progress(done, config.n_parameters, name)
    return losses


def _types(work: Work, layer: int) -> tuple[StorageType, ...]:
    """Of the four steps of a layer."""
    return tuple(work.quantization.of_step(layer, step) for step in range(len(STEPS)))


def _names(work: Work, layer: int) -> list[str]:
    """The tensors of a layer, in file order."""
    return [name for name in work.source.config.tensor_shapes() if name.startswith(f"layers.{layer}.")]


def _n_weights(work: Work, name: str) -> int:
    return prod(work.source.config.tensor_shapes()[name])


def _finished_layer(work: Work, layer: int) -> tuple[dict[str, Weight], list[MatrixLoss]]:
    shapes = work.source.config.tensor_shapes()
    matrices = [f"layers.{layer}.{name}.weight" for names in STEPS for name in names]
    types = {name: work.quantization.storage_of(name, work.source.config) for name in matrices}
    return work.folder.layer(layer, {name: shapes[name] for name in _names(work, layer)}, types, matrices)


def _read(work: Work, name: str) -> Matrix:
    """A tensor of the model as float32, checked to be finite."""
    return as_float(name, work.source.tensor(name).read(), np.dtype(np.float32))


def _plain_weight(work: Work, name: str) -> Weight:
    """A tensor that is not calibrated, in its storage type."""
    kind = work.quantization.storage_of(name, work.source.config)
    array = work.source.tensor(name).read()
    if kind.group_size:
        return quantized_weight(name, array, kind)
    array = as_float(name, array, np.dtype(np.float32))
    return Weight(name, "float32", array.shape, array.copy())


def _embedded(work: Work, embeddings: Weight) -> Pair:
    """The residual streams before the first layer."""
    ids = work.text.tokens.windows.reshape(-1)
    exact = _read(work, "tok_embeddings.weight")[ids]
    return Pair(exact, embeddings.dequantize()[ids])


@dataclass(frozen=True)
class Measured:
    """How close the two streams' predictions are on the tokens that are held out."""

    n_tokens: int
    kl_divergence: float
    kl_standard_error: float
    top_1_agreement: float
    perplexity_ratio: float


def _measure(work: Work, streams: Pair, norm: Weight, output: Weight) -> Measured:
    """Compare the predictions of both streams after the last layer."""
    tokens, config = work.text.tokens, work.source.config
    steps = LayerSteps(config, work.products.n_threads)
    name = "tok_embeddings.weight" if config.tied_embeddings else "output.weight"
    matrix = _read(work, name)
    exact_output = Weight(name, "float32", matrix.shape, np.require(matrix, np.float32, ["C", "A"]))
    length = tokens.windows.shape[1]
    divergences, agreements, changes = [], [], []
    for window in range(tokens.n_training, len(tokens.windows)):
        of_window = []
        for start in range(window * length, (window + 1) * length - 1, _PIECE):
            part = slice(start, min(start + _PIECE, (window + 1) * length - 1))
            p = work.products.of(exact_output, steps.rms_norm(streams.exact[part], norm.data))
            q = work.products.of(output, steps.rms_norm(streams.quantized[part], norm.data))
            if not (np.isfinite(p).all() and np.isfinite(q).all()):
                raise NumericalError("the model computes numbers that are not finite on the calibration text")
            following = tokens.windows.reshape(-1)[part.start + 1 : part.stop + 1].tolist()
            for before, after, token_id in zip(p, q, following, strict=True):
                of_window.append(divergence(before, after))
                agreements.append(before.argmax() == after.argmax())
                changes.append(log_probabilities_of(before, [token_id])[0] - log_probabilities_of(after, [token_id])[0])
        divergences.append(float(np.mean(of_window)))
    work.source.tensor(name).release()
    n = len(divergences)
    error = float(np.std(divergences, ddof=1)) / sqrt(n) if n > 1 else 0.0
    ratio = exp(min(700.0, float(np.mean(changes))))
    return Measured(len(changes), float(np.mean(divergences)), error, float(np.mean(agreements)), ratio)


def _write_file(work: Work, record: CalibrationRecord, others: dict[str, Weight]) -> None:
    source, config = work.source, work.source.config
    model = StoredModel(
        config, work.quantization, source.tokenizer, source.chat_template, source.source, calibration=record
    )

    def weights() -> Iterator[Weight]:
        yield others["tok_embeddings.weight"]
        for layer in range(config.n_layers):
            found = _finished_layer(work, layer)[0]
            yield from (found[name] for name in _names(work, layer))
        yield others["norm.weight"]
        if not config.tied_embeddings:
            yield others["output.weight"]

    with Interrupts() as interrupts, ModelWriter(work.out, model, interrupts) as writer, interrupts.allowed():
        for weight in weights():
            writer.write(weight)
    if work.progress is not None:
        work.progress(config.n_parameters, config.n_parameters, list(config.tensor_shapes())[-1])


def _say_result(work: Work, record: CalibrationRecord, losses: list[MatrixLoss]) -> None:
    work.say(
        f"on {record.n_held_out} tokens that were held out: KL divergence {record.kl_divergence:.4f} nats "
        f"(standard error {record.kl_standard_error:.4f}), top-1 agreement {record.top_1_agreement:.1%}, "
        f"perplexity x {record.perplexity_ratio:.3f}"
    )
    worst = sorted(losses, key=lambda loss: -loss.own)[:_NAMED]
    named = ", ".join(f"{loss.name.removesuffix('.weight')} {loss.own:.2%}" for loss in worst)
    work.say(f"matrices that lost most of their outputs' mean square: {named}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
