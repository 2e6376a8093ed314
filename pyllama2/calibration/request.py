"""One calibration: the text first, then the layers; what is kept after an interruption."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..checkpoint.base import Checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..convert import Progress
from ..llama import Llama
from ..memory import weight_bytes
from ..storage.weights import Quantization
from ..tokenizer import load_tokenizer
from . import own_text
from .budget import BASE, FINER, Types, bits_of, choose_types
from .estimate import affordable_tokens, duration, measured_rate, measured_tokens, survey_seconds
from .products import Products
from .quantizing import METHOD, write_calibrated
from .survey import part_of, survey
from .text import TOKENS, CalibrationText, n_windows, of_texts, of_windows, window_size
from .work import Work
from .work_folder import WorkFolder

_WRITER_BYTES = 4 << 30  # a model that takes more as q8 writes its text as q4
_WRITING = 0.3  # share of the time limit that writing the text may take
_BATCH = 16  # windows that are written together


def calibrate(
    source: Checkpoint,
    path: str,
    out: str,
    quantization: Quantization,
    texts: list[str] | None,
    limit_s: float | None,
    progress: Progress | None,
    say: Callable[[str], None],
    bits: float | None = None,
) -> None:
    """Write a calibrated file.

    Args:
        source: an open checkpoint with a tokenizer.
        path: where it is, for the model that writes a text.
        out: path of the file to write.
        quantization: the storage types wanted.
        texts: what to choose the weights for; None: a text that the model writes.
        limit_s: about how long it may take, in seconds; None: as long as it takes.
        progress: called as progress(weights done, weights in all, name of the tensor just done).
        say: takes sentences for the user.
        bits: bits a weight of the layers' matrices, for mixed types; None: those of quantization.

    Raises:
        CheckpointError, NumericalError, Pyllama2Error, ValueError: as quantize() does.
    """
    products = Products()
    folder = WorkFolder(out, _plan(source, quantization, texts, limit_s, bits))
    try:
        if texts is None:
            text = _own_text(source, path, folder, products, limit_s, bits is not None, say)
        else:
            assert source.tokenizer is not None  # the caller has checked
            tokenizer = load_tokenizer(source.tokenizer, source.config.vocab_size)
            n_tokens = _affordable(source, products, limit_s, bits is not None)
            text = of_texts(texts, tokenizer, source.config.max_seq_len, n_tokens)
            for remark in text.remarks:
                say(remark)
        work = Work(source, out, quantization, text, products, folder, say, progress)
        if bits is not None:
            work = replace(work, quantization=replace(quantization, layers=_mixed_types(work, bits, limit_s)))
        write_calibrated(work)
    except BaseException:
        if folder.finished():
            say(f"{folder.path} has {folder.finished()} finished layers; the same command goes on from there")
        elif folder.has_survey():
            say(f"{folder.path} has what was measured so far; the same command goes on from there")
        else:
            folder.remove()
        raise


def _mixed_types(work: Work, bits: float, limit_s: float | None) -> Types:
    """The types of all steps for so many bits, chosen before an interruption or now."""
    types = work.folder.types()
    if types is None:
        config, rate = work.source.config, measured_rate(work.products)
        n_measured = measured_tokens(config, limit_s, rate)
        estimate = survey_seconds(config, work.text.tokens.windows.size, n_measured, rate)
        work.say(f"measuring on a part of the text where bits count: about {duration(estimate)}")
        folder = work.folder.survey()
        text = replace(work.text, tokens=part_of(work.text.tokens))
        in_8_bits = Quantization.of(FINER.type, FINER.group_size, work.quantization.output_type)
        part = replace(work, quantization=in_8_bits, second=BASE, folder=folder, text=text, progress=None)
        losses = survey(part, n_measured)
        types = choose_types(work.source.config, bits, losses)
        work.folder.save_types(types)
        folder.remove()
    counts = Counter(str(kind) for layer in types for kind in layer)
    named = ", ".join(f"{n} x {name}" for name, n in sorted(counts.items()))
    work.say(f"{bits_of(work.source.config, types):.3f} bits a weight: {named}, of {counts.total()} steps of layers")
    return types


def _plan(
    source: Checkpoint,
    quantization: Quantization,
    texts: list[str] | None,
    limit_s: float | None,
    bits: float | None,
) -> dict[str, object]:
    """What makes one calibration another than the last."""
    stats = [os.stat(path) for path in source.files]
    return {
        "method": METHOD,
        "files": [
            [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(source.files, stats, strict=True)
        ],
        "config": source.config.to_json(),
        "quantization": quantization.to_json(),
        "text": "self" if texts is None else [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        "seconds": limit_s,
        "bits": bits,
    }


def _affordable(source: Checkpoint, products: Products, limit_s: float | None, surveyed: bool) -> int:
    """Tokens that a time limit leaves, with a survey before the calibration or without."""
    if limit_s is None:
        return TOKENS
    window = window_size(source.config.max_seq_len)
    return affordable_tokens(source.config, limit_s, measured_rate(products), TOKENS, window, surveyed=surveyed)


def _own_text(
    source: Checkpoint,
    path: str,
    folder: WorkFolder,
    products: Products,
    limit_s: float | None,
    surveyed: bool,
    say: Callable[[str], None],
) -> CalibrationText:
    """The text that the model has written before an interruption, or writes now."""
    windows = folder.text()
    if windows is None:
        window = window_size(source.config.max_seq_len)
        left = None if limit_s is None else limit_s * (1 - _WRITING)
        wanted = n_windows(_affordable(source, products, left, surveyed), window)
        say(f"the model writes {wanted * window} tokens of text to calibrate on")
        with Llama(path, quant=_writer_type(source), n_ctx=window, device="cpu", seed=1) as llm:
            started = time.monotonic()
            windows = own_text.write(llm, min(wanted, _BATCH), window)
            while len(windows) < wanted:
                if limit_s is not None and time.monotonic() - started > _WRITING * limit_s:
                    break
                more = own_text.write(llm, min(_BATCH, wanted - len(windows)), window, len(windows))
                windows = np.concatenate([windows, more])
        folder.save_text(windows)
    assert source.tokenizer is not None  # the caller has checked
    tokenizer = load_tokenizer(source.tokenizer, source.config.vocab_size)
    return of_windows(windows, len(tokenizer.with_bos([])))


def _writer_type(source: Checkpoint) -> str | None:
    """The storage type with which a model writes its text."""
    if isinstance(source, OwnCheckpoint) and source.model.quantization.group_size:
        return None
    return "q8" if weight_bytes(source.config, Quantization.of("q8")) <= _WRITER_BYTES else "q4"
