"""Quantizers: from a float matrix to the codes and scales of weights.py. Threads share the blocks of 8 rows."""

from cython.parallel cimport prange
from libc.math cimport isnan
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

import numpy as np

from ..storage.weights import GROUP_SIZES, packed_shapes
from .kernels cimport MAX_GROUP, QUAD, QUANTIZER_COLUMNS, ROW_BLOCK, Kernels, float_to_half
from .dispatch cimport find_kernels


cdef struct Source:
    const void *data      # (rows, columns)
    bint half             # float16, else float32
    int64_t rows
    int64_t columns


def quantize_matrix(matrix, str type, int group_size, int n_threads, str isa="", importance=None):
    """Quantize a matrix.

    Args:
        matrix: (rows, columns) float32 or float16.
        type: "q8" or "q4".
        group_size: numbers of a row that share a scale: 32, 64 or 128.
        n_threads: threads to use.
        isa: the instruction set. "": the best one.
        importance: for q4: of each input, float32 (columns,), above 0. None: it is not known.

    Returns:
        Codes and scales, with the shapes of weights.packed_shapes().

    Raises:
        ValueError: an argument is out of range, or a number is not finite or too large for a float16 scale.
    """
    if type not in ("q8", "q4") or group_size not in GROUP_SIZES:
        raise ValueError(f"cannot quantize to {type!r} with groups of {group_size}")
    if matrix.ndim != 2 or matrix.dtype not in (np.float32, np.float16):
        raise ValueError("only a float32 or float16 matrix can be quantized")
    matrix = np.ascontiguousarray(matrix)
    cdef const Kernels *kernels = find_kernels(isa)
    codes_shape, scales_shape = packed_shapes(type, matrix.shape, group_size)
    codes = np.empty(codes_shape, np.int8 if type == "q8" else np.uint8)
    scales = np.empty(scales_shape, np.float16)
    cdef Source source
    cdef size_t address = matrix.ctypes.data
    cdef uint8_t[::1] codes_view = codes.reshape(-1).view(np.uint8)
    cdef uint16_t[:, ::1] scales_view = scales.view(np.uint16).reshape(scales_shape[0], -1)
    cdef int64_t block, n_blocks = scales_shape[0], block_bytes = codes.nbytes // max(n_blocks, 1)
    cdef bint q4 = type == "q4"
    cdef int bad = 0
    cdef float[:, :, ::1] importance_view = None
    cdef const float *importance_data = NULL
    source.data, source.half = <const void *> address, matrix.dtype == np.float16
    source.rows, source.columns = matrix.shape
    if codes.size == 0:
        return codes, scales
    if importance is not None:
        if not q4:
            raise ValueError("the importance of inputs is for q4 only")
        importance_view = spread_over_columns(importance, matrix.shape[1], group_size)
        importance_data = &importance_view[0, 0, 0]
    for block in prange(n_blocks, nogil=True, num_threads=n_threads, schedule="static"):
        if q4:
            bad += quantize_block_q4(kernels, &source, importance_data, group_size, block,
                                     &codes_view[block * block_bytes], &scales_view[block, 0])
        else:
            bad += quantize_block_q8(kernels, &source, group_size, block, &codes_view[block * block_bytes],
                                     &scales_view[block, 0])
    if bad:
        raise ValueError(f"{bad} groups of numbers are not finite or too large for {type}")
    return codes, scales


def spread_over_columns(importance, int64_t columns, int group_size):
    """The importance of inputs (columns,) as quantize_columns_q4 takes it, (pairs of groups, group_size, 16)."""
    importance = np.asarray(importance, np.float32)
    if importance.shape != (columns,):
        raise ValueError(f"the importance of {columns} inputs is needed, not of {importance.shape}")
    mean = importance.mean(dtype=np.float64)
    if not (np.isfinite(mean) and importance.min() > 0):
        raise ValueError("the importance of an input must be finite and above 0")
    importance = importance * np.float32(1 / mean)
    importance = np.pad(importance, (0, 2 * group_size - 1 - (columns - 1) % (2 * group_size)), constant_values=1)
    pairs = importance.reshape(-1, 2, group_size).transpose(0, 2, 1)
    return np.ascontiguousarray(np.repeat(pairs, ROW_BLOCK, axis=2))


