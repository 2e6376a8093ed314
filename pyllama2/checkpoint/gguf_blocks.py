"""The block types of GGUF files: how the numbers of a block are computed from their codes and scales.

Types without K have 32 numbers in a block; d and m are float16, q is the code of a number:

    Q8_0   q * d              q signed, 8 bits
    Q4_0   (q - 8) * d        Q4_1   q * d + m      low nibbles: numbers 0 .. 15, high nibbles: 16 .. 31
    Q5_0   (q - 16) * d       Q5_1   q * d + m      nibbles as above, bit i of high_bits is the fifth bit of number i

Types with K have 256 numbers in a block, cut into groups with scales of their own:

    Q4_K   q * (d * scale) - dmin * min         8 groups of 32, 6-bit scales and mins
    Q5_K   as Q4_K                              bit j of high_bits[i] is the fifth bit of number i of group j
    Q6_K   (q - 32) * (d * scale)               16 groups of 16, 8-bit scales
    Q2_K   q * (d * scale) - dmin * min         16 groups of 16, 4-bit scales and mins
    Q3_K   (q - 4) * (d * (scale - 32))         16 groups of 16, 6-bit scales; high_bits as in Q5_K

Types with IQ4 look up a code of 4 bits in a table of 16 values:

    IQ4_NL   table[q] * d                       32 numbers, nibbles as in Q4_0
    IQ4_XS   table[q] * (d * (scale - 32))      8 groups of 32, 6-bit scales

Source: https://github.com/ggml-org/ggml (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers decoded at a time. Temporary arrays then fit into the CPU's cache, and take little memory.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class BlockType:
    """A type of blocks.

    Attributes:
        size: numbers in a block.
        layout: the numpy dtype of one stored block.
        decode: turns blocks, (n,) of layout, into n * size float32 numbers in any shape.
    """

    size: int
    layout: np.dtype[Any]
    decode: Callable[[NDArray[Any]], NDArray[np.float32]]


def dequantize(dtype: str, blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Decode blocks. Every number is computed in float32 and is bit for bit that of the reference implementation.

    Args:
        dtype: a key of BLOCK_TYPES.
        blocks: (n,) of the layout of that type.

    Returns:
        float32 (n * size,). A NaN or infinite scale gives NaN or infinity.
    """
    block = BLOCK_TYPES[dtype]
    numbers = np.empty(len(blocks) * block.size, np.float32)
    step = _CHUNK // block.size
    with np.errstate(invalid="ignore"):  # a NaN or infinite scale gives NaN, which the model's logits will show
        for start in range(0, len(blocks), step):
            part = block.decode(blocks[start : start + step])
            numbers[start * block.size :][: part.size] = part.ravel()
    return numbers


