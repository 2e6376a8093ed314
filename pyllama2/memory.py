"""Whether a model and its sequences fit into memory, said before any of it is taken.

    needed     weights + keys and values + some room for scratch memory and the tokenizer
    available  what the machine can give without swapping, or what a container's limit leaves

Used by loading.py, and by llama.py for every generation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from .config import ModelConfig
from .errors import Pyllama2Error
from .weights import Quantization, packed_shapes

_ITEM_BYTES = {"float32": 4, "float16": 2, "q8": 1, "q4": 1, "int8": 1}
_WORKING_BYTES = 200 << 20  # scratch, tokenizer, Python
_LEAST_CONTEXT = 128  # a suggestion with less would be of no use
_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))  # version 2, version 1


def weight_bytes(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of all weights in a quantization."""
    total = 0
    for name, shape in config.tensor_shapes().items():
        type = quantization.type_of(name, config)
        codes, scales = packed_shapes(type, shape, quantization.group_size)
        total += math.prod(codes) * _ITEM_BYTES[type] + (2 * math.prod(scales) if scales else 0)
    return total


def cache_bytes(config: ModelConfig, n_tokens: int, kv_dtype: str) -> int:
    """Bytes of the keys and values of n_tokens tokens; int8 has a float32 scale for each vector of a head."""
    vector = config.head_dim * _ITEM_BYTES[kv_dtype] + (4 if kv_dtype == "int8" else 0)
    return 2 * config.n_layers * config.n_kv_heads * vector * n_tokens


def weight_bytes_per_token(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of weights that decoding a token reads: all but the other rows of an embedding."""
    if config.tied_embeddings:
        return weight_bytes(config, quantization)
    # Without its embedding, the model is as a tied one whose shared matrix has the type of the output matrix.
    return weight_bytes(replace(config, tied_embeddings=True), quantization)


def needed_bytes(config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str) -> int:
    """Bytes that a model and one sequence of n_ctx tokens take: weights, keys and values, working memory."""
    return weight_bytes(config, quantization) + cache_bytes(config, n_ctx, kv_dtype) + _WORKING_BYTES


def check_model_fits(config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str) -> None:
    """Raise Pyllama2Error, with the numbers and what would fit, unless a model and one sequence of n_ctx tokens do."""
    available = available_bytes()
    needed = needed_bytes(config, quantization, n_ctx, kv_dtype)
    if available is not None and needed > available:
        raise Pyllama2Error(
            f"the model needs {_gib(needed)} ({quantization.type}, a context of {n_ctx} tokens), "
            f"{_gib(available)} are available; {_what_fits(config, quantization, n_ctx, kv_dtype, available)}"
        )


def rows_that_fit(config: ModelConfig, n_rows: int, n_tokens: int, kv_dtype: str, available: int | None = None) -> int:
    """How many of n_rows sequences of n_tokens tokens have room for their keys and values at the same time.

    available  bytes of the device they go to; None: of the machine's memory

    Raises Pyllama2Error, with the numbers, when not even one has.
    """
    available = available_bytes() if available is None else available
    needed = cache_bytes(config, n_tokens, kv_dtype)
    if available is None or needed * n_rows <= available:
        return n_rows
    if needed > available:
        context = available // cache_bytes(config, 1, kv_dtype)
        raise Pyllama2Error(
            f"the keys and values of {n_tokens} tokens need {_gib(needed)}, {_gib(available)} are available; "
            f"prompt and max_tokens of {context} tokens together would fit"
        )
    return available // needed


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None when the system does not say."""
    found = [_meminfo_available(), *map(_cgroup_available, _CGROUP_ROOTS)]
    return min((value for value in found if value is not None), default=None)


def _what_fits(config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str, available: int) -> str:
    """The nearest setting that fits: the same weights with less context, else smaller weights."""
    for option in (quantization, Quantization.of("q8"), Quantization.of("q4")):
        room = available - weight_bytes(config, option) - _WORKING_BYTES
        context = min(n_ctx, room // cache_bytes(config, 1, kv_dtype))
        if context >= min(n_ctx, _LEAST_CONTEXT):
            smaller = "" if context == n_ctx else f" with n_ctx={context}"
            return f"{option.type}{smaller} would fit"
    return "no quantization of it would fit"


def _gib(n: int) -> str:
    return f"{n / (1 << 30):.2f} GiB"


def _meminfo_available() -> int | None:
    """MemAvailable of Linux: free memory, and the page cache that is given back on demand."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_available(root: Path) -> int | None:
    """What the limit of this process's container leaves; None without one. Files of cgroup version 2 or 1 at root."""
    for limit_name, used_name, cache_prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit, used = (int((root / name).read_text()) for name in (limit_name, used_name))
            stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
            # The page cache counts as used, but is given back on demand.
            cache = sum(int(stat.get(f"{cache_prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
        except (OSError, ValueError):  # not this version, or no limit ("max")
            continue
        return max(0, limit - used + cache)
    return None
