"""Whether a model fits into memory, said before it is loaded. Used by llama.py."""

from __future__ import annotations

import math
from pathlib import Path

from .config import ModelConfig
from .errors import Pyllama2Error
from .weights import Quantization, packed_shapes

_ITEM_BYTES = {"float32": 4, "float16": 2, "q8": 1, "q4": 1}
_WORKING_BYTES = 200 << 20  # scratch, tokenizer, Python


def weight_bytes(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of all weights in a quantization."""
    total = 0
    for name, shape in config.tensor_shapes().items():
        type = quantization.type_of(name, config)
        data, scales = packed_shapes(type, shape, quantization.group_size)
        total += math.prod(data) * _ITEM_BYTES[type] + 2 * math.prod(scales or (0,))
    return total


def cache_bytes(config: ModelConfig, n_ctx: int, kv_dtype: str) -> int:
    """Bytes of the keys and values of one sequence of n_ctx tokens."""
    return 2 * config.n_layers * config.kv_dim * n_ctx * _ITEM_BYTES[kv_dtype]


def available_bytes() -> int | None:
    """Memory that can be had without swapping: the machine's, or what a container's limit leaves; None if unknown."""
    found = [value for value in (_machine_available(), _cgroup_available()) if value is not None]
    return min(found, default=None)


def check_fits(config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str) -> None:
    """Raise Pyllama2Error, with the numbers and what would fit, when a model and its cache exceed available memory."""
    available = available_bytes()
    needed = weight_bytes(config, quantization) + cache_bytes(config, n_ctx, kv_dtype) + _WORKING_BYTES
    if available is None or needed <= available:
        return
    raise Pyllama2Error(
        f"the model needs {_gib(needed)} GiB ({quantization.type}, a context of {n_ctx} tokens), {_gib(available)} GiB "
        f"are available; {_what_fits(config, quantization, n_ctx, available)}"
    )


def _what_fits(config: ModelConfig, quantization: Quantization, n_ctx: int, available: int) -> str:
    """The nearest setting that fits: this quantization with less context, else a smaller one."""
    options = [quantization]
    options += [Quantization.of(type) for type in ("q8", "q4")]
    for option in options:
        kv_dtype = "float32" if option.type == "float32" else "float16"
        room = available - weight_bytes(config, option) - _WORKING_BYTES
        context = min(n_ctx, room // cache_bytes(config, 1, kv_dtype))
        if context >= min(n_ctx, 128):
            return f"{option.type} with a context of {context} (n_ctx) would fit"
    return "no quantization of it would fit"


def _gib(n: int) -> str:
    return f"{n / (1 << 30):.1f}"


def _machine_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_available() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        # The page cache counts as used and is given back on demand.
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "active_file ")):
                used -= int(line.split()[1])
        return max(0, limit - used)
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return None
