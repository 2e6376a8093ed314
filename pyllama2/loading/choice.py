"""quant="auto": the storage type for the weights of a checkpoint of another kind.

    numbers of most weights     taken as, the first of these for which there is memory
    F32, BF16                   float32 if it fits comfortably, else q8, else q4
    F16                         float32 if it fits comfortably, else float16, q8, q4
    Q8_0                        q8 in groups of 32, which is the same numbers, else q4
    Q4_0                        q4 in groups of 32, which is the same numbers
    GPTQ int4/128               q4 in groups of 128, which is the same numbers
    GPTQ uint4/64, AWQ uint4/64 q8 in groups of 64, which is the same numbers, if it fits comfortably, else q4
    5 bits and more             q8, else q4
    other types of 4 bits and   q8 if that takes at most 1 GiB, since another rounding to 4 bits loses much in a small
    fewer                       model, else q4

What takes at most half of the memory that is free fits comfortably. Otherwise a seventh of it is left for others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..backend.kv_cache import default_kv_dtype
from ..checkpoint.base import Checkpoint
from ..memory import available_bytes, needed_bytes
from ..storage.weights import Quantization

_COMFORTABLE, _TIGHT = 1 / 2, 6 / 7  # shares of the free memory
_SMALL = 1 << 30  # bytes, of a model that becomes larger than it was so as to lose nothing
_FLOATS = ("float32", "F32", "BF16", "F64", "float16", "F16")
_EXACT_IN_4_BITS = "Q4_0"


@dataclass(frozen=True)
class _Way:
    """A storage type, and when it is taken.

    Attributes:
        type: the storage type.
        share: of the free memory that the model may take.
        most: bytes that it may take whatever is free; None: any number.
    """

    type: Quantization
    share: float
    most: int | None = None

    def holds(self, needed: int, available: int | None) -> bool:
        """Whether a model that needs so many bytes may have the type; None: nobody knows what is available."""
        small = self.most is None or needed <= self.most
        return small and (available is None or needed <= self.share * available)


def main_type(checkpoint: Checkpoint) -> str:
    """The type of most bytes of the layers' matrices, as the checkpoint's format spells it."""
    n_bytes: Counter[str] = Counter()
    for name, shape in checkpoint.config.tensor_shapes().items():
        if len(shape) == 1 or not name.startswith("layers."):  # a small model may have a large embedding
            continue
        tensor = checkpoint.tensor(name)
        n_bytes[tensor.dtype] += tensor.nbytes
    return n_bytes.most_common(1)[0][0]


def choose_quantization(
    checkpoint: Checkpoint, n_ctx: int, kv_dtype: str | None, n_threads: int | None, *, quantized: bool = False
) -> Quantization:
    """Choose the storage type for a checkpoint that is not our file.

    Args:
        checkpoint: an open checkpoint.
        n_ctx: tokens that there must be memory for.
        kv_dtype: type of keys and values; None: the default of each storage type.
        n_threads: threads, which the memory needed depends on.
        quantized: take no float type, for GPUs, whose memory is not counted here.

    Returns:
        The first that fits, else the smallest.
    """
    available = available_bytes()
    ways = [way for way in _ways(main_type(checkpoint)) if way.type.group_size or not quantized]
    for way in ways:
        dtype = kv_dtype or default_kv_dtype(way.type)
        if way.holds(needed_bytes(checkpoint.config, way.type, n_ctx, dtype, n_threads), available):
            return way.type
    return ways[-1].type


def keeps_numbers(checkpoint: Checkpoint, quantization: Quantization) -> bool:
    """Whether most matrices of a checkpoint are quantized, and have the same numbers in a storage type."""
    if checkpoint.changed:
        return False
    stored = main_type(checkpoint)
    if stored in ("Q8_0", _EXACT_IN_4_BITS):
        return quantization == Quantization.of("q8" if stored == "Q8_0" else "q4", 32)
    kind, _, size = stored.partition("/")
    if not size or not kind.endswith("int4"):
        return False
    exact = ("q8", "q4") if kind.endswith(" int4") else ("q8",)
    return quantization.type in exact and int(size) % quantization.group_size == 0


def _ways(stored: str) -> list[_Way]:
    """The storage types for a type of a checkpoint, best first."""
    q8, q4 = Quantization.of("q8"), Quantization.of("q4")
    fine_q8, fine_q4 = Quantization.of("q8", 32), Quantization.of("q4", 32)
    in_4_bits = [_Way(fine_q4, _TIGHT), _Way(q4, 1)]
    if stored in _FLOATS:
        half = [_Way(Quantization.of("float16"), _TIGHT)] if stored == "F16" else []
        return [_Way(Quantization.of("float32"), _COMFORTABLE), *half, _Way(q8, _TIGHT), _Way(q4, 1)]
    if stored == _EXACT_IN_4_BITS:
        return [_Way(fine_q4, 1)]
    kind, _, size = stored.partition("/")
    if size and kind.endswith(" int4"):
        return [_Way(Quantization.of("q4", int(size)), 1)]
    if size and kind.endswith(" uint4"):
        return [_Way(Quantization.of("q8", int(size)), _COMFORTABLE), *in_4_bits]
    if stored.startswith(("Q5", "Q6", "Q8", "int8")):
        return [_Way(fine_q8, _TIGHT), *in_4_bits]
    return [_Way(fine_q8, _COMFORTABLE, _SMALL), *in_4_bits]
