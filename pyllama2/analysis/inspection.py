"""What is in a model of any kind, and what it needs to run.

    inspect_model   a path -> Inspection: config, tensors with statistics, memory, expected speed
    tokenize_text   a path and a text -> its tokens

Expected speed: decoding a token reads all weights (of an embedding only one row) and the keys and values of the
tokens before it. Each layer also takes some time that does not depend on its size:

    seconds per token = bytes / bandwidth + time of a step with next to no weights        (bandwidth.py)

This is an upper bound. The processor's arithmetic and sampling are left out.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from math import prod

import numpy as np

from ..backend.kv_cache import KV_DTYPES
from ..checkpoint import open_checkpoint
from ..checkpoint.base import Checkpoint
from ..checkpoint.own_file import OwnCheckpoint
from ..config import ModelConfig
from ..convert import Progress
from ..memory import available_bytes, kv_cache_bytes, needed_bytes, weight_bytes, weight_bytes_per_token
from ..model_names import find_model
from ..storage.calibration_record import CalibrationRecord
from ..storage.weights import Quantization
from ..tokenizer import load_tokenizer
from ..tokenizer.base import Tokenizer
from .bandwidth import BUFFER_BYTES, ReadBandwidth, last_cache_bytes, step_seconds
from .tensor_statistics import Statistics, statistics_of

# The part of the model that a tensor belongs to, by the last but one component of its name.
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
    """Count the weights of each part of a model. With tied embeddings, "output" has 0."""
    parts = dict.fromkeys(PARTS.values(), 0)
    for name, shape in config.tensor_shapes().items():
        parts[PARTS[name.split(".")[-2]]] += prod(shape)
    return parts


@dataclass(frozen=True)
class TensorFacts:
    """One tensor as it is stored.

    Attributes:
        name: as in config.tensor_shapes().
        shape: (outputs, inputs), or (dim,) for norms.
        type: the storage type as the format spells it: "BF16", "Q4_K", or ours: float32, float16, q8, q4. In one of our
            files of mixed types with the group size: "q4/32".
        nbytes: bytes in the file, scales included.
        statistics: of the numbers that are stored, or that quantized weights stand for.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    statistics: Statistics

    @property
    def n_parameters(self) -> int:
        """The number of weights in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer of a model.

    Attributes:
        kind: "sentencepiece" or "bpe".
        n_tokens: its vocabulary. If it is smaller than the model's vocab_size, the ids beyond have no token.
        bos_id: the token that begins a text; None: there is none.
        eos_ids: tokens that end a text.
        add_bos: whether a prompt begins with BOS.
        special_tokens: their ids by name, in the order of the ids.
    """

    kind: str
    n_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    special_tokens: dict[str, int]


@dataclass(frozen=True)
class Speed:
    """Upper bounds of decoding speed, in tokens/s.

    Attributes:
        at_start: at the first position.
        at_end: with a full context.
    """

    at_start: float
    at_end: float


