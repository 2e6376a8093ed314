"""Load the model that guesses what another one says."""

from __future__ import annotations

import logging
import os
from contextlib import closing

from ..backend.fitting import USUAL_CONTEXT
from ..backend.kv_cache import default_kv_dtype
from ..checkpoint import open_checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..convert import convert_model
from ..memory import check_model_fits, weight_bytes
from ..model_names import find_model
from ..storage.model_file import StoredModel
from ..storage.weights import Quantization
from .load import load_model

log = logging.getLogger("pyllama2")

_SMALL = 1 << 30  # bytes in q8, up to which a model loses so much in 4 bits that q8 guesses better for its time


def load_draft(
    draft: str | os.PathLike[str], model: StoredModel, n_ctx: int | None, n_threads: int | None, *, quiet: bool = False
) -> StoredModel | None:
    """Load a draft.

    Args:
        draft: a path or a name; "q8" or "q4", the model itself in fewer bits; or "self": what suits it.
        model: the model that it is for.
        n_ctx: tokens that there must be memory for; None: the usual number.
        n_threads: threads, which the memory needed depends on.
        quiet: show no progress of downloads.

    Returns:
        The draft. None for the model itself if it has as few bits already, which would be no faster; the log says so.

    Raises:
        CheckpointError, Pyllama2Error: as Llama() does.
    """
    if draft in ("self", "q8", "q4"):
        kind = model.quantization.type
        quantization = _own_quantization(model) if draft == "self" else Quantization.of("q8" if draft == "q8" else "q4")
        if kind == "q4" or kind == quantization.type:
            log.warning("the model is %s already, so it cannot be its own draft: it runs without one", kind)
            return None
        context = min(model.config.max_seq_len, USUAL_CONTEXT) if n_ctx is None else n_ctx
        check_model_fits(model.config, quantization, context, default_kv_dtype(quantization), n_threads)
        return convert_model(model, quantization)
    path = find_model(draft, quiet=quiet)
    with closing(open_checkpoint(path)) as checkpoint:
        quant = None if isinstance(checkpoint, OwnCheckpoint) else "q4"
        if n_ctx is not None:
            n_ctx = min(n_ctx, checkpoint.config.max_seq_len)
    return load_model(path, quant=quant, tokenizer=None, n_ctx=n_ctx, kv_dtype=None, n_threads=n_threads)


def _own_quantization(model: StoredModel) -> Quantization:
    """The type in which a model guesses best for itself."""
    is_float = model.quantization.group_size == 0
    q8 = Quantization.of("q8")
    return q8 if is_float and weight_bytes(model.config, q8) <= _SMALL else Quantization.of("q4")
