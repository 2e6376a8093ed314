"""GPTQ (arXiv:2210.17323): rounding a matrix column after column, each error spread over the columns to come.

    w (rows, columns)   a row's error is e H e', where H = mean(x x') of the inputs x
    U upper triangular  with U' U = H^-1

For column j the code nearest to w_j / scale is taken. The error (w_j - code * scale) / U_jj, times U_jk, is taken off
every later column k: the best correction for it. Rows are independent of each other, so threads share them out, and
the result is the same for any number of threads. 16 rows are taken together, one in each lane of the vectors that the
compiler makes of the inner loops.

A group's scale is found when its first column is reached. For q4 the number of largest magnitude lands around code
-8: from 19 scales there, each with its codes c, least squares finds the best scale for those codes,
sum(d w c) / sum(d c c) with d the diagonal of H, and the one that explains most is kept. q8 has codes to spare: its
scale is the largest magnitude / 127.
"""

from cython.parallel cimport prange
from libc.math cimport fabsf, isfinite, sqrt
from libc.stdint cimport int8_t, int64_t, uint16_t
from libc.string cimport memset

import numpy as np

from .kernels cimport MAX_GROUP, float_to_half, half_to_float

cdef enum:
    LANES = 16
    CANDIDATES = 19
    WIDTH = MAX_GROUP     # most columns of a block: a group at least

cdef float ROUNDER = 12582912.0  # 1.5 * 2^23: a number below 2^22, added to it and taken off, is rounded

BLOCK = WIDTH


cdef struct Block:            # of columns, for all rows
    const float *factor       # (width, width) of U, rows stride apart
    int64_t stride
    const float *importance   # (width,) the diagonal of H
    int width
    int group_size
    bint q4                   # else q8


def quantize_block(float[:, ::1] weights, int64_t first, int width, const float[:, ::1] factor,
                   const float[::1] importance, int group_size, str type, int8_t[:, ::1] codes, uint16_t[:, ::1] scales,
                   float[:, ::1] errors, int n_threads):
    """Codes and scales of the columns first .. first + width - 1, whole groups and at most BLOCK columns.

    weights (rows, columns) have the corrections of the columns before. factor is U (columns, columns), importance the
    diagonal of H. codes (rows, columns) and the float16 bits of scales (rows, groups) are written; errors
    (rows, width) are what later columns are to be corrected for: weights[:, k] -= errors @ U[first : first + width, k].

    Raises ValueError when a scale is too large for float16 or a weight is not finite.
    """
    cdef int64_t n_blocks = (weights.shape[0] + LANES - 1) // LANES, b, columns = weights.shape[1]
    cdef Block block
    cdef int bad = 0
    if not (0 < width <= WIDTH and width % group_size == 0 and 0 <= first <= columns - width):
        raise ValueError("a block must have whole groups of columns")
    if factor.shape[0] != columns or factor.shape[1] != columns or importance.shape[0] != columns:
        raise ValueError("factor and importance must be of all columns")
    if codes.shape[0] != weights.shape[0] or codes.shape[1] != columns or errors.shape[0] != weights.shape[0]:
        raise ValueError("codes and errors must be of all rows")
    if errors.shape[1] != width or scales.shape[0] != weights.shape[0] or scales.shape[1] * group_size != columns:
        raise ValueError("errors or scales have the wrong shape")
    block.factor, block.stride = &factor[first, first], columns
    block.importance, block.width = &importance[first], width
    block.group_size, block.q4 = group_size, type == "q4"
    for b in prange(n_blocks, nogil=True, num_threads=n_threads, schedule="static"):
        bad += quantize_rows(&block, weights, first, b * LANES, codes, scales, errors)
    if bad:
        raise ValueError(f"{bad} groups of numbers are not finite or too large for {type}")


