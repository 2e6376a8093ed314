"""Whether a model and its sequences fit into memory, checked before any of it is allocated.

    needed     weights + keys and values + scratch memory and logits + some room for the tokenizer and Python
    available  what the machine can give without swapping, or what a container's limit leaves

The code that allocates scratch memory, keys and values also counts them, so that the two cannot disagree.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .backend.fitting import LEAST_CONTEXT, gib, largest_context
from .config import ModelConfig
from .errors import Pyllama2Error
from .storage.weights import Quantization, StorageType, packed_shapes

if TYPE_CHECKING:
    from .backend.base import Backend

log = logging.getLogger("pyllama2")

# Logits in memory at once while given tokens are scored: of so many tokens, but of at most so many bytes.
_PIECE_TOKENS = 256
_PIECE_BYTES = 64 << 20

_ITEM_BYTES = {"float32": 4, "float16": 2, "q8": 1, "q4": 1, "int8": 1}
_OTHER_BYTES = 100 << 20  # tokenizer, texts, Python
_FEW_TOKENS = 12  # most logits of a step of a single text: those of its newest token and of guesses
_CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))  # version 2, version 1


def weight_bytes(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of all weights in a quantization."""
    return sum(
        tensor_bytes(shape, quantization.storage_of(name, config)) for name, shape in config.tensor_shapes().items()
    )


