"""What is in a model of any kind, and what it would need to run: the facts that inspect.py shows.

    inspect_model   a path -> Inspection: config, tensors with statistics, memory, expected speed
    cut_text        a path and a text -> its tokens

Expected speed: decoding a token reads all weights (but the embedding's other rows) and the keys and values of the
tokens before it, and costs some time for each layer whatever its size:

    seconds per token = bytes / bandwidth + time of a step with next to no weights        (machine.py)

It is what the machine allows at most. The work of the processor itself is left out, and so is sampling.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.own_file import NativeCheckpoint
from ..config import ModelConfig
from ..convert import Progress
from ..loading import KV_DTYPES
from ..memory import available_bytes, kv_cache_bytes, needed_bytes, weight_bytes, weight_bytes_per_token
from ..storage.weights import Quantization
from ..tokenizer import load_tokenizer
from ..tokenizer.base import Tokenizer
from .bandwidth import BUFFER_BYTES, ReadBandwidth, last_cache_bytes, step_seconds
from .tensor_statistics import Statistics, statistics_of

# Which part of the model a tensor belongs to, by the last but one part of its name.
PARTS = {
    "tok_embeddings": "embeddings",
    "attention_norm": "norms",
    "wq": "attention",
    "wk": "attention",
    "wv": "attention",
    "wo": "attention",
    "ffn_norm": "norms",
    "w1": "feed forward",
    "w2": "feed forward",
    "w3": "feed forward",
    "norm": "norms",
    "output": "output",
}


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """How many numbers each part of a model has; a tied model has no output matrix of its own."""
    parts = dict.fromkeys(PARTS.values(), 0)
    for name, shape in config.tensor_shapes().items():
        parts[PARTS[name.split(".")[-2]]] += prod(shape)
    return parts


@dataclass(frozen=True)
class TensorFacts:
    """One tensor as it is stored.

    type    as the format spells it: "BF16", "Q4_K", or ours: float32, float16, q8, q4
    nbytes  codes and scales, or plain numbers
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    statistics: Statistics

    @property
    def n_parameters(self) -> int:
        """Numbers of the tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer; n_tokens may be less than the model's vocab_size, and ids past it then stand for nothing."""

    kind: str
    n_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: dict[str, int]


@dataclass(frozen=True)
class Speed:
    """Tokens/s that decoding reaches at most, at the first position and with a full context."""

    at_start: float
    at_end: float


@dataclass(frozen=True)
class MemoryPlan:
    """What one way to run the model takes.

    quant            how the weights are stored in memory
    as_stored        whether that is the file itself, used in place; else it is converted when it is opened
    weight_bytes     of all weights
    bytes_per_token  of the weights that decoding a token reads
    bandwidth        at which so many bytes, but at most 512 MiB, were read; None when it was not measured
    total_bytes      by type of the keys and values: weights, keys and values of the context, working memory
    speed            by type of the keys and values; None when it was not measured
    """

    quant: str
    as_stored: bool
    weight_bytes: int
    bytes_per_token: int
    bandwidth: float | None
    total_bytes: dict[str, int]
    speed: dict[str, Speed] | None


@dataclass(frozen=True)
class Inspection:
    """All that inspect_model() found. Sizes are bytes; bandwidths GB/s (10^9 bytes).

    kind             "pyllama2", "meta", "huggingface", "gguf" or "llama2.c"
    quantization     of one of our files, else None
    parameters       by part of the model
    context          tokens that kv_bytes, needs and speeds are for
    kv_bytes         keys and values of the context, by their type
    available_bytes  memory that can be had now; None when the system does not say
    cpu_cache_bytes  the processor's last cache; None when the system does not say
    n_threads        of the measurements
    """

    path: str
    kind: str
    source: str
    files: dict[str, int]
    config: ModelConfig
    quantization: Quantization | None
    tokenizer: TokenizerFacts | None
    chat_template: str | None
    n_parameters: int
    parameters: dict[str, int]
    tensors: list[TensorFacts]
    context: int
    kv_bytes: dict[str, int]
    available_bytes: int | None
    cpu_cache_bytes: int | None
    n_threads: int
    needs: list[MemoryPlan]