cdef int quantize_rows(const Block *block, const float[:, ::1] weights, int64_t first, int64_t row,
                       int8_t[:, ::1] codes, uint16_t[:, ::1] scales, float[:, ::1] errors) noexcept nogil:
    """Up to 16 rows of a block. Returns the number of groups without a usable scale."""
    cdef float[WIDTH * LANES] w     # (width, 16): weights, and after their turn errors
    cdef float[LANES] scale, inverse
    cdef int64_t n = min(<int64_t> LANES, weights.shape[0] - row), g
    cdef int j, k, r, bad = 0
    cdef float low = -8.0 if block.q4 else -127.0, high = 7.0 if block.q4 else 127.0
    cdef float code, correction, reciprocal
    cdef float *x
    cdef float *y
    cdef const float *u
    memset(w, 0, sizeof(w))
    for r in range(n):
        for j in range(block.width):
            w[j * LANES + r] = weights[row + r, first + j]
    for j in range(block.width):
        if j % block.group_size == 0:
            g = (first + j) // block.group_size
            find_scales(block, w + j * LANES, block.importance + j, scale)
            for r in range(LANES):
                inverse[r] = scale[r] = half_to_float(float_to_half(scale[r]))
                if not isfinite(scale[r]):
                    bad += 1
                    scale[r] = 0.0
                inverse[r] = 1.0 / scale[r] if scale[r] != 0.0 else 0.0
            for r in range(n):
                scales[row + r, g] = float_to_half(scale[r])
        x, u = w + j * LANES, block.factor + j * block.stride
        reciprocal = 1.0 / u[j]
        for r in range(LANES):
            code = x[r] * inverse[r] + ROUNDER
            code = min(max(code, ROUNDER + low), ROUNDER + high) - ROUNDER
            y = w + j * LANES
            y[r] = (x[r] - code * scale[r]) * reciprocal
            if r < n:
                codes[row + r, first + j] = <int8_t> code
        for k in range(j + 1, block.width):
            y, correction = w + k * LANES, u[k]
            for r in range(LANES):
                y[r] -= x[r] * correction
    for r in range(n):
        for j in range(block.width):
            errors[row + r, j] = w[j * LANES + r]
    return bad


cdef void find_scales(const Block *block, const float *x, const float *importance, float *scale) noexcept nogil:
    """Scales of 16 groups x (group_size, 16), before they are float16."""
    cdef float[LANES] most, sign, factor, xc, cc, best_xc, best_cc
    cdef float[MAX_GROUP * LANES] units
    cdef int c, i, r
    cdef float magnitude, code, weighted
    for r in range(LANES):
        most[r], sign[r] = 0.0, 1.0
    for i in range(block.group_size):
        for r in range(LANES):
            magnitude = fabsf(x[i * LANES + r])
            if magnitude > most[r]:
                most[r] = magnitude
                sign[r] = -1.0 if x[i * LANES + r] > 0.0 else 1.0
    if not block.q4:
        for r in range(LANES):
            scale[r] = most[r] / 127.0
        return
    for r in range(LANES):
        best_xc[r], best_cc[r] = 0.0, 1.0
        factor[r] = sign[r] / most[r] if most[r] > 1e-30 else 0.0  # smaller ones have no float16 scale
    for i in range(block.group_size):
        for r in range(LANES):
            units[i * LANES + r] = x[i * LANES + r] * factor[r]  # the largest is -1
    for c in range(CANDIDATES):
        for r in range(LANES):
            xc[r] = cc[r] = 0.0
            factor[r] = 7.0 + c * (3.0 / (CANDIDATES - 1))
        for i in range(block.group_size):
            for r in range(LANES):
                code = units[i * LANES + r] * factor[r] + ROUNDER
                code = min(max(code, ROUNDER - 8), ROUNDER + 7) - ROUNDER
                weighted = importance[i] * code
                xc[r] += weighted * units[i * LANES + r]
                cc[r] += weighted * code
        for r in range(LANES):
            if xc[r] * xc[r] * best_cc[r] > best_xc[r] * best_xc[r] * cc[r]:
                best_xc[r], best_cc[r] = xc[r], cc[r]
    for r in range(LANES):
        scale[r] = sign[r] * most[r] * (best_xc[r] / best_cc[r])


def inverse_of_factor(const float[:, ::1] matrix):
    """The inverse (n, n) of the lower Cholesky factor of a matrix, computed in float64. None unless it is positive."""
    cdef int64_t n = matrix.shape[0], i, j, k
    cdef double[:, ::1] lower = np.zeros((n, n)), inverse = np.zeros((n, n))
    cdef double total
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            if i != j:
                lower[i, j] = total / lower[j, j]
            elif total > 0.0 and isfinite(total):
                lower[i, i] = sqrt(total)
            else:
                return None
    for i in range(n):  # row i of the inverse, from those above it
        for k in range(i):
            for j in range(k + 1):
                inverse[i, j] -= lower[i, k] * inverse[k, j]
        for j in range(i):
            inverse[i, j] /= lower[i, i]
        inverse[i, i] = 1.0 / lower[i, i]
    return np.asarray(inverse, np.float32)
