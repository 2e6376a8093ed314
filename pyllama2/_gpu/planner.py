"""What a model needs on the device, computed before anything is allocated, and whether it fits.

    allocated  every array by its name: the backend allocates exactly these
    driver     what CUDA takes for itself, estimated: the context, the kernels' code and stacks, graphs

A Plan lists the arrays of the weights, of a cache, and of the workspace. The backend makes its arrays from the plan, so
that the two are the same to the byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from ..backend.fitting import LEAST_CONTEXT, gib, largest_context
from ..backend.kv_cache import check_kv_dtype
from ..config import ModelConfig
from ..errors import Pyllama2Error
from ..storage.weights import Quantization
from .cache import DTYPES, cache_arrays
from .launchers.attention import MAX_HEAD_DIM, attend_arrays
from .launchers.sample import DRAW_WORDS
from .layout import BITS, Shapes, groups_of, matrix_arrays, vector_arrays

# Taken by the driver, not by an array, and so not seen where a CPU stands in for the GPU: the context (about 260 MiB on
# recent cards, of which nothing is left to free memory that is asked for later), and the modules with their stacks.
CONTEXT_BYTES = 300 << 20
MODULE_BYTES = 50 << 20
# A graph's device memory for each of its kernels: an estimate, of parameters and of what CUDA keeps to launch them.
GRAPH_NODE_BYTES = 4 << 10
GRAPHS = 32  # of a cache that are kept at most

DECODE_TOKENS = 8  # that one step of decoding takes at most
INPUTS = 6  # numbers for each token: itself, its row, its position, an output, two of a tile
_CONTEXT_STEP = 32

PARTS = {
    "linear": "linear weights",
    "output": "output weights",
    "embeddings": "embeddings",
    "norms": "norms",
    "cache": "keys and values",
    "workspace": "workspace",
}


@dataclass(frozen=True)
class DeviceArray:
    """An array to be: its name, what it belongs to (a key of PARTS), dtype and shape."""

    name: str
    part: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Plan:
    """What a model and one cache need on the device.

    arrays       all that is allocated
    kv_dtype     of the cache, chosen where it was left open
    n_rows, max_seq_len, chunk   what was planned for
    driver_bytes what CUDA takes besides its context
    free_bytes   of the device, once CUDA has its context; None: not known
    problem      None when all fits, else one sentence with the numbers and what would fit
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
        """Bytes of each part, by its key in PARTS."""
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
        """Bytes of all arrays and of what the driver takes."""
        return self.needed + CONTEXT_BYTES

    @property
    def needed(self) -> int:
        """Bytes that must be free once CUDA has its context."""
        return self.allocated + self.driver_bytes

    def shapes(self, part: str) -> Shapes:
        """The arrays of one part, by name."""
        return {array.name: (array.dtype, array.shape) for array in self.arrays if array.part == part}

    def check(self) -> None:
        """Raise Pyllama2Error with the sentence of problem, if there is one."""
        if self.problem is not None:
            raise Pyllama2Error(self.problem)

    def describe(self) -> str:
        """The plan as lines of a name and a size each."""
        rows = {PARTS[part]: size for part, size in self.parts.items()}
        rows |= {"CUDA context, kernels, graphs": CONTEXT_BYTES + self.driver_bytes, "total": self.total}
        return "\n".join(f"{name:30}{size / (1 << 30):7.3f} GiB" for name, size in rows.items())


def unsupported(config: ModelConfig, quantization: Quantization) -> str | None:
    """One sentence that says why this model cannot run on a GPU, if it cannot."""
    if quantization.type not in BITS or quantization.output_type not in BITS:
        return (f"the CUDA backend computes with q4 and q8 weights, not {quantization.type}; "
                "quantize the model (python -m pyllama2.quantize) or use device='cpu'")  # fmt: skip
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
    chunk: int = 256,
    free_bytes: int | None = None,
) -> Plan:
    """The plan for a model and one cache of n_rows sequences of up to max_seq_len tokens.

    kv_dtype    "float16", "int8", or None: float16, and int8 where only that fits
    chunk       tokens of a prompt that are computed together
    free_bytes  of the device, once CUDA has its context; None: it is not asked whether anything fits

    Raises ValueError for another kv_dtype and for counts below 1.
    """
    if n_rows < 1 or max_seq_len < 1 or chunk < 1:
        raise ValueError("n_rows, max_seq_len and chunk must be at least 1")
    if kv_dtype is not None:
        check_kv_dtype(kv_dtype, DTYPES)
    reason = unsupported(config, quantization)
    if reason is not None:
        return Plan((), kv_dtype or DTYPES[0], n_rows, max_seq_len, chunk, 0, free_bytes, reason)
    plans = [_arranged(config, quantization, n_rows, max_seq_len, dtype, chunk, free_bytes)
             for dtype in (DTYPES if kv_dtype is None else (kv_dtype,))]  # fmt: skip
    return next((found for found in plans if found.problem is None), plans[0])


def _arranged(
    config: ModelConfig, quantization: Quantization, n_rows: int, max_seq_len: int, kv_dtype: str, chunk: int,
    free_bytes: int | None,
) -> Plan:  # fmt: skip
    arrays = tuple(
        DeviceArray(name, part, dtype, shape)
        for part, shapes in {
            **weight_arrays(config, quantization),
            "cache": cache_arrays(config, n_rows, max_seq_len, kv_dtype),
            "workspace": workspace_arrays(config, quantization, max_seq_len, chunk),
        }.items()
        for name, (dtype, shape) in shapes.items()
    )
    plan = Plan(arrays, kv_dtype, n_rows, max_seq_len, chunk, driver_bytes(config), free_bytes, None)
    if free_bytes is None or plan.needed <= free_bytes:
        return plan
    return replace(plan, problem=_problem(config, quantization, plan))


