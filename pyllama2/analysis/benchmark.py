"""How fast a model runs on a backend: tokens/s of a prompt and of decoding, beside the bandwidth of the memory.

Decoding a token reads every weight once, and the keys and values of all tokens before it. Tokens/s times these bytes
is the read rate, which the memory bandwidth limits. The bandwidth is measured between the repeats, because on a shared
machine it changes from minute to minute.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Backend, Batch
from ..backend.kv_cache import KVCache
from ..errors import NumericalError
from ..memory import weight_bytes_per_token
from ..shown import shown
from ..storage.model_file import StoredModel
from .bandwidth import ReadBandwidth, last_cache_bytes


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of repeated measurements.

    Attributes:
        median: the median.
        min: the lowest.
        max: the highest.
    """

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize measurements. There must be at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 0 if self.median >= 1000 else 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.min:.{digits}f} to {self.max:.{digits}f})"


def fill_cache(backend: Backend, cache: KVCache, n_tokens: int, row: int = 0) -> None:
    """Fill a row of the cache without computing all of it.

    A few tokens are computed, and their keys and values are repeated.

    Args:
        backend: the backend that computes.
        cache: the cache.
        n_tokens: the number of positions to fill, from 0 on.
        row: the row of the cache.
    """
    if n_tokens == 0:
        return
    sample = min(n_tokens, 16)
    tokens = random_tokens(backend.config.vocab_size, sample)
    backend.forward(Batch.of_sequence(tokens, row=row, outputs="none"), cache)
    arrays = {}
    for name, array in cache.save_row(row, sample).items():
        indices = np.arange(n_tokens) % sample
        arrays[name] = np.take(array, indices, axis=2)  # positions
    cache.load_row(row, arrays)


def random_tokens(vocab_size: int, n: int) -> list[int]:
    """Draw n token ids from a fixed seed: the same ones each time."""
    return [int(token) for token in np.random.default_rng(1).integers(0, vocab_size, n)]


@dataclass(frozen=True)
class Run:
    """One repeat of the measurement.

    Attributes:
        prompt: tokens/s of processing the prompt.
        decode: tokens/s of decoding.
        logits: the logits_hash() of all logits.
    """

    prompt: float
    decode: float
    logits: str


def measure(backend: Backend, cache: KVCache, n_prompt: int, n_new: int, start: int) -> Run:
    """Process a prompt, then decode some tokens, and measure both.

    Args:
        backend: the backend that computes.
        cache: a cache whose row 0 is filled up to start. Its first n_prompt positions are overwritten, with the same
            values each time.
        n_prompt: tokens of the prompt, which begins at position 0.
        n_new: tokens to decode.
        start: position of the first decoded token.

    Raises:
        NumericalError: a logit is not finite.
    """
    tokens = random_tokens(backend.config.vocab_size, max(n_prompt, n_new))
    started = time.perf_counter()
    logits = [backend.forward(Batch.of_sequence(tokens[:n_prompt]), cache)]
    prompt_s = time.perf_counter() - started
    steps = [Batch.of_sequence([token], start=start + i) for i, token in enumerate(tokens[:n_new])]
    started = time.perf_counter()
    logits += [backend.forward(step, cache) for step in steps]
    decode_s = time.perf_counter() - started
    return Run(n_prompt / prompt_s, n_new / decode_s, logits_hash(logits))