def _float(values: NDArray[Any]) -> NDArray[np.float32]:
    """Convert values of blocks or groups to float32, with a last axis for the numbers that share them."""
    return values.astype(np.float32)[..., None]


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., k) bytes -> (..., 2 k): the low nibbles, then the high ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def _q8_0(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = blocks["codes"] * _float(blocks["d"])
    return numbers


def _q4_0(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = (_nibbles(blocks["codes"]).view(np.int8) - np.int8(8)) * _float(blocks["d"])
    return numbers


def _q4_1(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = _nibbles(blocks["codes"]) * _float(blocks["d"])
    numbers += _float(blocks["m"])
    return numbers


def _five_bits(blocks: NDArray[Any]) -> NDArray[np.uint8]:
    """Codes (n, 32) of Q5_0 and Q5_1."""
    return _nibbles(blocks["codes"]) | (np.unpackbits(blocks["high_bits"], axis=-1, bitorder="little") << np.uint8(4))


def _q5_0(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = (_five_bits(blocks).view(np.int8) - np.int8(16)) * _float(blocks["d"])
    return numbers


def _q5_1(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = _five_bits(blocks) * _float(blocks["d"])
    numbers += _float(blocks["m"])
    return numbers


def _scaled_groups(blocks: NDArray[Any], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers of Q4_K and Q5_K from their codes, (n, 8, 32).

    Twelve bytes pack 8 scales and 8 mins of 6 bits each:

        bytes 0 .. 3     low six bits: scales 0 .. 3      upper two bits: those of scales 4 .. 7
        bytes 4 .. 7     low six bits: mins 0 .. 3        upper two bits: those of mins 4 .. 7
        bytes 8 .. 11    low nibble: the lower four bits of scales 4 .. 7      high nibble: those of mins 4 .. 7
    """
    scales, mins, lower = blocks["scales"][:, :4], blocks["scales"][:, 4:8], blocks["scales"][:, 8:]
    scales = np.concatenate([scales & 63, (lower & 15) | (scales >> 6 << 4)], axis=1)  # (n, 8)
    mins = np.concatenate([mins & 63, (lower >> 4) | (mins >> 6 << 4)], axis=1)
    numbers: NDArray[np.float32] = codes * (_float(blocks["d"]) * scales)[..., None]
    numbers -= (_float(blocks["dmin"]) * mins)[..., None]
    return numbers


def _q4_k(blocks: NDArray[Any]) -> NDArray[np.float32]:
    return _scaled_groups(blocks, _nibbles(blocks["codes"]).reshape(-1, 8, 32))


def _q5_k(blocks: NDArray[Any]) -> NDArray[np.float32]:
    high_bits = np.unpackbits(blocks["high_bits"][:, None, :], axis=1, bitorder="little")  # (n, 8, 32)
    return _scaled_groups(blocks, _nibbles(blocks["codes"]).reshape(-1, 8, 32) | (high_bits << np.uint8(4)))


def _q6_k(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Decode Q6_K. Each half of a block has 128 numbers: 64 bytes with the low nibbles, and 32 bytes with high bits.

    Byte i of the high bits has two bits each of numbers i, 32 + i, 64 + i and 96 + i.
    """
    lower = _nibbles(blocks["codes"]).reshape(-1, 2, 4, 32)
    upper = (blocks["high_bits"][:, :, None, :] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3  # (n, 2, 4, 32)
    codes = (lower | (upper << 4)).view(np.int8).reshape(-1, 16, 16) - np.int8(32)
    numbers: NDArray[np.float32] = codes * (_float(blocks["d"]) * blocks["scales"])[..., None]
    return numbers


def _two_bits(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (n, 16, 16) of two bits from (n, 2, 32) bytes. Byte i of a half has numbers i, 32 + i, 64 + i, 96 + i."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    parts: NDArray[np.uint8] = (codes[:, :, None, :] >> shifts) & np.uint8(3)
    return parts.reshape(-1, 16, 16)


def _q2_k(blocks: NDArray[Any]) -> NDArray[np.float32]:
    scales = blocks["scales"]  # (n, 16): the low nibble is the scale of a group, the high one its min
    steps: NDArray[np.float32] = _float(blocks["d"]) * (scales & 15)
    numbers = _two_bits(blocks["codes"]) * steps[..., None]
    numbers -= (_float(blocks["dmin"]) * (scales >> 4))[..., None]
    return numbers


def _q3_k(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Decode Q3_K. Twelve bytes pack 16 scales of 6 bits.

    Bytes 0 .. 7: the lower four bits of scales 0 .. 7 (low nibbles) and 8 .. 15 (high nibbles)
    Bytes 8 .. 11: the upper two bits of scales j, 4 + j, 8 + j and 12 + j, from the lowest bits up
    """
    lower = _nibbles(blocks["scales"][:, :8])
    upper = (blocks["scales"][:, None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    scales = (lower | (upper.reshape(-1, 16) << np.uint8(4))).view(np.int8) - np.int8(32)
    high_bits = np.unpackbits(blocks["high_bits"][:, None, :], axis=1, bitorder="little")  # (n, 8, 32)
    codes = _two_bits(blocks["codes"]) | (high_bits.reshape(-1, 16, 16) << np.uint8(2))
    steps: NDArray[np.float32] = _float(blocks["d"]) * scales
    return (codes.view(np.int8) - np.int8(4)) * steps[..., None]


_IQ4_TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _iq4_nl(blocks: NDArray[Any]) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = _IQ4_TABLE[_nibbles(blocks["codes"])] * _float(blocks["d"])
    return numbers


def _iq4_xs(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Decode IQ4_XS. Scale j has its lower four bits in nibble j of scales, and bits 2 j and 2 j + 1 of high_bits."""
    lower = np.stack([blocks["scales"] & 15, blocks["scales"] >> 4], axis=-1).reshape(-1, 8)
    upper = (blocks["high_bits"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = (lower | (upper.astype(np.uint8) << np.uint8(4))).view(np.int8) - np.int8(32)
    numbers: NDArray[np.float32] = _IQ4_TABLE[_nibbles(blocks["codes"])] * (_float(blocks["d"]) * scales)[..., None]
    return numbers


_D = ("d", "<f2")
_M = ("m", "<f2")
_K = [_D, ("dmin", "<f2"), ("scales", "u1", 12)]

BLOCK_TYPES = {
    "Q8_0": BlockType(32, np.dtype([_D, ("codes", "i1", 32)]), _q8_0),
    "Q4_0": BlockType(32, np.dtype([_D, ("codes", "u1", 16)]), _q4_0),
    "Q4_1": BlockType(32, np.dtype([_D, _M, ("codes", "u1", 16)]), _q4_1),
    "Q5_0": BlockType(32, np.dtype([_D, ("high_bits", "u1", 4), ("codes", "u1", 16)]), _q5_0),
    "Q5_1": BlockType(32, np.dtype([_D, _M, ("high_bits", "u1", 4), ("codes", "u1", 16)]), _q5_1),
    "Q4_K": BlockType(256, np.dtype([*_K, ("codes", "u1", (4, 32))]), _q4_k),
    "Q5_K": BlockType(256, np.dtype([*_K, ("high_bits", "u1", 32), ("codes", "u1", (4, 32))]), _q5_k),
    "Q6_K": BlockType(
        256, np.dtype([("codes", "u1", (2, 64)), ("high_bits", "u1", (2, 32)), ("scales", "i1", 16), _D]), _q6_k
    ),
    "Q2_K": BlockType(256, np.dtype([("scales", "u1", 16), ("codes", "u1", (2, 32)), _D, ("dmin", "<f2")]), _q2_k),
    "Q3_K": BlockType(
        256, np.dtype([("high_bits", "u1", 32), ("codes", "u1", (2, 32)), ("scales", "u1", 12), _D]), _q3_k
    ),
    "IQ4_NL": BlockType(32, np.dtype([_D, ("codes", "u1", 16)]), _iq4_nl),
    "IQ4_XS": BlockType(
        256, np.dtype([_D, ("high_bits", "<u2"), ("scales", "u1", 4), ("codes", "u1", (8, 16))]), _iq4_xs
    ),
}
