"""What a model needs on the device, computed before anything is allocated, and whether it fits.

    allocated  every array by its name: the backend allocates exactly these
    driver     an estimate of what CUDA takes besides: the context, code and stacks of kernels, graphs, and what is
               left over where an array does not fill the pieces that CUDA allocates

A Plan lists the arrays of the weights, of a cache, and of the workspace. The backend makes its arrays from the same
functions, so that a plan is exact to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from ..backend.fitting import LEAST_CONTEXT, gib, largest_context
from ..backend.kv_cache import check_kv_dtype
from ..backend.stages import Layers
from ..config import ModelConfig
from ..errors import DeviceMemoryError
from ..storage.weights import STEPS, Quantization, StorageType
from .cache import DTYPES, cache_arrays
from .launchers.attention import MAX_HEAD_DIM, attend_arrays
from .launchers.sample import DRAW_WORDS
from .layout import Kind, Shapes, groups_of, kind_of, matrix_arrays, vector_arrays

# The driver takes these: the context (about 260 MiB on recent cards, not part of what CUDA later says is free), and the
# modules with their stacks. They are no arrays, so the emulator on a CPU does not show them.
CONTEXT_BYTES = 300 << 20
MODULE_BYTES = 50 << 20
# An estimate of a graph's device memory for each of its kernels: the parameters, and what CUDA keeps to launch them.
GRAPH_NODE_BYTES = 4 << 10
GRAPHS = 32  # most graphs that are kept
# cudaMalloc gives memory in pieces of GRANULE. Smaller arrays share them.
GRANULE = 2 << 20
_SMALL = 1 << 20
_ALIGNMENT = 512

DECODE_TOKENS = 8  # most tokens of one step of decoding
CHUNKS = (512, 256)  # tokens of a prompt that are computed together: the first that fits
INPUTS = 6  # numbers of each token: its id, row and position, an output, two of a tile
_CONTEXT_STEP = 32

PARTS = {
    "linear": "linear weights",
    "output": "output weights",
    "embeddings": "embeddings",
    "norms": "norms, biases",
    "cache": "keys and values",
    "workspace": "workspace",
}


@dataclass(frozen=True)
class DeviceArray:
    """An array that will be allocated: its name, what it belongs to (a key of PARTS), dtype and shape."""

    name: str
    part: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Plan:
    """What a model and one cache need on the device.

    Attributes:
        arrays: all arrays.
        kv_dtype: of the cache: what was asked for, or the choice of plan().
        n_rows, max_seq_len: as in plan().
        chunk: tokens of a prompt that are computed together: what was asked for, or the choice of plan().
        driver_bytes: what CUDA takes besides its context.
        free_bytes: free bytes of the device when CUDA has its context. None: not known.
        problem: None when all fits, else one sentence with the numbers and what would fit.
    """

    arrays: tuple[DeviceArray, ...]
    kv_dtype: str
    n_rows: int
    max_seq_len: int
    chunk: int
    driver_bytes: int
    free_bytes: int | None
    problem: str | None

    @cached_property
    def parts(self) -> dict[str, int]:
        """Bytes of each part, by the keys of PARTS."""
        sums = dict.fromkeys(PARTS, 0)
        for array in self.arrays:
            sums[array.part] += array.nbytes
        return sums

    @property
    def allocated(self) -> int:
        """Bytes of all arrays."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """Bytes of all arrays, and of all that CUDA takes."""
        return self.needed + CONTEXT_BYTES

    @property
    def needed(self) -> int:
        """Bytes that must be free when CUDA has its context."""
        return self.allocated + self.driver_bytes

    def shapes(self, part: str) -> Shapes:
        """Return the arrays of one part, by name."""
        return {array.name: (array.dtype, array.shape) for array in self.arrays if array.part == part}

    def check(self) -> None:
        """Raise DeviceMemoryError with the sentence of problem, if there is one."""
        if self.problem is not None:
            raise DeviceMemoryError(self.problem)

    def refused(self, free_bytes: int) -> DeviceMemoryError:
        """Return the error of an allocation that CUDA refuses though the plan fits. free_bytes are free then."""
        rows = "" if self.n_rows == 1 else f" of {self.n_rows} sequences"
        return DeviceMemoryError(
            f"CUDA refuses memory that was free when this was planned: {gib(self.needed)} are needed in all, of them "
            f"{gib(self.parts['cache'])} for {self.kv_dtype} keys and values{rows} of {self.max_seq_len} tokens and "
            f"{gib(self.parts['workspace'])} for the workspace; {gib(free_bytes)} are free now, perhaps in small pieces"
        )

    def describe(self) -> str:
        """Return the plan as text. Each line has a name and a size."""
        rows = {PARTS[part]: size for part, size in self.parts.items()}
        rows |= {"CUDA context, kernels, graphs": CONTEXT_BYTES + self.driver_bytes, "total": self.total}
        return "\n".join(f"{name:30}{size / (1 << 30):7.3f} GiB" for name, size in rows.items())


def unsupported(config: ModelConfig) -> str | None:
    """Return None, or one sentence that says why this model cannot run on a GPU."""
    if config.head_dim > MAX_HEAD_DIM:
        return (f"the CUDA backend computes heads of up to {MAX_HEAD_DIM} numbers, not {config.head_dim}; "
                "use device='cpu'")  # fmt: skip
    return None


def plan(
    config: ModelConfig,
    quantization: Quantization,
    n_rows: int,
    max_seq_len: int,
    kv_dtype: str | None = None,
    chunk: int | None = None,
    free_bytes: int | None = None,
    layers: Layers | None = None,
) -> Plan:
    """Plan a model and one cache.

    Args:
        config: of the model, or of a part of it.
        quantization: of its weights.
        n_rows: sequences of the cache.
        max_seq_len: longest sequence in tokens.
        kv_dtype: "float16" or "int8". None: float16, or int8 if only that fits.
        chunk: tokens of a prompt that are computed together. None: the first of CHUNKS that fits. A smaller chunk is
            taken before int8 is.
        free_bytes: free bytes of the device when CUDA has its context. None: do not check whether it fits.
        layers: which layers a part has. None: it is the whole model.

    Raises:
        ValueError: kv_dtype is another, or a number is below 1.
    """
    if n_rows < 1 or max_seq_len < 1 or (chunk is not None and chunk < 1):
        raise ValueError("n_rows, max_seq_len and chunk must be at least 1")
    if kv_dtype is not None:
        check_kv_dtype(kv_dtype, DTYPES)
    dtypes, chunks = DTYPES if kv_dtype is None else (kv_dtype,), CHUNKS if chunk is None else (chunk,)
    reason = unsupported(config)
    if reason is not None:
        return Plan((), dtypes[0], n_rows, max_seq_len, chunks[0], 0, free_bytes, reason)
    plans = {(dtype, n): _arranged(config, quantization, n_rows, max_seq_len, dtype, n, free_bytes, layers)
             for dtype in dtypes for n in chunks}  # fmt: skip
    return next((found for found in plans.values() if found.problem is None), plans[dtypes[0], chunks[-1]])


def _arranged(
    config: ModelConfig, quantization: Quantization, n_rows: int, max_seq_len: int, kv_dtype: str, chunk: int,
    free_bytes: int | None, layers: Layers | None,
) -> Plan:  # fmt: skip
    arrays = tuple(
        DeviceArray(name, part, dtype, shape)
        for part, shapes in {
            **weight_arrays(config, quantization, layers),
            "cache": cache_arrays(config, n_rows, max_seq_len, kv_dtype),
            "workspace": workspace_arrays(config, quantization, max_seq_len, chunk),
        }.items()
        for name, (dtype, shape) in shapes.items()
    )
    left_over = taken_bytes(array.nbytes for array in arrays) - sum(array.nbytes for array in arrays)
    plan = Plan(arrays, kv_dtype, n_rows, max_seq_len, chunk, driver_bytes(config) + left_over, free_bytes, None)
    if free_bytes is None or plan.needed <= free_bytes:
        return plan
    return replace(plan, problem=_problem(config, quantization, plan, layers))


def driver_bytes(config: ModelConfig) -> int:
    """Return the bytes that CUDA takes besides its context: code of kernels, graphs of five or six kernels a layer."""
    return MODULE_BYTES + GRAPHS * GRAPH_NODE_BYTES * ((5 + config.wo_bias) * config.n_layers + 3)


def taken_bytes(sizes: Iterable[int]) -> int:
    """Return the bytes that CUDA takes for arrays of so many bytes."""
    large = small = 0
    for size in sizes:
        if size > _SMALL:
            large += -(-size // GRANULE) * GRANULE
        else:
            small += -(-size // _ALIGNMENT) * _ALIGNMENT
    return large + -(-small // GRANULE) * GRANULE


def weight_arrays(
    config: ModelConfig, quantization: Quantization, layers: Layers | None = None
) -> dict[str, Shapes]:  # fmt: skip
    """Return the arrays of the weights by part, named like the tensors. wq wk wv lie together, and so do w1 w3.

    layers: as in plan().
    """
    embeds, outputs = (layers.embeds, layers.outputs) if layers else (True, True)
    dim, hidden_dim, q_dim, kv_dim = config.dim, config.hidden_dim, config.q_dim, config.kv_dim
    linear: Shapes = {}
    norms: Shapes = {"norm": ("float32", (dim,))} if outputs else {}
    for i in range(config.n_layers):
        for step, (name, parts, columns) in enumerate((
            ("wqkv", (q_dim, kv_dim, kv_dim), dim),
            ("wo", (dim,), q_dim),
            ("w13", (hidden_dim, hidden_dim), dim),
            ("w2", (dim,), hidden_dim),
        )):  # fmt: skip
            linear |= _prefixed(f"layers.{i}.{name}", _matrix(quantization.of_step(i, step), parts, columns))
        norms |= {f"layers.{i}.{name}": ("float32", (dim,)) for name in ("attention_norm", "ffn_norm")}
        if config.qkv_bias:
            norms[f"layers.{i}.wqkv_bias"] = ("float32", (q_dim + 2 * kv_dim,))
        if config.wo_bias:
            norms[f"layers.{i}.wo_bias"] = ("float32", (dim,))

    def table(name: str) -> Shapes:
        return _prefixed(name, _matrix(quantization.storage_of(f"{name}.weight", config), (config.vocab_size,), dim))

    tied = config.tied_embeddings
    return {
        "linear": linear,
        "output": table("output") if outputs and not tied else {},
        "embeddings": table("tok_embeddings") if embeds or (outputs and tied) else {},
        "norms": norms,
    }


def workspace_arrays(config: ModelConfig, quantization: Quantization, max_seq_len: int, chunk: int) -> Shapes:
    """Return the arrays of the workspace: for decoding steps and chunks of prompts, and the rope table."""
    dim, hidden_dim, q_dim, kv_dim = config.dim, config.hidden_dim, config.q_dim, config.kv_dim
    inputs = input_kinds(config, quantization)
    most_groups = max(groups_of(hidden_dim, group_size) for _, group_size in inputs["w2_input"])
    few, many = DECODE_TOKENS, max(DECODE_TOKENS, chunk)
    shapes: Shapes = {
        "rope_table": ("float32", (max_seq_len, config.head_dim // 2, 2)),
        "inputs": ("int32", (INPUTS, many)),
        "x": ("float32", (many, dim)),
        # Queries, keys, values and attention; then, when these are not needed any more, gate and up.
        "scratch": ("float32", (many * max(2 * q_dim + 2 * kv_dim, 2 * hidden_dim),)),
        "logits": ("float32", (few, config.vocab_size)),
        "draws": ("uint64", (few, DRAW_WORDS)),
        "sampled": ("int32", (few,)),
        "counters": ("uint32", (1 + 2 * config.n_kv_heads + most_groups,)),
    }
    for name, n, columns in (
        ("normed", many, dim),
        ("wo_input", many, q_dim),
        ("w2_input", many, hidden_dim),
        ("final", few, dim),
    ):
        for kind in inputs[name]:
            type, group_size = kind
            shapes |= _prefixed(vectors_name(name, kind), vector_arrays(type, n, columns, group_size))
    return shapes | _prefixed("attention", attend_arrays(config, few, max_seq_len))


def input_kinds(config: ModelConfig, quantization: Quantization) -> dict[str, list[Kind]]:
    """Return what kinds of vectors the workspace has, by the name of its attribute: those of the matrices."""
    qkv, wo, w13, w2 = (
        {_kind(quantization.of_step(layer, step)) for layer in range(config.n_layers)} for step in range(len(STEPS))
    )
    kinds = {"normed": qkv | w13, "wo_input": wo, "w2_input": w2}
    kinds["final"] = {kind_of(quantization.output_type, quantization.group_size)}
    return {name: sorted(found) for name, found in kinds.items()}


def vectors_name(name: str, kind: Kind) -> str:
    """Return the name of an attribute's vectors of this kind, such as normed.q4/64. Those of arrays begin with it."""
    type, group_size = kind
    return f"{name}.{type}/{group_size}"


