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
from ..memory import check_model_fits
from ..model_names import find_model
from ..storage.model_file import StoredModel
from ..storage.weights import Quantization
from .load import load_model

log = logging.getLogger("pyllama2")


def load_draft(
    draft: str | os.PathLike[str], model: StoredModel, n_ctx: int | None, n_threads: int | None, *, quiet: bool = False
) -> StoredModel | None:
    """Load a draft.

    Args:
        draft: a path or a name, or "self".
        model: the model that it is for.
        n_ctx: tokens that there must be memory for; None: the usual number.
        n_threads: threads, which the memory needed depends on.
        quiet: show no progress of downloads.

    Returns:
        The draft. None for "self" of a model that has 4 bits already, which would be no faster; the log says so.

    Raises:
        CheckpointError, Pyllama2Error: as Llama() does.
    """
    quantization = Quantization.of("q4")
    if draft == "self":
        if model.quantization.type == "q4":
            log.warning("the model has 4 bits already, so it cannot be its own draft: it runs without one")
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