def driver_bytes(config: ModelConfig) -> int:
    """What CUDA takes besides its context: the kernels' code, and graphs of decoding steps, five kernels a layer."""
    return MODULE_BYTES + GRAPHS * GRAPH_NODE_BYTES * (5 * config.n_layers + 3)


def weight_arrays(config: ModelConfig, quantization: Quantization) -> dict[str, Shapes]:
    """Arrays of the weights by part, named like the tensors: wq wk wv lie together, and so do w1 w3."""
    dim, hidden_dim, q_dim, kv_dim = config.dim, config.hidden_dim, config.q_dim, config.kv_dim
    type, output_type, group_size = quantization.type, quantization.output_type, quantization.group_size
    linear: Shapes = {}
    norms: Shapes = {"norm": ("float32", (dim,))}
    for i in range(config.n_layers):
        for name, parts, columns in (
            ("wqkv", (q_dim, kv_dim, kv_dim), dim),
            ("wo", (dim,), q_dim),
            ("w13", (hidden_dim, hidden_dim), dim),
            ("w2", (dim,), hidden_dim),
        ):
            linear |= _prefixed(f"layers.{i}.{name}", matrix_arrays(type, parts, columns, group_size))
        norms |= {f"layers.{i}.{name}": ("float32", (dim,)) for name in ("attention_norm", "ffn_norm")}
    table = matrix_arrays(output_type if config.tied_embeddings else type, (config.vocab_size,), dim, group_size)
    output = matrix_arrays(output_type, (config.vocab_size,), dim, group_size)
    return {
        "linear": linear,
        "output": {} if config.tied_embeddings else _prefixed("output", output),
        "embeddings": _prefixed("tok_embeddings", table),
        "norms": norms,
    }


def workspace_arrays(config: ModelConfig, quantization: Quantization, max_seq_len: int, chunk: int) -> Shapes:
    """Arrays that a forward pass writes to: of a decoding step, of a prompt's chunk, and the rope table."""
    dim, hidden_dim, q_dim, kv_dim = config.dim, config.hidden_dim, config.q_dim, config.kv_dim
    type, output_type, group_size = quantization.type, quantization.output_type, quantization.group_size
    few, many = DECODE_TOKENS, max(DECODE_TOKENS, chunk)
    shapes: Shapes = {
        "rope_table": ("float32", (max_seq_len, config.head_dim // 2, 2)),
        "inputs": ("int32", (INPUTS, many)),
        "x": ("float32", (many, dim)),
        "q": ("float32", (many, q_dim)),
        "kv": ("float32", (2, many, kv_dim)),
        "attention": ("float32", (many, q_dim)),
        "gate_up": ("float32", (many, 2, hidden_dim)),
        "logits": ("float32", (few, config.vocab_size)),
        "draws": ("uint64", (few, DRAW_WORDS)),
        "sampled": ("int32", (few,)),
        "counters": ("uint32", (1 + 2 * config.n_kv_heads + groups_of(hidden_dim, group_size),)),
    }
    for name, vector_type, n, columns in (
        ("normed", type, many, dim),
        ("wo_input", type, many, q_dim),
        ("w2_input", type, many, hidden_dim),
        ("final", output_type, few, dim),
    ):
        shapes |= _prefixed(name, vector_arrays(vector_type, n, columns, group_size))
    return shapes | _prefixed("attention", attend_arrays(config, few, max_seq_len))


def _prefixed(name: str, shapes: Shapes) -> Shapes:
    return {f"{name}.{key}": value for key, value in shapes.items()}


def _problem(config: ModelConfig, quantization: Quantization, plan: Plan) -> str:
    parts, free = plan.parts, plan.free_bytes or 0
    weights = sum(parts[name] for name in ("linear", "output", "embeddings", "norms"))
    rows = "" if plan.n_rows == 1 else f" of {plan.n_rows} sequences"
    return (
        f"the model needs {gib(plan.needed)} of GPU memory (weights {gib(weights)}, "
        f"{plan.kv_dtype} keys and values{rows} of {plan.max_seq_len} tokens {gib(parts['cache'])}, the rest "
        f"{gib(parts['workspace'] + plan.driver_bytes)}), {gib(free)} are free; "
        f"{_what_fits(config, quantization, plan, free)}"
    )


def _what_fits(config: ModelConfig, quantization: Quantization, plan: Plan, free: int) -> str:
    """The nearest setting that fits: int8 keys and values, else a smaller context with the dtype that was asked for."""

    def fits(kv_dtype: str, max_seq_len: int) -> bool:
        found = _arranged(config, quantization, plan.n_rows, max_seq_len, kv_dtype, plan.chunk, None)
        return found.needed <= free

    if plan.kv_dtype != "int8" and fits("int8", plan.max_seq_len):
        return "kv_dtype='int8' would fit"
    found = []
    for dtype in dict.fromkeys((plan.kv_dtype, "int8")):
        context = largest_context(partial(fits, dtype), plan.max_seq_len, _CONTEXT_STEP)
        if context >= LEAST_CONTEXT:
            found.append(f"n_ctx={context} with {dtype} keys and values")
    return f"{' or '.join(found)} would fit" if found else "device='cpu' needs none"
