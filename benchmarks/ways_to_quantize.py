"""A model in fewer bits in all ways: those of pyllama2, and those of llama.cpp where llama-cpp-python is installed.

Each way makes a file from the same float32 weights. Those that see a text see the same tokens of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import llama_cpp_quantizer
import numpy as np
from numpy.typing import NDArray

import pyllama2
from pyllama2.calibration.text import TOKENS, of_texts
from pyllama2.convert import convert_model
from pyllama2.storage.model_file import ModelWriter, StoredModel
from pyllama2.storage.weights import Quantization
from pyllama2.tokenizer import load_tokenizer

PLAIN = "q4 by a search that knows nothing of the inputs"
IN_MEMORY = "q4 converted in memory, or `--no-calibrate`"
OWN_TEXT = "q4 calibrated on a text that the model writes (the default)"
TEXTS = "q4 calibrated on texts"
LLAMA_CPP = "llama.cpp "  # what names of its ways begin with
_TYPES_OF_LLAMA_CPP = (
    "Q4_0", "Q4_0 imatrix", "IQ4_NL", "IQ4_NL imatrix", "Q4_K_S", "Q4_K_S imatrix", "Q4_K_M", "Q4_K_M imatrix",
    "Q5_0", "Q8_0",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to make a file in fewer bits: its name, and a function that writes the file to a path."""

    name: str
    make: Callable[[Path], None]


def ways(source: Path, texts: Sequence[Path], folder: Path) -> Iterator[Way]:
    """Yield all ways, of which PLAIN is the first.

    Args:
        source: one of our files in float32, with a tokenizer.
        texts: to calibrate on; none: those ways are left out.
        folder: for what several ways need.
    """

    def ours(calibrate: object, **options: object) -> Callable[[Path], None]:
        return lambda out: pyllama2.quantize(source, out, "q4", calibrate=calibrate, **options)  # type: ignore[arg-type]

    given = [os.fspath(path) for path in texts]
    yield Way(PLAIN, lambda out: write_plain(StoredModel.open(source), out))
    yield Way(IN_MEMORY, ours(False))
    yield Way(OWN_TEXT, ours("self"))
    if given:
        yield Way(TEXTS, ours(given))
        yield Way(f"{TEXTS}, groups of 32", ours(given, group_size=32))
        yield Way("`--bits 5`, calibrated on texts", ours(given, bits=5.0))
    yield Way("q8", lambda out: pyllama2.quantize(source, out, "q8"))
    if find_spec("llama_cpp") is not None:
        yield from _of_llama_cpp(source, texts, folder)


def _of_llama_cpp(source: Path, texts: Sequence[Path], folder: Path) -> Iterator[Way]:
    gguf = folder / "float32.gguf"
    pyllama2.export(source, gguf, format="gguf")
    importance = llama_cpp_quantizer.input_mean_squares(source, _windows(source, texts)) if texts else None
    n_threads = len(os.sched_getaffinity(0))

    def theirs(type: str, importance: llama_cpp_quantizer.Importance | None) -> Callable[[Path], None]:
        return lambda out: llama_cpp_quantizer.quantize(gguf, out, type, n_threads, importance)

    for name in _TYPES_OF_LLAMA_CPP:
        type, _, needs_importance = name.partition(" ")
        if not needs_importance or importance is not None:
            yield Way(LLAMA_CPP + name, theirs(type, importance if needs_importance else None))


def write_plain(model: StoredModel, out: Path) -> None:
    """Write a model as q4 by the search for models without a tokenizer."""
    plain = convert_model(model, Quantization.of("q4"))
    with ModelWriter(out, plain) as writer:
        for weight in plain.weights.values():
            writer.write(weight)


def _windows(source: Path, texts: Sequence[Path]) -> NDArray[np.int32]:
    """The windows that quantize(calibrate=texts) uses for statistics."""
    spec = StoredModel.open(source).tokenizer
    assert spec is not None
    max_seq_len = StoredModel.open(source).config.max_seq_len
    tokens = of_texts([path.read_text("utf-8-sig") for path in texts], load_tokenizer(spec), max_seq_len, TOKENS).tokens
    return tokens.windows[: tokens.n_training]


def bits_of_layers(file: Path) -> float:
    """Return the bits of a weight of the layers' matrices, scales included, of a file that a way has made."""
    if file.read_bytes()[:4] == b"GGUF":
        from gguf import GGUFReader

        found = [
            (int(tensor.n_bytes), int(tensor.n_elements))
            for tensor in GGUFReader(file).tensors
            if tensor.name.startswith("blk.") and len(tensor.shape) == 2
        ]
    else:
        weights = StoredModel.open(file).weights.values()
        found = [
            (weight.nbytes, int(np.prod(weight.shape)))
            for weight in weights
            if weight.name.startswith("layers.") and len(weight.shape) == 2
        ]
    return 8 * sum(n for n, _ in found) / sum(n for _, n in found)
