"""What the residual stream of a quantized model has lost after each layer, by the PyTorch model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import pyllama2
from pyllama2.model import Transformer


def layer_errors(exact: Path, quantized: Path, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return, for each layer, the share of the stream's mean square after it that is error.

    The first token of each text is left out: its numbers are so large that they would hide the others.

    Args:
        exact: one of our files in float32.
        quantized: a file that was made of it.
        texts: token ids.
    """
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder, "float32.bin")
        pyllama2.export(quantized, floats)
        models = [Transformer.load(exact), Transformer.load(floats)]
        squares = torch.zeros(2, len(models[0].layers), dtype=torch.float64)  # of errors, of the stream
        for text in texts:
            streams = [_streams(model, torch.tensor([text])) for model in models]
            for layer, (stream, other) in enumerate(zip(*streams, strict=True)):
                squares[0, layer] += (other - stream).square().sum()
                squares[1, layer] += stream.square().sum()
    return (squares[0] / squares[1]).tolist()


def _streams(model: Transformer, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream (tokens - 1, dim) after each layer, in float64."""
    streams: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: streams.append(output[0, 1:].double()))
        for layer in model.layers
    ]
    with torch.inference_mode():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return streams
