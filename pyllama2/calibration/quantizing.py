"""A calibrated file, from a checkpoint and a text: the flow from the first layer to the record in the file."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

from .._cpu.layer_steps import LayerSteps
from ..analysis.evaluation import divergence
from ..errors import NumericalError
from ..process.interrupts import Interrupts
from ..sampling.sampler import log_probabilities_of
from ..storage.calibration_record import CalibrationRecord
from ..storage.model_file import ModelWriter, StoredModel
from ..storage.weights import Weight
from .layers import MatrixLoss, Pair
from .work import Work, calibrate_layers, exact_output, file_order, plain_weight

_PIECE = 64  # tokens whose logits are in memory at once
_NAMED = 5  # matrices that lost most

METHOD = "GPTQ, asymmetric"


def write_calibrated(work: Work) -> CalibrationRecord:
    """Write a calibrated file.

    Returns:
        What the file says of its calibration.

    Raises:
        CheckpointError: the file cannot be written.
        NumericalError: the model computes numbers that are not finite.
    """
    config = work.source.config
    embeddings = plain_weight(work, "tok_embeddings.weight")
    losses = calibrate_layers(work, embeddings)
    streams = work.folder.streams()
    assert streams is not None  # of the last layer
    norm = plain_weight(work, "norm.weight")
    output = embeddings if config.tied_embeddings else plain_weight(work, "output.weight")
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
    float_output = exact_output(work)
    length = tokens.windows.shape[1]
    divergences, agreements, changes = [], [], []
    for window in range(tokens.n_training, len(tokens.windows)):
        of_window = []
        for start in range(window * length, (window + 1) * length - 1, _PIECE):
            part = slice(start, min(start + _PIECE, (window + 1) * length - 1))
            p = work.products.of(float_output, steps.rms_norm(streams.exact[part], norm.data))
            q = work.products.of(output, steps.rms_norm(streams.quantized[part], norm.data))
            if not (np.isfinite(p).all() and np.isfinite(q).all()):
                raise NumericalError("the model computes numbers that are not finite on the calibration text")
            following = tokens.windows.reshape(-1)[part.start + 1 : part.stop + 1].tolist()
            for before, after, token_id in zip(p, q, following, strict=True):
                of_window.append(divergence(before, after))
                agreements.append(before.argmax() == after.argmax())
                changes.append(log_probabilities_of(before, [token_id])[0] - log_probabilities_of(after, [token_id])[0])
        divergences.append(float(np.mean(of_window)))
    work.source.tensor(float_output.name).release()
    n = len(divergences)
    error = float(np.std(divergences, ddof=1)) / sqrt(n) if n > 1 else 0.0
    ratio = exp(min(700.0, float(np.mean(changes))))
    return Measured(len(changes), float(np.mean(divergences)), error, float(np.mean(agreements)), ratio)


def _write_file(work: Work, record: CalibrationRecord, others: dict[str, Weight]) -> None:
    source, config = work.source, work.source.config
    model = StoredModel(
        config, work.quantization, source.tokenizer, source.chat_template, source.source, calibration=record
    )

    with Interrupts() as interrupts, ModelWriter(work.out, model, interrupts) as writer, interrupts.allowed():
        for weight in file_order(work, others):
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