@dataclass(frozen=True)
class MemoryPlan:
    """What one way to run the model takes.

    Attributes:
        quant: how the weights are stored in memory: float32, float16, q8 or q4.
        as_stored: whether the file is used in place; otherwise it is converted when it is opened.
        weight_bytes: bytes of all weights.
        bytes_per_token: bytes of the weights that decoding a token reads.
        bandwidth: GB/s (10^9 bytes) of reading that many bytes, but at most 512 MiB; None: not measured.
        total_bytes: by type of the keys and values: bytes of weights, keys and values of the context, working memory.
        speed: by type of the keys and values; None: not measured.
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
    """The result of inspect_model().

    Attributes:
        path: the model file or checkpoint.
        kind: "pyllama2", "meta", "huggingface", "gguf" or "llama2.c".
        source: where the model comes from, as the checkpoint says.
        files: sizes in bytes of the files that were read, by path.
        config: the model's dimensions.
        quantization: of one of our files, else None.
        calibration: how the weights of one of our files were chosen; None: without a text.
        tokenizer: None if there is none.
        chat_template: Jinja source; None if there is none.
        n_parameters: the number of weights.
        parameters: the number of weights by part of the model.
        tensors: all tensors, in the order of the checkpoint.
        context: tokens that kv_bytes, needs and speeds are for.
        kv_bytes: bytes of the keys and values of the context, by their type.
        available_bytes: memory that is available now; None if the system does not say.
        cpu_cache_bytes: size of the processor's last cache; None if the system does not say.
        n_threads: threads of the measurements.
        needs: one plan for each way to run the model.
    """

    path: str
    kind: str
    source: str
    files: dict[str, int]
    config: ModelConfig
    quantization: Quantization | None
    calibration: CalibrationRecord | None
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
    """Inspect a model file or checkpoint.

    Nothing is converted, and only a part of a tensor is in memory at a time.

    Args:
        path: a model file, any checkpoint that export() reads, or the name of a model, as Llama() takes it.
        tokenizer: path of a tokenizer, for checkpoints without one.
        n_ctx: tokens of a sequence; None: what the model was made for.
        n_threads: threads of the measurements; None: as Llama() chooses.
        exact: use every number of every tensor for the statistics; otherwise large tensors are sampled.
        measure: measure the memory bandwidth, to estimate the speed.
        progress: called as progress(parameters done, parameters in all, name of the tensor).

    Raises:
        CheckpointError: a file cannot be read.
        ValueError: an argument is out of range.
    """
    from .._cpu.cache import allocated_bytes
    from .._cpu.threads import team_of

    n_threads = team_of(n_threads)
    path = find_model(path, needs_tokenizer=tokenizer is None)
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        config = checkpoint.config
        if n_ctx is not None and not 1 <= n_ctx <= config.max_seq_len:
            raise ValueError(f"the context must be between 1 and {config.max_seq_len} tokens, not {n_ctx}")
        n_ctx = config.max_seq_len if n_ctx is None else n_ctx
        spec = checkpoint.tokenizer
        own = checkpoint.model if isinstance(checkpoint, OwnCheckpoint) else None
        return Inspection(
            path=path,
            kind=checkpoint.kind,
            source=checkpoint.source,
            files={file: os.path.getsize(file) for file in checkpoint.files},
            config=config,
            quantization=own.quantization if own is not None else None,
            calibration=own.calibration if own is not None else None,
            tokenizer=None if spec is None else _tokenizer_facts(load_tokenizer(spec, config.vocab_size)),
            chat_template=checkpoint.chat_template,
            n_parameters=config.n_parameters,
            parameters=parameters_by_part(config),
            tensors=_tensors(checkpoint, exact, progress),
            context=n_ctx,
            kv_bytes={dtype: allocated_bytes(config, 1, n_ctx, dtype) for dtype in KV_DTYPES},
            available_bytes=available_bytes(),
            cpu_cache_bytes=last_cache_bytes(),
            n_threads=n_threads,
            needs=_needs(checkpoint, n_ctx, n_threads, measure),
        )


def tokenize_text(
    path: str | os.PathLike[str], text: str, *, tokenizer: str | os.PathLike[str] | None = None
) -> tuple[list[int], Tokenizer]:
    """Tokenize a text as a prompt.

    Args:
        path: a model file, any checkpoint that export() reads, or the name of a model, as Llama() takes it.
        text: the prompt.
        tokenizer: path of a tokenizer, for checkpoints without one.

    Returns:
        The token ids, BOS included, and the tokenizer.

    Raises:
        CheckpointError: a file cannot be read.
        ValueError: the model has no tokenizer, or the tokenizer cannot express the text.
    """
    path = find_model(path, needs_tokenizer=tokenizer is None)
    with closing(open_checkpoint(path, tokenizer=tokenizer)) as checkpoint:
        if checkpoint.tokenizer is None:
            raise ValueError("the model has no tokenizer; give the path of one (--tokenizer PATH)")
        loaded = load_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
        return loaded.with_bos(loaded.encode(text)), loaded


def _tokenizer_facts(tokenizer: Tokenizer) -> TokenizerFacts:
    spec = tokenizer.spec
    names = dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1]))
    n_tokens = load_tokenizer(spec).vocab_size  # its own, not padded to the model's
    return TokenizerFacts(spec.kind, n_tokens, spec.bos_id, spec.eos_ids, spec.add_bos, names)


def _tensors(checkpoint: Checkpoint, exact: bool, progress: Progress | None) -> list[TensorFacts]:
    tensors, done, total = [], 0, checkpoint.config.n_parameters
    quantization = checkpoint.model.quantization if isinstance(checkpoint, OwnCheckpoint) else None
    mixed = quantization if quantization is not None and quantization.layers else None
    for name, shape, tensor in checkpoint.tensors():
        with np.errstate(all="ignore"):  # numbers that are not finite are counted
            statistics = statistics_of(shape, tensor.read_rows, exact=exact)
        stored_type = tensor.dtype if mixed is None else str(mixed.storage_of(name, checkpoint.config))
        tensors.append(TensorFacts(name, shape, stored_type, tensor.nbytes, statistics))
        done += prod(shape)
        if progress is not None:
            progress(done, total, name)
    return tensors


def _needs(checkpoint: Checkpoint, n_ctx: int, n_threads: int, measure: bool) -> list[MemoryPlan]:
    """Plan every way to run the model that load_model() allows: as stored, or converted."""
    config = checkpoint.config
    stored = checkpoint.model.quantization if isinstance(checkpoint, OwnCheckpoint) else None
    ways = [stored or Quantization.of("float32")]
    if stored is None or not stored.group_size:
        ways += [Quantization.of("q8"), Quantization.of("q4")]
    fixed = step_seconds(config.n_layers, n_threads) if measure else 0.0
    rates: dict[int, float] = {}  # by size of the buffer, which is the same for all large models
    needs = []
    for way in ways:
        per_token = weight_bytes_per_token(config, way)
        size, rate = min(per_token, BUFFER_BYTES), None
        if measure:
            rate = rates[size] = rates.get(size) or max(ReadBandwidth(n_threads, size).measure())
        speeds = None
        if rate is not None:
            speeds = {dtype: _speed(config, per_token, n_ctx, dtype, rate, fixed) for dtype in KV_DTYPES}
        totals = {dtype: needed_bytes(config, way, n_ctx, dtype, n_threads) for dtype in KV_DTYPES}
        needs.append(MemoryPlan(way.type, way is stored, weight_bytes(config, way), per_token, rate, totals, speeds))
    return needs


def _speed(config: ModelConfig, per_token: int, n_ctx: int, kv_dtype: str, rate: float, fixed: float) -> Speed:
    def at(position: int) -> float:
        n_bytes = per_token + kv_cache_bytes(config, position, kv_dtype)
        return 1 / (n_bytes / rate / 1e9 + fixed)

    return Speed(at(1), at(n_ctx))
