"""Whether a model and its sequences fit into memory, said before any of it is taken.

    needed     weights + keys and values + scratch memory and logits + some room for the tokenizer and Python
    available  what the machine can give without swapping, or what a container's limit leaves

Scratch memory, keys and values are counted by the code that allocates them, so that the two cannot disagree.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ModelConfig
from .errors import Pyllama2Error
from .storage.weights import Quantization, packed_shapes

if TYPE_CHECKING:
    from .backend.base import Backend

# Logits that are in memory at once when given tokens are scored: of so many tokens, unless they take more than so much.
_PIECE_TOKENS = 256
_PIECE_BYTES = 64 << 20

_ITEM_BYTES = {"float32": 4, "float16": 2, "q8": 1, "q4": 1, "int8": 1}
_OTHER_BYTES = 100 << 20  # tokenizer, texts, Python
_FEW_TOKENS = 12  # whose logits a step of a single text wants at most: its newest and guesses
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


def kv_cache_bytes(config: ModelConfig, n_tokens: int, kv_dtype: str) -> int:
    """Bytes of the keys and values of n_tokens tokens, as the CPU lays them out.

    Values of a head are padded to 16 numbers, and int8 has a float32 scale for each vector of a head. A cache has room
    for a multiple of 16 tokens: Backend.kv_cache_bytes() is what it takes.
    """
    from ._cpu.cache import BLOCK, allocated_bytes

    return allocated_bytes(config, 1, BLOCK, kv_dtype) // BLOCK * n_tokens


def weight_bytes_per_token(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of weights that decoding a token reads: all but the other rows of an embedding."""
    if config.tied_embeddings:
        return weight_bytes(config, quantization)
    # Without its embedding, the model is as a tied one whose shared matrix has the type of the output matrix.
    return weight_bytes(replace(config, tied_embeddings=True), quantization)


def logits_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Bytes of the logits of n_tokens tokens, and of the vectors that they are made of; float32."""
    return 4 * (config.vocab_size + config.dim) * n_tokens


def piece_tokens(config: ModelConfig) -> int:
    """Tokens whose logits are in memory at once when given tokens are scored."""
    return max(1, min(_PIECE_TOKENS, _PIECE_BYTES // logits_bytes(config, 1)))


def working_bytes(config: ModelConfig, quantization: Quantization, n_ctx: int, n_threads: int | None = None) -> int:
    """Bytes that the CPU backend takes at most besides weights, keys and values, and what surrounds it."""
    from ._cpu.threads import team_of
    from ._cpu.workspace import Workspace

    isa = os.environ.get("PYLLAMA2_CPU_ISA", "")
    scratch = Workspace(config, quantization, team_of(n_threads), isa, counts_only=True)
    logits = max(_step_bytes(config), logits_bytes(config, piece_tokens(config)))
    return scratch.most_bytes(n_ctx) + logits + _OTHER_BYTES


def needed_bytes(
    config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str, n_threads: int | None = None
) -> int:
    """Bytes that a model and one sequence of n_ctx tokens take on the CPU, on n_threads (None: the usual number)."""
    from ._cpu.cache import allocated_bytes

    cache = allocated_bytes(config, 1, n_ctx, kv_dtype)
    return weight_bytes(config, quantization) + cache + working_bytes(config, quantization, n_ctx, n_threads)


def check_model_fits(
    config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str, n_threads: int | None = None
) -> None:
    """Raise Pyllama2Error, with the numbers and what would fit, unless a model and one sequence of n_ctx tokens do."""
    available = available_bytes()
    if available is None:
        return

    def needed(option: Quantization, context: int) -> int:
        return needed_bytes(config, option, context, kv_dtype, n_threads)

    if needed(quantization, n_ctx) > available:
        raise Pyllama2Error(
            f"the model needs {_gib(needed(quantization, n_ctx))} ({quantization.type}, a context of {n_ctx} tokens), "
            f"{_gib(available)} are available; "
            + _what_fits(quantization, n_ctx, lambda option, context: needed(option, context) <= available)
        )


def rows_that_fit(backend: Backend, n_rows: int, n_tokens: int, beside: int = 0) -> int:
    """How many of n_rows sequences of n_tokens tokens have room at the same time: keys, values, a token's logits each.

    beside  bytes of the machine's memory that the caller takes besides

    Raises Pyllama2Error, with the numbers, when not even one has.
    """
    room, row = backend.free_bytes(), backend.kv_cache_bytes(1, n_tokens)
    logits = 0  # beside keys and values; else they are on a device with memory of its own
    if room is None:
        room, logits = machine_room(backend), logits_bytes(backend.config, 1)
        if room is None:
            return n_rows
        room = max(0, room - beside)
    if row + logits > room:
        context = _largest(lambda n: backend.kv_cache_bytes(1, n) + logits <= room, n_tokens)
        raise Pyllama2Error(
            f"the keys and values of {n_tokens} tokens need {_gib(row)}, {_gib(room)} are available; "
            f"prompt and max_tokens of {context} tokens together would fit"
        )
    return min(n_rows, room // (row + logits))


def check_logits_fit(backend: Backend, n_tokens: int) -> int:
    """Bytes of the logits of n_tokens tokens. Raises Pyllama2Error, with the numbers, without room for them."""
    room, needed = machine_room(backend), logits_bytes(backend.config, n_tokens)
    if room is not None and needed > room:
        raise Pyllama2Error(
            f"the logits of {n_tokens} tokens need {_gib(needed)}, {_gib(max(0, room))} are available; "
            f"those of {max(0, room) // logits_bytes(backend.config, 1)} tokens would fit"
        )
    return needed


def machine_room(backend: Backend) -> int | None:
    """Bytes of the machine's memory that nothing is meant for yet; None when the system does not say."""
    available = available_bytes()
    return None if available is None else available - backend.pending_bytes() - _step_bytes(backend.config)


def _step_bytes(config: ModelConfig) -> int:
    """Of the logits of a step, copies of a text's that are changed, and what sampling works with."""
    changed, weighed = 8 * config.vocab_size, 28 * config.vocab_size
    return logits_bytes(config, _FEW_TOKENS) + changed + weighed


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None when the system does not say."""
    found = [_meminfo_available(), *map(_cgroup_available, _CGROUP_ROOTS)]
    return min((value for value in found if value is not None), default=None)


def _what_fits(quantization: Quantization, n_ctx: int, fits: Callable[[Quantization, int], bool]) -> str:
    """The nearest setting that fits: the same weights with less context, else smaller weights."""
    for option in (quantization, Quantization.of("q8"), Quantization.of("q4")):
        context = _largest(partial(fits, option), n_ctx)
        if context >= min(n_ctx, _LEAST_CONTEXT):
            smaller = "" if context == n_ctx else f" with n_ctx={context}"
            return f"{option.type}{smaller} would fit"
    return "no quantization of it would fit"


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to most that fits, as all smaller ones do; 0 when there is none."""
    return bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


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