def _kind(stored: StorageType) -> Kind:
    return kind_of(stored.type, stored.group_size)


def _matrix(stored: StorageType, parts: tuple[int, ...], columns: int) -> Shapes:
    type, group_size = _kind(stored)
    return matrix_arrays(type, parts, columns, group_size)


def _prefixed(name: str, shapes: Shapes) -> Shapes:
    return {f"{name}.{key}": value for key, value in shapes.items()}


def _problem(config: ModelConfig, quantization: Quantization, plan: Plan, layers: Layers | None) -> str:
    parts, free = plan.parts, plan.free_bytes or 0
    weights = sum(parts[name] for name in ("linear", "output", "embeddings", "norms"))
    rows = "" if plan.n_rows == 1 else f" of {plan.n_rows} sequences"
    if layers is None or len(layers) == layers.n:
        what = "the model needs"
    else:
        what = f"{layers} of the model need{'s' * (len(layers) == 1)}"
    return (
        f"{what} {gib(plan.needed)} of GPU memory (weights {gib(weights)}, "
        f"{plan.kv_dtype} keys and values{rows} of {plan.max_seq_len} tokens {gib(parts['cache'])}, the rest "
        f"{gib(parts['workspace'] + plan.driver_bytes)}), {gib(free)} are free; "
        f"{_what_fits(config, quantization, plan, free, layers)}"
    )


def _what_fits(
    config: ModelConfig, quantization: Quantization, plan: Plan, free: int, layers: Layers | None
) -> str:  # fmt: skip
    """The nearest settings that fit: int8 keys and values, else a smaller context with the dtype asked for, or int8."""

    def fits(kv_dtype: str, max_seq_len: int) -> bool:
        found = _arranged(config, quantization, plan.n_rows, max_seq_len, kv_dtype, plan.chunk, None, layers)
        return found.needed <= free

    if plan.kv_dtype != "int8" and fits("int8", plan.max_seq_len):
        return "kv_dtype='int8' would fit"
    found = []
    for dtype in dict.fromkeys((plan.kv_dtype, "int8")):
        context = largest_context(partial(fits, dtype), plan.max_seq_len, _CONTEXT_STEP)
        if context >= LEAST_CONTEXT:
            found.append(f"n_ctx={context} with {dtype} keys and values")
    return f"{' or '.join(found)} would fit" if found else "device='cpu' needs none"
