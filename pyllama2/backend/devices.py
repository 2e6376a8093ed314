"""select_backend(): the backend for a device. Backends are imported here, when they are asked for."""

from __future__ import annotations

import importlib
import os

from ..errors import BackendUnavailableError
from ..shown import shown_value
from ..storage.model_file import StoredModel
from .base import Backend

# Device -> "module:class". "auto" takes the first that can be used.
_REGISTRY = {
    "cuda": "pyllama2._gpu:CudaBackend",
    "cpu": "pyllama2._cpu:CpuBackend",
}


def select_backend(
    device: str | None = None, model: StoredModel | None = None, kv_dtype: str | None = None
) -> tuple[type[Backend], str]:
    """Choose the backend for a device.

    Args:
        device: "cpu", "cuda" or "auto", which is the first that can be used. None: what the environment variable
            PYLLAMA2_DEVICE says, else "auto".
        model: the model that it must be able to run. None: not checked.
        kv_dtype: type of the keys and values that it must be able to use with the model.

    Returns:
        The backend's class, and a sentence that says why it was chosen.

    Raises:
        ValueError: the device is unknown.
        BackendUnavailableError: the device cannot be used, or cannot run the model.
    """
    asked_by = "device"
    if device is None:
        asked_by, device = "PYLLAMA2_DEVICE", os.environ.get("PYLLAMA2_DEVICE") or "auto"
    if device != "auto" and device not in _REGISTRY:
        raise ValueError(f"{asked_by} must be auto, {' or '.join(sorted(_REGISTRY))}, not {shown_value(device)}")
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
