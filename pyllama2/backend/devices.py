"""select_backend(): the backend for a device. Backends are imported here, when they are asked for."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..arguments import string
from ..errors import BackendUnavailableError, DeviceMemoryError
from ..shown import shown_value
from ..storage.model_file import StoredModel
from .base import Backend

# Device -> "module:class". "auto" takes the first that can be used.
_REGISTRY = {
    "cuda": "pyllama2._gpu:CudaBackend",
    "cpu": "pyllama2._cpu:CpuBackend",
}
_STAGED = "pyllama2._staged:StagedBackend"
_NO_CUDA = "pyllama2._gpu.availability:unavailable_reason"  # quick where there is no GPU
_GPU = re.compile("cuda:(0|[1-9][0-9]{0,2})")  # one name for each GPU

# Makes a backend, as the class does: MakeBackend(model, n_threads=..., kv_dtype=...).
MakeBackend = Callable[..., Backend]


def asked_device(device: str | None) -> str:
    """Return device, or what PYLLAMA2_DEVICE says, else "auto".

    Raises:
        TypeError: it is not a string.
        ValueError: there is no such device.
    """
    asked_by = "device"
    if device is None:
        asked_by, device = "PYLLAMA2_DEVICE", os.environ.get("PYLLAMA2_DEVICE") or "auto"
    gpus = string(asked_by, device).split(",")
    if device not in ("auto", *_REGISTRY) and not (all(map(_GPU.fullmatch, gpus)) and len(set(gpus)) == len(gpus)):
        raise ValueError(
            f"{asked_by} must be auto, {' or '.join(sorted(_REGISTRY))}, or GPUs such as cuda:1 or cuda:0,cuda:1, "
            f"not {shown_value(device)}"
        )
    return device


def gpu_numbers(device: str) -> list[int | None]:
    """Return the numbers of the GPUs that a device names, in order: [0, 1] of "cuda:0,cuda:1".

    None is CUDA's current GPU: "cuda" is [None], and so is "auto", which tries it. "cpu" is [].
    """
    if device == "cpu":
        return []
    return [int(match[1]) if (match := _GPU.fullmatch(name)) else None for name in device.split(",")]


def placed_threads(
    cpu_affinity: str | Sequence[int] | None, n_threads: int | None
) -> tuple[tuple[int, ...], int | None]:
    """Return the CPUs that the CPU's threads are to be bound to, and how many threads that makes.

    Args:
        cpu_affinity: as Llama() takes it. None: they are not bound.
        n_threads: how many there are to be. None: one for each CPU that they are bound to.

    Raises:
        TypeError, ValueError: cpu_affinity is wrong, or has fewer CPUs than n_threads.
    """
    if cpu_affinity is None:
        return (), n_threads
    cpus = _loaded("pyllama2._cpu.threads:cpus_of")(cpu_affinity)
    return cpus, _loaded("pyllama2._cpu.threads:team_of")(n_threads, cpus)


def select_backend(
    device: str | None = None,
    model: StoredModel | None = None,
    kv_dtype: str | None = None,
    n_gpu_layers: int | None = None,
    cpus: Sequence[int] = (),
) -> tuple[MakeBackend, str]:
    """Choose the backend for a device.

    Args:
        device: "cpu", "cuda", "cuda:1", "cuda:0,cuda:1" or "auto", which is the first that can be used. None: what the
            environment variable PYLLAMA2_DEVICE says, else "auto".
        model: the model that it must be able to run. None: not checked.
        kv_dtype: type of the keys and values that it must be able to use with the model.
        n_gpu_layers: how many layers GPUs must have; the CPU has the rest. Below 0: all. None: as many as fit.
        cpus: to which the CPU's threads are bound. Empty: to none.

    Returns:
        The backend's class, or what makes one, and a sentence that says why it was chosen.

    Raises:
        ValueError: the device is unknown, or is the CPU that is to have no layers.
        BackendUnavailableError: the device cannot be used, or cannot run the model.
    """
    device = asked_device(device)
    if device == "cpu" and n_gpu_layers:
        raise ValueError(f"n_gpu_layers={n_gpu_layers} is for a GPU, and the device is cpu")
    cpu = partial(_loaded(_REGISTRY["cpu"]), cpus=cpus) if cpus else _loaded(_REGISTRY["cpu"])
    if device == "cpu" or n_gpu_layers == 0:
        return cpu, "using cpu" + (" (n_gpu_layers is 0)" if device != "cpu" else "")
    reason, chosen = _on_gpus("cuda" if device == "auto" else device, model, kv_dtype, n_gpu_layers, cpus)
    if chosen is not None:
        return chosen
    if device != "auto":
        raise BackendUnavailableError(reason)
    return cpu, f"using cpu ({reason})"


def _on_gpus(
    device: str, model: StoredModel | None, kv_dtype: str | None, n_gpu_layers: int | None, cpus: Sequence[int]
) -> tuple[str, tuple[MakeBackend, str] | None]:
    """What to take for one GPU or several. If there is nothing, why not."""
    gpus = gpu_numbers(device)
    if reason := next(filter(None, map(_loaded(_NO_CUDA), gpus)), None):
        return f"no {device}: {reason}", None
    cuda, staged = _loaded(_REGISTRY["cuda"]), _loaded(_STAGED)
    whole = cuda if gpus == [None] else partial(cuda, device=gpus[0])
    parts = partial(staged, gpus=gpus, n_gpu_layers=n_gpu_layers, cpus=cpus)
    is_whole = len(gpus) == 1 and n_gpu_layers is None  # if it fits
    if model is None:
        return "", (whole if is_whole else parts, f"using {device}")
    too_large = None
    if is_whole:
        reason = cuda.unsupported_reason(model, kv_dtype, gpus[0])
        if reason is None:
            return "", (whole, f"using {device}")
        too_large = f"no {device}: {reason}"
    try:
        places = staged.places_of(model, kv_dtype, gpus, n_gpu_layers)
    except (BackendUnavailableError, DeviceMemoryError) as error:
        return too_large or f"no {device}: {error}", None
    if len(places) == len(gpus) == 1:
        return "", (whole, f"using {device}")
    return "", (parts, f"using {', '.join(map(str, places))}" + (f" ({too_large})" if too_large else ""))


def _loaded(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