def inspect_model(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    exact: bool = False,
    measure: bool = True,
    progress: Progress | None = None,
) -> Inspection:
    """Look into a model file or checkpoint; nothing is converted, and memory holds a part of a tensor at a time.

    n_ctx      tokens of a sequence; None: what the model was made for
    n_threads  of the measurements; None: as Llama() chooses
    exact      read every number of every tensor for its statistics, not a sample of large ones
    measure    read memory for a moment to say what speed to expect
    progress   called as progress(parameters done, parameters in all, name of the tensor)

    Raises CheckpointError for files that cannot be read, ValueError for arguments out of range.
    """
    from .._cpu.cache import allocated_bytes
    from .._cpu.threads import team_of

    n_threads = team_of(n_threads)
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        config = checkpoint.config
        if n_ctx is not None and not 1 <= n_ctx <= config.max_seq_len:
            raise ValueError(f"the context must be between 1 and {config.max_seq_len} tokens, not {n_ctx}")
        context = config.max_seq_len if n_ctx is None else n_ctx
        spec = checkpoint.tokenizer
        return Inspection(
            path=os.fspath(path),
            kind=checkpoint.kind,
            source=checkpoint.source,
            files={file: os.path.getsize(file) for file in checkpoint.files},
            config=config,
            quantization=checkpoint.model.quantization if isinstance(checkpoint, NativeCheckpoint) else None,
            tokenizer=None if spec is None else _tokenizer_facts(load_tokenizer(spec, config.vocab_size)),
            chat_template=checkpoint.chat_template,
            n_parameters=config.n_parameters,
            parameters=parameters_by_part(config),
            tensors=_tensors(checkpoint, exact, progress),
            context=context,
            kv_bytes={dtype: allocated_bytes(config, 1, context, dtype) for dtype in KV_DTYPES},
            available_bytes=available_bytes(),
            cpu_cache_bytes=last_cache_bytes(),
            n_threads=n_threads,
            needs=_needs(checkpoint, context, n_threads, measure),
        )


def cut_text(
    path: str | os.PathLike[str], text: str, *, tokenizer: str | os.PathLike[str] | None = None
) -> tuple[list[int], Tokenizer]:
    """The ids that a prompt of that text becomes, BOS included, and the tokenizer that made them.

    Raises CheckpointError for bad files, ValueError for a model without a tokenizer and text it cannot express.
    """
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        if checkpoint.tokenizer is None:
            raise ValueError("the model has no tokenizer; give the path of one (--tokenizer PATH)")
        made = load_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
        bos = made.with_bos([])
        return bos + made.encode(text), made


def _tokenizer_facts(tokenizer: Tokenizer) -> TokenizerFacts:
    spec = tokenizer.spec
    names = dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1]))
    own = load_tokenizer(spec).vocab_size
    return TokenizerFacts(spec.kind, own, spec.bos_id, spec.eos_ids, spec.add_bos, names)


def _tensors(checkpoint: Checkpoint, exact: bool, progress: Progress | None) -> list[TensorFacts]:
    found, done, total = [], 0, checkpoint.config.n_parameters
    for name, shape, tensor in checkpoint.tensors():
        with np.errstate(all="ignore"):  # numbers that are not finite are counted
            statistics = statistics_of(shape, tensor.read_rows, exact=exact)
        found.append(TensorFacts(name, shape, tensor.dtype, tensor.nbytes, statistics))
        done += prod(shape)
        if progress is not None:
            progress(done, total, name)
    return found


def _needs(checkpoint: Checkpoint, context: int, n_threads: int, measure: bool) -> list[MemoryPlan]:
    """Every way to run the model, as loading.py allows them: the file itself, or converted."""
    config = checkpoint.config
    stored = checkpoint.model.quantization if isinstance(checkpoint, NativeCheckpoint) else None
    ways = [stored or Quantization.of("float32")]
    if stored is None or not stored.group_size:
        ways += [Quantization.of("q8"), Quantization.of("q4")]
    fixed = step_seconds(config.n_layers, n_threads) if measure else 0.0
    rates: dict[int, float] = {}  # by the size that is read, which all large models share
    needs = []
    for way in ways:
        per_token = weight_bytes_per_token(config, way)
        size, rate = min(per_token, BUFFER_BYTES), None
        if measure:
            rate = rates[size] = rates.get(size) or max(ReadBandwidth(n_threads, size).measure())
        speeds = None
        if rate is not None:
            speeds = {dtype: _speed(config, per_token, context, dtype, rate, fixed) for dtype in KV_DTYPES}
        totals = {dtype: needed_bytes(config, way, context, dtype, n_threads) for dtype in KV_DTYPES}
        needs.append(MemoryPlan(way.type, way is stored, weight_bytes(config, way), per_token, rate, totals, speeds))
    return needs


def _speed(config: ModelConfig, per_token: int, context: int, kv_dtype: str, rate: float, fixed: float) -> Speed:
    def at(position: int) -> float:
        n_bytes = per_token + kv_cache_bytes(config, position, kv_dtype)
        return 1 / (n_bytes / rate / 1e9 + fixed)

    return Speed(at(1), at(context))
