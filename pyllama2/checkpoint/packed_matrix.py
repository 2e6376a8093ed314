"""Matrices of 4 bits as GPTQ and AWQ checkpoints store them: instead of X.weight there are

    X.qweight  int32    eight codes in each number
    X.qzeros   int32    (groups, rows / 8) eight zeros in each number
    X.scales   float16  (groups, rows)
    X.g_idx    int32    (columns,) the group of each column; GPTQ only, and without desc_act not always

    weight[row, column] = scale[group, row] * (code[column, row] - zero[group, row])

Bits 4 i to 4 i + 3 of a number have, of the eight, number i, or AWQ_ORDER[i]:

    GPTQ   qweight (columns / 8, rows): columns, in order     qzeros: rows, in order; zero - 1 in its first format
    AWQ    qweight (columns, rows / 8): rows, in AWQ_ORDER    qzeros: rows, in AWQ_ORDER

Unless columns of a group lie apart, all of this is exact in q8. It is exact in q4 where every zero is 8.

Sources: https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/casper-hansen/AutoAWQ (their linear layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..shown import shown_value
from ..storage.mapped import MappedFile
from ..storage.tensor_info import TensorInfo
from ..storage.weights import GROUP_SIZES, StorageType, all_finite
from .base import LazyTensor
from .quantization_config import Packing

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
_CODES = 8  # in a number
_SYMMETRIC_ZERO = 8
_ROWS = 128  # that are decoded at a time

Place = tuple[MappedFile, TensorInfo]


@dataclass(frozen=True)
class PackedMatrix:
    """One matrix.

    Attributes:
        packing: what the checkpoint says of all its matrices.
        parts: place of each of PARTS that there is.
        shape: (rows, columns) of the matrix.
        group_size: neighbouring columns of a group. 0: the columns of a group lie apart.
    """

    packing: Packing
    parts: dict[str, Place]
    shape: tuple[int, int]
    group_size: int

    @classmethod
    def open(cls, name: str, parts: dict[str, Place], packing: Packing) -> PackedMatrix:
        """Check the parts of a matrix.

        Args:
            name: of the matrix, without .weight.
            parts: place of each of PARTS that there is.
            packing: what the checkpoint says of all its matrices.

        Raises:
            CheckpointError: a part is missing, or not of the type and shape that go with the others.
        """
        needs_groups = packing.method == "GPTQ" and packing.desc_act and packing.group_size
        for part in PARTS if needs_groups else PARTS[:3]:
            if part not in parts:
                path = next(iter(parts.values()))[0].path
                raise CheckpointError(f"{path}: tensor {shown_value(f'{name}.{part}')} is missing")
        file, info = parts["qweight"]
        rows, columns = _shape(info, packing)
        if not rows or not columns or rows % _CODES or columns % _CODES:
            raise CheckpointError(
                f"{file.path}: tensor {shown_value(f'{name}.qweight')} is {info.dtype} {info.shape}, which is no "
                f"matrix of {_CODES} codes in a number"
            )
        size = packing.group_size or columns
        n_groups = -(-columns // max(size, 1))
        expected = {
            "qweight": ("I32", (columns // _CODES, rows) if packing.method == "GPTQ" else (columns, rows // _CODES)),
            "qzeros": ("I32", (n_groups, rows // _CODES)),
            "scales": ("F16", (n_groups, rows)),
            "g_idx": ("I32", (columns,)),
        }
        for part in (part for part in PARTS if part in parts):
            file, info = parts[part]
            if (info.dtype, info.shape) != expected[part]:
                raise CheckpointError(
                    f"{file.path}: tensor {shown_value(f'{name}.{part}')} is {info.dtype} {info.shape} and should be "
                    f"{expected[part][0]} {expected[part][1]}, in groups of {size}"
                )
        in_order = np.arange(columns, dtype=np.int32) // size
        groups = _array(parts["g_idx"], np.int32) if "g_idx" in parts else in_order
        if groups.min() < 0 or groups.max() >= n_groups:
            raise CheckpointError(
                f"{parts['g_idx'][0].path}: tensor {shown_value(f'{name}.g_idx')} has a number that is no group"
            )
        return cls(packing, parts, (rows, columns), size if np.array_equal(groups, in_order) else 0)

    def lazy(self) -> LazyTensor:
        """Return a LazyTensor that reads the matrix, with its rows in the order in which they are stored."""
        size = next((size for size in GROUP_SIZES[::-1] if self.group_size and self.group_size % size == 0), 0)
        kind = "int4" if size and self._is_symmetric() else "uint4"
        return LazyTensor(
            f"{self.packing.method} {kind}{f'/{size}' if size else ''}",
            sum(info.nbytes for _, info in self.parts.values()),
            lambda: self._read(0, self.shape[0]),
            self._read,
            self._release,
            self._codes,
        )

    def _release(self) -> None:
        for file, info in self.parts.values():
            file.release(info.offset, info.nbytes)

    def _groups(self) -> NDArray[np.int32]:
        """The group of each column."""
        if self.group_size or "g_idx" not in self.parts:
            return np.arange(self.shape[1], dtype=np.int32) // np.int32(self.group_size)
        return _array(self.parts["g_idx"], np.int32)

    def _zeros(self, start: int, stop: int) -> NDArray[np.int8]:
        """Of rows start .. stop - 1: (groups, stop - start)."""
        first = start // _CODES
        packed = _array(self.parts["qzeros"], np.uint32)[:, first : -(-stop // _CODES)]
        zeros = np.empty((len(packed), packed.shape[1] * _CODES), np.uint8)
        _unpack(packed, range(_CODES) if self.packing.method == "GPTQ" else AWQ_ORDER, zeros)
        zeros = zeros[:, start - first * _CODES : stop - first * _CODES]
        return ((zeros + np.uint8(self.packing.zero_offset)) & np.uint8(15)).view(np.int8)

    def _scales(self) -> NDArray[np.float16]:
        """(groups, rows)."""
        return _array(self.parts["scales"], np.float16)

    def _is_symmetric(self) -> bool:
        """Whether all zeros are 8, so that q4 has the same numbers."""
        return bool((self._zeros(0, self.shape[0]) == _SYMMETRIC_ZERO).all())

    def _signed(self, start: int, stop: int) -> NDArray[np.int8]:
        """Codes less their zeros, of rows start .. stop - 1: (stop - start, columns)."""
        packed = _array(self.parts["qweight"], np.uint32)
        if self.packing.method == "GPTQ":
            codes = np.empty((self.shape[1], stop - start), np.uint8).T  # in the order of packed, which is faster
            _unpack(packed[:, start:stop].T, range(_CODES), codes)
            codes = np.ascontiguousarray(codes)
        else:
            first = start // _CODES * _CODES
            codes = np.empty((-(-(stop - first) // _CODES) * _CODES, self.shape[1]), np.uint8)
            _unpack(packed[:, first // _CODES : -(-stop // _CODES)], AWQ_ORDER, codes.T)
            codes = codes[start - first : stop - first]
        signed: NDArray[np.int8] = codes.view(np.int8) - self._zeros(start, stop).T[:, self._groups()]
        return signed

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        numbers = np.empty((stop - start, self.shape[1]), np.float32)
        for row in range(start, stop, _ROWS):
            end = min(stop, row + _ROWS)
            scales = self._scales()[:, row:end].T.astype(np.float32)[:, self._groups()]
            with np.errstate(invalid="ignore"):  # the caller checks that the numbers are finite
                np.multiply(self._signed(row, end), scales, out=numbers[row - start : end - start])
        return numbers

    def _codes(self, kind: StorageType) -> tuple[NDArray[np.int8], NDArray[np.float16]] | None:
        """Codes and scales, as Weight.of_codes() takes them, if the storage type has the same numbers."""
        size = kind.group_size
        if not self.group_size or not size or (self.group_size % size and self.group_size < self.shape[1]):
            return None
        scales = np.ascontiguousarray(self._scales().T[:, self._groups()[::size]])
        if (kind.type == "q4" and not self._is_symmetric()) or not all_finite(scales):
            return None
        rows, columns = self.shape
        n_groups = -(-columns // size)
        codes = np.zeros((rows, n_groups * size), np.int8)
        for row in range(0, rows, _ROWS):
            codes[row : row + _ROWS, :columns] = self._signed(row, min(rows, row + _ROWS))
        return codes, scales


def _unpack(packed: NDArray[np.uint32], order: Sequence[int], out: NDArray[np.uint8]) -> None:
    """Take packed (n, m) apart into out (n, 8 m): of the eight, bits 4 i to 4 i + 3 have number order[i]."""
    for i, place in enumerate(order):
        out[:, place::_CODES] = (packed >> np.uint32(4 * i)) & np.uint32(15)


def _shape(info: TensorInfo, packing: Packing) -> tuple[int, int]:
    """Rows and columns of the matrix whose codes are in a tensor; (0, 0) for none."""
    if len(info.shape) != 2:
        return 0, 0
    first, second = info.shape
    return (second, first * _CODES) if packing.method == "GPTQ" else (second * _CODES, first)


def _array(place: Place, dtype: Any) -> NDArray[Any]:
    file, info = place
    return file.array(info.offset, dtype, info.shape)
