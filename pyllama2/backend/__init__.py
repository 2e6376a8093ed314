"""What computes logits. select_backend() is the way in; base.py has the contract, _cpu and _gpu fulfil it."""

from __future__ import annotations

import importlib

from ..errors import BackendUnavailableError
from ..shown import shown_value
from ..storage.model_file import StoredModel
from .base import Backend

# Adding a backend adds one line: device -> "module:class". "auto" takes the first usable one.
_REGISTRY = {
    "cuda": "pyllama2._gpu:CudaBackend",
    "cpu": "pyllama2._cpu:CpuBackend",
}


def select_backend(
    device: str = "auto", model: StoredModel | None = None, kv_dtype: str | None = None
) -> tuple[type[Backend], str]:
    """The backend class for "auto", "cpu" or "cuda", and a sentence that says why this one.

    model, kv_dtype  what it will be asked to run; None: any model that it can

    Raises ValueError for an unknown device and BackendUnavailableError for one that cannot be used.
    """
    if device != "auto" and device not in _REGISTRY:
        raise ValueError(f"device must be auto, {' or '.join(sorted(_REGISTRY))}, not {shown_value(device)}")
    reasons: list[str] = []
    for name in _REGISTRY if device == "auto" else [device]:
        module, _, class_name = _REGISTRY[name].partition(":")
        backend: type[Backend] = getattr(importlib.import_module(module), class_name)
        reason = backend.unavailable_reason()
        if reason is None and model is not None:
            reason = backend.unsupported_reason(model, kv_dtype)
        if reason is None:
            return backend, f"using {name}" + (f" ({'; '.join(reasons)})" if reasons else "")
        reasons.append(f"no {name}: {reason}")
    raise BackendUnavailableError("; ".join(reasons))
