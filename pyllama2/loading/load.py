"""Load a model by its path: map the weights of our own file, or convert another checkpoint in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import closing
from typing import get_args

import numpy as np

from ..arguments import string
from ..backend.fitting import USUAL_CONTEXT
from ..backend.kv_cache import KV_DTYPES, check_kv_dtype, default_kv_dtype
from ..checkpoint import open_checkpoint
from ..checkpoint.base import Checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..checkpoint.title import title_of
from ..convert import Progress, convert_in_memory, quantized_weight
from ..memory import check_model_fits
from ..model_names import Adapters
from ..shown import shown, shown_value
from ..storage.floats import as_float
from ..storage.model_file import StoredModel
from ..storage.weights import Quantization, Weight, WeightType
from .choice import choose_quantization, keeps_numbers, main_type
from .kept import find_kept, keep_converted

log = logging.getLogger("pyllama2")

# Numbers of other files that are not converted.
_AS_THEY_ARE = {"float32": ("float32", "F32"), "float16": ("float16", "F16")}


def check_types(quant: str | None, kv_dtype: str | None) -> None:
    """Raise TypeError or ValueError unless these are such as load_model() takes."""
    for name, value in (("quant", quant), ("kv_dtype", kv_dtype)):
        if value is not None:
            string(name, value)
    if quant not in (None, "auto", *get_args(WeightType)):
        raise ValueError(f"quant must be auto, {', '.join(get_args(WeightType))} or None, not {shown_value(quant)}")
    if kv_dtype is not None:
        check_kv_dtype(kv_dtype, ("auto", *KV_DTYPES))


def load_model(
    path: str,
    *,
    quant: str | None,
    tokenizer: str | os.PathLike[str] | None,
    lora: Adapters = (),
    n_ctx: int | None,
    kv_dtype: str | None,
    n_threads: int | None = None,
    quantized: bool = False,
    keep: bool = False,
    progress: Progress | None = None,
) -> StoredModel:
    """Load the model at path. One of our files is used in place, unless quant asks for another type.

    Other checkpoints are converted in memory, or taken from the models that were kept.

    Args:
        path: a model file or checkpoint.
        quant: the storage type of the matrices: "float32", "float16", "q8" or "q4"; None: as they are in one of our
            files, float32 for other checkpoints; "auto": for other checkpoints what choice.py says.
        tokenizer: path of a tokenizer file that replaces the model's own.
        lora: LoRA adapters that are merged into the weights, each PATH or PATH:SCALE.
        n_ctx: context length in tokens that memory must suffice for; None: up to 2048.
        kv_dtype: type of the key/value cache, one of KV_DTYPES; None: float32 for a float32 model, else float16.
            "auto": int8 if memory asks for it, so it must suffice for that.
        n_threads: number of threads, which the memory needed depends on.
        quantized: "auto" takes no float type.
        keep: keep the converted model for the next start.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Raises:
        CheckpointError: a file cannot be read or is damaged.
        Pyllama2Error: there is not enough memory.
        ValueError: an argument is wrong.
    """
    check_types(quant, kv_dtype)
    kv_dtype = "int8" if kv_dtype == "auto" else kv_dtype
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        config = checkpoint.config
        if n_ctx is not None and not 1 <= n_ctx <= config.max_seq_len:
            raise ValueError(
                f"n_ctx must be between 1 and {config.max_seq_len}, not {shown_value(n_ctx)}: "
                f"{checkpoint.why_it_ends or 'the model was made for that'}"
            )
        if why := checkpoint.why_it_ends:
            log.warning("%s: the context ends at %d tokens: %s", shown(title_of(path)), config.max_seq_len, why)
        context = min(config.max_seq_len, USUAL_CONTEXT) if n_ctx is None else n_ctx
        model = _usable_in_place(checkpoint, path, None if quant == "auto" else quant)
        if model is not None:
            quantization = model.quantization
        elif quant == "auto":
            quantization = choose_quantization(checkpoint, context, kv_dtype, n_threads, quantized=quantized)
        else:
            quantization = Quantization.of(quant or "float32")
        check_model_fits(config, quantization, context, kv_dtype or default_kv_dtype(quantization), n_threads)
        source: Checkpoint = checkpoint
        if lora:
            from ..adapters import with_adapters  # as late as the readers, which it imports

            source = with_adapters(checkpoint, lora)
            if model is not None:
                return _merged(model, source, source.changed)
        if model is not None:
            return model
        return _converted(source, path, quantization, quant == "auto", keep, progress)


def _merged(model: StoredModel, source: Checkpoint, changed: Collection[str]) -> StoredModel:
    """Replace the weights of one of our files that adapters change. The others stay as they are, in the file."""
    for name, shape in model.config.tensor_shapes().items():
        if name in changed:
            kind = model.quantization.storage_of(name, model.config)
            array = source.tensor(name).read()
            if kind.group_size:
                model.weights[name] = quantized_weight(name, array, kind)
            else:
                model.weights[name] = Weight(name, kind.type, shape, as_float(name, array, np.dtype(kind.type)))
    model.source = source.source
    return model


def _converted(
    checkpoint: Checkpoint, path: str, quantization: Quantization, chosen: bool, keep: bool, progress: Progress | None
) -> StoredModel:
    """Convert a checkpoint, or take what was kept. chosen: the user did not say what to convert it to."""
    model = find_kept(checkpoint, quantization)
    if model is not None:
        log.info("using the converted model that was kept for %s", shown(path))
        return model
    if chosen and main_type(checkpoint) not in _AS_THEY_ARE.get(quantization.type, ()):
        log.warning(
            "%s (%s) is used as %s%s; %s",
            shown(title_of(path)),
            main_type(checkpoint),
            quantization.type,
            ", with the same numbers" if keeps_numbers(checkpoint, quantization) else "",
            "it will be kept" if keep else "--keep, or keep=True, keeps the converted file for the next start",
        )
    else:
        log.info("converting %s to %s in memory", shown(path), quantization.type)
    if quantization.type == "q4":
        log.info("a file that `pyllama2 quantize --type q4` calibrates loses far less, at the same size")
    if keep:
        model = keep_converted(checkpoint, quantization, progress)
    return convert_in_memory(checkpoint, quantization, progress) if model is None else model


def _usable_in_place(checkpoint: Checkpoint, path: str, quant: str | None) -> StoredModel | None:
    """Return the model of one of our files if it has the type wanted; None when it must be converted."""
    if not isinstance(checkpoint, OwnCheckpoint):
        return None
    model = checkpoint.model
    if quant not in (None, model.quantization.type):
        if model.quantization.group_size:
            raise ValueError(
                f"{shown(path)} is {model.quantization.type} already and cannot be used as {quant}; "
                "make that from the unquantized model"
            )
        return None
    model.tokenizer = checkpoint.tokenizer  # the tokenizer argument may have replaced the file's own
    return model
