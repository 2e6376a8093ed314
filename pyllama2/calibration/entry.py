"""quantize(): arguments are checked, then the model is written with or without a text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing

from .. import arguments
from ..checkpoint import open_checkpoint
from ..convert import FilePath, Progress, check_target, write_converted
from ..errors import CheckpointError
from ..loading.choice import keeps_numbers, main_type
from ..model_names import find_model
from ..shown import shown, shown_value
from ..storage.weights import GROUP_SIZES, Quantization
from .budget import BASE, bounds

log = logging.getLogger("pyllama2")


def quantize(
    source: FilePath,
    out: FilePath,
    type: str,
    *,
    group_size: int = 64,
    output_type: str | None = None,
    bits: float | None = None,
    calibrate: FilePath | Sequence[FilePath] | bool | None = None,
    calibrate_seconds: float | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Write a model as one of our files with 8- or 4-bit weights.

    The weights are chosen for a text: each matrix is rounded so that its outputs on that text change least, and makes
    up for the errors of the layers before it. A quantized source is dequantized first, so that a q8 file can become
    q4. Whatever happens, out is either complete or unchanged. An existing file is replaced by renaming: a Llama that
    uses the old file keeps it.

    An interrupted calibration leaves a folder beside out, called like it with .partial at the end. The same call goes
    on from there, after the last layer that was done.

    Args:
        source: one of our files, any other checkpoint, or the name of a model, as Llama() takes it.
        out: path of the file to write.
        type: "q8" or "q4".
        group_size: number of weights that share a scale: 32, 64 or 128.
        output_type: type of the output matrix, "q8" or "q4"; None: "q8".
        bits: bits a weight of the layers' matrices, scales included, such as 5.0. They are spent on groups of 32 to
            128 and on 8 bits where the model gains most by them on the text; type must be "q4", and group_size does
            not count. None: all have one type.
        calibrate: the text to choose the weights for: paths of UTF-8 files, or "self" for a text that the model
            writes itself. False: the quick search, which loses more. None: "self" for q4, False for q8, for
            models without a tokenizer, and where q4 has the numbers of the source, as it may for GPTQ.
        calibrate_seconds: about how long calibration may take: fewer tokens are used then; None: as long as it takes.
        progress: called as progress(weights done, weights in all, name of the tensor just done).
        say: called with sentences for the user: how long it takes, what is wrong with the text, what was lost;
            None: they go to the log.

    Raises:
        CheckpointError: the source or a text cannot be read, a number is not finite or does not fit, or out cannot be
            written.
        Pyllama2Error: the model cannot write a text here.
        TypeError: an argument is of the wrong type.
        ValueError: an argument is wrong, for example out is a file of the source, or the text is too short.
    """
    for name, value in (("type", type), ("output_type", "q8" if output_type is None else output_type)):
        if arguments.string(name, value) not in ("q8", "q4"):
            raise ValueError(f"{name} must be q8 or q4, not {shown_value(value)}")
    if arguments.integer("group_size", group_size) not in GROUP_SIZES:
        raise ValueError(f"group_size must be 32, 64 or 128 for the type {type}, not {shown_value(group_size)}")
    if bits is not None and (type != "q4" or calibrate is False):
        raise ValueError("bits go with the type q4, and with a calibration")
    bits = None if bits is None else arguments.real("bits", bits)
    target = arguments.path("out", out)
    arguments.function("progress", progress)
    arguments.function("say", say)
    if calibrate_seconds is not None and arguments.real("calibrate_seconds", calibrate_seconds) <= 0:
        raise ValueError(f"calibrate_seconds must be above 0, not {shown_value(calibrate_seconds)}")
    texts = _texts(calibrate)
    quantization = Quantization.of(type, int(group_size) if bits is None else BASE.group_size, output_type)
    arguments.path("source", source)
    check_target(target, [])  # before a model is downloaded
    path = find_model(source)
    with closing(open_checkpoint(path)) as opened:
        if calibrate is None and bits is None and keeps_numbers(opened, quantization):
            (say or log.info)(f"the weights are of {main_type(opened)} already, and keep their numbers in {type}")
        elif calibrate is None and type == "q4" and opened.tokenizer is not None:
            calibrate = "self"
        if calibrate in (None, False):
            write_converted(opened, target, quantization, progress)
            return
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer; without one it cannot be calibrated (calibrate=False)")
        if bits is not None:
            least, most = bounds(opened.config)
            if not least <= bits <= most:
                raise ValueError(f"bits must be from {least:.3f} to {most:.3f} for this model, not {shown_value(bits)}")
        check_target(target, opened.files)
        from .request import calibrate as write_calibrated  # not before: it loads the CPU backend

        write_calibrated(opened, path, target, quantization, texts, calibrate_seconds, progress, say or log.info, bits)


def _texts(calibrate: FilePath | Sequence[FilePath] | bool | None) -> list[str] | None:
    """Read the texts given. None: the model writes its own, or there is no calibration."""
    if calibrate is None or calibrate is False or calibrate == "self":
        return None
    if calibrate is True:
        raise ValueError('calibrate must be paths of texts, "self", False or None')
    paths = list(calibrate) if isinstance(calibrate, (list, tuple)) else [calibrate]
    if not paths:
        raise ValueError("calibrate must name at least one text")
    texts = []
    for path in (arguments.path("calibrate", path) for path in paths):
        try:
            with open(path, "rb") as file:
                texts.append(file.read().decode("utf-8-sig"))
        except OSError as error:
            raise CheckpointError(f"cannot read the calibration text {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"the calibration text {shown(path)} is not UTF-8, at byte {error.start}") from None
    return texts