def layer_bits(config: ModelConfig, quantization: Quantization) -> float:
    """Bits a weight of the layers' matrices, scales and padding included."""
    shapes = {name: shape for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    names = [name for name in shapes if name.startswith("layers.")]
    n_bytes = sum(tensor_bytes(shapes[name], quantization.storage_of(name, config)) for name in names)
    return 8 * n_bytes / sum(math.prod(shapes[name]) for name in names)


def tensor_bytes(shape: tuple[int, ...], kind: StorageType) -> int:
    """Bytes of a tensor, scales included."""
    codes, scales = packed_shapes(kind.type, shape, kind.group_size)
    return math.prod(codes) * _ITEM_BYTES[kind.type] + (2 * math.prod(scales) if scales else 0)


def kv_cache_bytes(config: ModelConfig, n_tokens: int, kv_dtype: str) -> int:
    """Bytes of the keys and values of n_tokens tokens in the CPU backend's layout.

    Values of a head are padded to 16 numbers, and int8 has a float32 scale for each vector of a head. A whole cache
    has room for a multiple of 16 tokens: Backend.kv_cache_bytes() gives its bytes.
    """
    from ._cpu.cache import BLOCK, allocated_bytes

    return allocated_bytes(config, 1, BLOCK, kv_dtype) // BLOCK * n_tokens


def weight_bytes_per_token(config: ModelConfig, quantization: Quantization) -> int:
    """Bytes of weights that are read to decode one token: all but the other rows of an embedding."""
    if config.tied_embeddings:
        return weight_bytes(config, quantization)
    # Without its embedding, the model is like a tied one whose shared matrix has the type of the output matrix.
    return weight_bytes(replace(config, tied_embeddings=True), quantization)


def logits_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Bytes of the float32 logits of n_tokens tokens, and of the vectors that they are computed from."""
    return 4 * (config.vocab_size + config.dim) * n_tokens


def piece_tokens(config: ModelConfig) -> int:
    """Number of tokens whose logits are in memory at once while given tokens are scored."""
    return max(1, min(_PIECE_TOKENS, _PIECE_BYTES // logits_bytes(config, 1)))


def working_bytes(config: ModelConfig, quantization: Quantization, n_ctx: int, n_threads: int | None = None) -> int:
    """Most bytes of a process on the CPU without weights, keys and values: scratch memory, logits, tokenizer, Python.

    Args:
        config: of the model.
        quantization: of its weights.
        n_ctx: longest sequence in tokens.
        n_threads: None is the usual number.
    """
    from ._cpu.threads import team_of
    from ._cpu.workspace import Workspace

    isa = os.environ.get("PYLLAMA2_CPU_ISA", "")
    scratch = Workspace(config, quantization, team_of(n_threads), isa, counts_only=True)
    logits = max(_step_bytes(config), logits_bytes(config, piece_tokens(config)))
    return scratch.most_bytes(n_ctx) + logits + _OTHER_BYTES


def needed_bytes(
    config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str, n_threads: int | None = None
) -> int:
    """Bytes that a model and one sequence of n_ctx tokens take on the CPU. n_threads: None is the usual number."""
    from ._cpu.cache import allocated_bytes

    cache = allocated_bytes(config, 1, n_ctx, kv_dtype)
    return weight_bytes(config, quantization) + cache + working_bytes(config, quantization, n_ctx, n_threads)


def check_model_fits(
    config: ModelConfig, quantization: Quantization, n_ctx: int, kv_dtype: str, n_threads: int | None = None
) -> None:
    """Raise Pyllama2Error unless a model and one sequence of n_ctx tokens fit. It says what is needed and would fit."""
    available = available_bytes()
    if available is None:
        return

    def needed(option: Quantization, context: int) -> int:
        return needed_bytes(config, option, context, kv_dtype, n_threads)

    if needed(quantization, n_ctx) > available:
        raise Pyllama2Error(
            f"the model needs {gib(needed(quantization, n_ctx))} ({quantization.type}, a context of {n_ctx} tokens), "
            f"{gib(available)} are available; "
            + _what_fits(quantization, n_ctx, lambda option, context: needed(option, context) <= available)
        )


def rows_that_fit(backend: Backend, n_rows: int, n_tokens: int, other_bytes: int = 0) -> int:
    """How many sequences fit at the same time: the keys and values of each, and the logits of one of its tokens.

    Args:
        backend: what computes them.
        n_rows: how many are wanted.
        n_tokens: tokens of each.
        other_bytes: bytes of the machine's memory that the caller needs for other things.

    Returns:
        A number from 1 to n_rows.

    Raises:
        Pyllama2Error: not even one fits. The message has the numbers.
    """
    return min(_part_rows(part, n_rows, n_tokens, other_bytes) for part in backend.parts())


def with_fitting_cache(make_backend: Callable[[str | None], Backend], kv_dtype: str | None, n_ctx: int) -> Backend:
    """Make a backend, with kv_dtype="auto" one whose cache can hold a sequence of n_ctx tokens, if there is any.

    Args:
        make_backend: makes it from the type of its keys and values; None: its own choice.
        kv_dtype: the type. "auto": the backend's own choice, or int8 if the sequence fits only so.
        n_ctx: tokens.
    """
    backend = make_backend(None if kv_dtype == "auto" else kv_dtype)
    if kv_dtype != "auto":
        return backend
    try:
        rows_that_fit(backend, 1, n_ctx)
    except Pyllama2Error as error:
        backend.close()
        log.info("keys and values are int8: %s", error)
        return make_backend("int8")
    return backend


def _part_rows(backend: Backend, n_rows: int, n_tokens: int, other_bytes: int) -> int:
    """How many sequences fit on one of the devices that a model is on."""
    room, row = backend.free_bytes(), backend.kv_cache_bytes(1, n_tokens)
    logits = 0  # on a device with memory of its own, logits do not compete with keys and values
    if room is None:
        room, logits = machine_room(backend), logits_bytes(backend.config, 1)
        if room is None:
            return n_rows
        room = max(0, room - other_bytes)
    if row + logits > room:
        context = largest_context(lambda n: backend.kv_cache_bytes(1, n) + logits <= room, n_tokens)
        raise Pyllama2Error(
            f"the keys and values of {n_tokens} tokens need {gib(row)}, {gib(room)} are available; "
            f"prompt and max_tokens of {context} tokens together would fit"
        )
    return min(n_rows, room // (row + logits))


def check_logits_fit(backend: Backend, n_tokens: int) -> int:
    """Return the bytes of the logits of n_tokens tokens. Raises Pyllama2Error, with the numbers, if they do not fit."""
    room, needed = machine_room(backend), logits_bytes(backend.config, n_tokens)
    if room is not None and needed > room:
        raise Pyllama2Error(
            f"the logits of {n_tokens} tokens need {gib(needed)}, {gib(max(0, room))} are available; "
            f"those of {max(0, room) // logits_bytes(backend.config, 1)} tokens would fit"
        )
    return needed


def machine_room(backend: Backend) -> int | None:
    """Bytes of the machine's memory that are not planned for yet; None when the system does not say."""
    available = available_bytes()
    return None if available is None else available - backend.pending_bytes() - _step_bytes(backend.config)


def _step_bytes(config: ModelConfig) -> int:
    """Bytes of a step's logits, of a changed copy of one text's logits, and of what sampling works with."""
    changed, weighed = 8 * config.vocab_size, 28 * config.vocab_size
    return logits_bytes(config, _FEW_TOKENS) + changed + weighed


def available_bytes() -> int | None:
    """Bytes of memory that can be allocated without swapping; None when the system does not say."""
    limits = [_system_available(), *map(_cgroup_available, _CGROUP_ROOTS)]
    return min((limit for limit in limits if limit is not None), default=None)


def _what_fits(quantization: Quantization, n_ctx: int, fits: Callable[[Quantization, int], bool]) -> str:
    """A sentence on the nearest setting that fits: the same weights with less context, else smaller weights."""
    for option in (quantization, Quantization.of("q8"), Quantization.of("q4")):
        context = largest_context(partial(fits, option), n_ctx)
        if context >= min(n_ctx, LEAST_CONTEXT):
            smaller = "" if context == n_ctx else f" with n_ctx={context}"
            return f"{option.type}{smaller} would fit"
    return "no quantization of it would fit"


def _system_available() -> int | None:
    """Bytes that the system can give without swapping: free memory, and the page cache that is given back on demand."""
    import psutil

    try:
        return int(psutil.virtual_memory().available)
    except (OSError, RuntimeError, ValueError):  # such as a /proc that is not mounted
        return None


def _cgroup_available(root: Path) -> int | None:
    """Bytes that the limit of this process's container leaves; None without a limit. Reads cgroup 2 or 1 at root."""
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