def logits_hash(logits: Sequence[NDArray[np.float32]]) -> str:
    """Hash the bits of logits, float32 arrays of any shape.

    Returns:
        16 hexadecimal digits, the beginning of a SHA-256.

    Raises:
        NumericalError: a logit is not finite.
    """
    digest = hashlib.sha256()
    for array in logits:
        if not np.isfinite(array).all():
            raise NumericalError("the model computed logits that are not finite")
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Report:
    """The speed of one model on one device. Rates are in GB/s (10^9 bytes).

    Attributes:
        model: its file's name.
        n_parameters: the number of its weights.
        quantization: how the weights are stored: float32, float16, q8 or q4.
        group_size: weights that share a scale; 0 without quantization.
        device: "cpu" or "cuda".
        instruction_set: of the CPU kernels; None on other devices.
        n_threads: of the CPU backend; None on other devices.
        kv_dtype: type of keys and values.
        prompt_tokens: length of the prompt.
        new_tokens: decoded tokens of a repeat.
        context: position of the first decoded token.
        repeat: the number of repeats.
        prompt: tokens/s of processing the prompt.
        decode: tokens/s of decoding.
        weight_bytes: bytes of weights that decoding a token reads.
        kv_cache_bytes: bytes of keys and values that decoding a token reads, on average.
        read: the rate at which decoding reads weights, keys and values.
        bandwidth: the rate at which the same threads read a large buffer; None on other devices than the CPU.
        share: read as a share of bandwidth; None without bandwidth.
        in_cache: whether the weights fit in the processor's last cache; None if its size or bandwidth is unknown.
        logits: the logits_hash() of a repeat.
    """

    model: str
    n_parameters: int
    quantization: str
    group_size: int
    device: str
    instruction_set: str | None
    n_threads: int | None
    kv_dtype: str | None
    prompt_tokens: int
    new_tokens: int
    context: int
    repeat: int
    prompt: Spread
    decode: Spread
    weight_bytes: int
    kv_cache_bytes: int
    read: float
    bandwidth: Spread | None
    share: float | None
    in_cache: bool | None
    logits: str

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def __str__(self) -> str:
        groups = f" (groups of {self.group_size})" if self.group_size else ""
        facts = [
            self.device,
            self.instruction_set,
            self.n_threads and f"{self.n_threads} thread{'s' * (self.n_threads > 1)}",
        ]
        facts.append(self.kv_dtype and f"{self.kv_dtype} keys and values")
        lines = [
            f"model      {shown(self.model)}: {self.n_parameters / 1e6:.1f}M parameters, {self.quantization}{groups}",
            f"device     {', '.join(str(fact) for fact in facts if fact)}",
            f"prompt     {self.prompt} tokens/s, {self.prompt_tokens} tokens",
            f"decode     {self.decode} tokens/s, {self.new_tokens} tokens from position {self.context} on",
            f"read       {self.read:.2f} GB/s; for a token {self.weight_bytes / 1e6:.2f} MB of weights "
            f"and {self.kv_cache_bytes / 1e6:.2f} MB of keys and values",
        ]
        if self.bandwidth is not None and self.share is not None:
            note = "; the weights fit in the processor's cache, so that over 100% are possible" if self.in_cache else ""
            lines.append(f"bandwidth  {self.bandwidth} GB/s, of which decoding reads {self.share:.0%}{note}")
        return "\n".join([*lines, f"logits     {self.logits}"])


def run_benchmark(
    name: str, model: StoredModel, backend: Backend, n_prompt: int, n_new: int, start: int, repeat: int
) -> Report:
    """Measure how fast a model runs.

    Args:
        name: the model's name in the report.
        model: the model.
        backend: the backend that runs it.
        n_prompt: tokens of the prompt.
        n_new: tokens to decode.
        start: position of the first decoded token.
        repeat: the number of repeats.

    Raises:
        NumericalError: a logit is not finite, or two repeats give different logits.
    """
    facts = backend.describe()
    memory = ReadBandwidth(facts.n_threads) if facts.n_threads else None  # of the CPU
    length = max(n_prompt, start + n_new)
    with closing(backend.new_cache(1, length)) as cache:
        measure(backend, cache, min(n_prompt, 64), min(n_new, 2), 0)  # warm-up: pages in weights, wakes threads
        fill_cache(backend, cache, start)
        position_bytes = sum(array.nbytes for array in cache.save_row(0, 1).values())
        kv_cache_bytes = round(position_bytes * (start + (n_new + 1) / 2))
        runs, rates = [], [] if memory is None else memory.measure()
        for _ in range(repeat):
            runs.append(measure(backend, cache, n_prompt, n_new, start))
            rates += [] if memory is None else memory.measure()
    hashes = {run.logits for run in runs}
    if len(hashes) > 1:
        raise NumericalError(f"the logits of {repeat} equal runs differ: {', '.join(sorted(hashes))}")
    weight_bytes = weight_bytes_per_token(model.config, model.quantization)
    decode = Spread.of([run.decode for run in runs])
    read = decode.median * (weight_bytes + kv_cache_bytes) / 1e9
    bandwidth = Spread.of(rates) if rates else None
    cache_size = last_cache_bytes()
    return Report(
        model=name,
        n_parameters=model.config.n_parameters,
        quantization=model.quantization.type,
        group_size=model.quantization.group_size,
        device=facts.device,
        instruction_set=facts.isa,
        n_threads=facts.n_threads,
        kv_dtype=facts.kv_dtype,
        prompt_tokens=n_prompt,
        new_tokens=n_new,
        context=start,
        repeat=repeat,
        prompt=Spread.of([run.prompt for run in runs]),
        decode=decode,
        weight_bytes=weight_bytes,
        kv_cache_bytes=kv_cache_bytes,
        read=read,
        bandwidth=bandwidth,
        share=None if bandwidth is None else read / bandwidth.median,
        in_cache=None if cache_size is None or bandwidth is None else weight_bytes < cache_size,
        logits=hashes.pop(),
    )
