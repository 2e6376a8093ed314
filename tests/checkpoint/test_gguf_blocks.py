"""Dequantization of GGUF's block types against the gguf package, to the bit."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as TensorType
from numpy.typing import NDArray

from pyllama2.checkpoint.gguf_blocks import BLOCK_TYPES, dequantize

CAN_QUANTIZE = [kind for kind in BLOCK_TYPES if kind.endswith(("_0", "_1"))]


def reference(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw.reshape(1, -1), TensorType[kind]).ravel()


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_sizes_are_those_of_the_format(kind: str) -> None:
    block = BLOCK_TYPES[kind]
    assert (block.size, block.layout.itemsize) == gguf.GGML_QUANT_SIZES[TensorType[kind]]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_random_bytes(kind: str) -> None:
    """All codes and scales, NaN and infinite ones too; as many blocks as several chunks and a rest have."""
    layout = BLOCK_TYPES[kind].layout
    raw = np.random.default_rng(7).integers(0, 256, 5003 * layout.itemsize, np.uint8)
    numbers = dequantize(kind, raw.view(layout))
    assert numbers.dtype == np.float32
    expected = reference(raw, kind)
    assert np.isnan(expected).any() and np.isfinite(expected).any()
    np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize("kind", CAN_QUANTIZE)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_quantized_numbers_come_back(kind: str, scale: float) -> None:
    original = (np.random.default_rng(3).standard_normal((5, 96)) * scale).astype(np.float32)
    original[0, :32] = 0
    raw = gguf.quants.quantize(original, TensorType[kind])
    numbers = dequantize(kind, raw.reshape(-1).view(BLOCK_TYPES[kind].layout))
    np.testing.assert_array_equal(numbers, reference(raw, kind))
    bits = int(kind[1])
    largest = np.abs(original).reshape(-1, 32).max(1)
    error = np.abs(numbers.reshape(-1, 32) - original.reshape(-1, 32)).max(1)
    assert (error <= largest * 2.2 / 2**bits + 1e-7).all()


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_each_bit_has_its_place(kind: str) -> None:
    """One set bit among zero codes, with scales of one, changes what the reference says it changes."""
    layout = BLOCK_TYPES[kind].layout
    blocks = np.zeros(layout.itemsize * 8, layout)
    for name in layout.names:
        blocks[name] = 1
    raw = blocks.view(np.uint8).reshape(-1, layout.itemsize)
    bits = np.arange(len(raw))
    raw[bits, bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    np.testing.assert_array_equal(dequantize(kind, blocks), reference(raw, kind))


def test_no_blocks() -> None:
    assert dequantize("Q4_K", np.empty(0, BLOCK_TYPES["Q4_K"].layout)).shape == (0,)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_memory_is_that_of_the_result(kind: str) -> None:
    block = BLOCK_TYPES[kind]
    blocks = np.zeros((4 << 20) // block.size, block.layout)
    tracemalloc.start()
    numbers = dequantize(kind, blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers.nbytes <= peak < numbers.nbytes + (2 << 20)