cdef int quantize_block_q8(const Kernels *kernels, const Source *source, int group_size, int64_t block,
                           uint8_t *codes, uint16_t *scales) noexcept nogil:
    """Quantize one block of 8 rows, group by group. Returns the number of groups that could not be quantized."""
    cdef float[MAX_GROUP] values
    cdef int8_t[MAX_GROUP] row_codes
    cdef int64_t g
    cdef int r, j, bad = 0
    cdef float scale
    for g in range((source.columns + group_size - 1) // group_size):
        for r in range(ROW_BLOCK):
            load_group(kernels, source, block * ROW_BLOCK + r, g * group_size, group_size, values)
            scale = kernels.quantize_group_q8(values, group_size, row_codes)
            for j in range(group_size // QUAD):
                memcpy(codes + (j * ROW_BLOCK + r) * QUAD, row_codes + j * QUAD, QUAD)
            bad += isnan(scale)
            scales[g * ROW_BLOCK + r] = float_to_half(scale)
        codes += group_size * ROW_BLOCK
    return bad


cdef int quantize_block_q4(const Kernels *kernels, const Source *source, const float *importance, int group_size,
                           int64_t block, uint8_t *codes, uint16_t *scales) noexcept nogil:
    """Quantize one block of 8 rows, two groups at a time. Returns the number of groups that could not be quantized.

    importance is that of spread_over_columns(), NULL without one.
    """
    cdef float[MAX_GROUP] values
    cdef float[MAX_GROUP * QUANTIZER_COLUMNS] columns       # (group_size, 16): the rows of one group, then the next
    cdef uint8_t[MAX_GROUP * QUANTIZER_COLUMNS] column_codes
    cdef float[QUANTIZER_COLUMNS] column_scales
    cdef const uint8_t *low
    cdef int64_t first, g, groups = (source.columns + group_size - 1) // group_size
    cdef int c, r, i, half = group_size // 2, bad = 0
    for first in range(0, groups, 2):
        for c in range(QUANTIZER_COLUMNS):
            load_group(kernels, source, block * ROW_BLOCK + c % ROW_BLOCK, (first + c // ROW_BLOCK) * group_size,
                       group_size, values)
            for i in range(group_size):
                columns[i * QUANTIZER_COLUMNS + c] = values[i]
        kernels.quantize_columns_q4(columns, importance, group_size, column_codes, column_scales)
        if importance != NULL:
            importance += group_size * QUANTIZER_COLUMNS
        for g in range(first, min(groups, first + 2)):
            low = column_codes + (g - first) * ROW_BLOCK
            for i in range(half):
                for r in range(ROW_BLOCK):
                    codes[(i // QUAD * ROW_BLOCK + r) * QUAD + i % QUAD] = (
                        low[i * QUANTIZER_COLUMNS + r] | low[(half + i) * QUANTIZER_COLUMNS + r] << 4)
            for r in range(ROW_BLOCK):
                bad += isnan(column_scales[(g - first) * ROW_BLOCK + r])
                scales[g * ROW_BLOCK + r] = float_to_half(column_scales[(g - first) * ROW_BLOCK + r])
            codes += half * ROW_BLOCK
    return bad


cdef inline void load_group(const Kernels *kernels, const Source *source, int64_t row, int64_t column, int group_size,
                            float *values) noexcept nogil:
    """values (group_size,) = a group of one row as float32, with zeros beyond the matrix."""
    cdef int64_t count = 0
    if row < source.rows and column < source.columns:
        count = min(<int64_t> group_size, source.columns - column)
        if source.half:
            kernels.widen_f16(<const uint16_t *> source.data + row * source.columns + column, values, count)
        else:
            memcpy(values, <const float *> source.data + row * source.columns + column, count * sizeof(float))
    memset(values + count, 0, (group_size - count) * sizeof(float))
