"""Products of weight matrices with activations, shared among the threads of a team.

Design: a block of 8 rows is the unit of work for every weight type. A thread takes a contiguous share of the blocks
and sweeps all columns for each, so that a weight is read once per call; its results do not depend on how the rows
were shared or on how many columns there are.
"""

from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy

from .kernels cimport QUAD, ROW_BLOCK, Activations, Kernels, half_to_float
from .openmp cimport share

_KINDS = {"float32": FLOAT32, "float16": FLOAT16, "q8": Q8, "q4": Q4}


cdef Matrix matrix_of(object weight) except *:
    """The Matrix over the arrays of a weights.Weight, which must outlive it."""
    cdef Matrix matrix
    cdef size_t address = weight.data.ctypes.data
    cdef size_t scales = weight.scales.ctypes.data if weight.scales is not None else 0
    if not weight.data.flags.c_contiguous or not weight.data.flags.aligned:
        raise ValueError(f"{weight.name} is not a contiguous, aligned array")
    matrix.kind = _KINDS[weight.type]
    matrix.rows, matrix.columns = weight.shape
    matrix.group_size = weight.group_size
    matrix.data = <const void *> address
    matrix.scales = <const uint16_t *> scales
    return matrix


cdef inline void block_product(const Kernels *kernels, const Matrix *w, const Activations *x, int n, int64_t block,
                               int rows, Thread *thread) noexcept nogil:
    """thread.tile (n, 8) = rows of one block times the n columns of x."""
    cdef int64_t groups = 0
    cdef const uint16_t *half_rows
    if w.group_size:
        groups = (w.columns + w.group_size - 1) // w.group_size
    cdef int64_t codes = block * groups * w.group_size * ROW_BLOCK  # that lie before this block
    if w.kind == Q4:
        kernels.matmul_q4(<const uint8_t *> w.data + codes // 2, w.scales + block * groups * ROW_BLOCK, groups,
                          w.group_size, x, n, thread.tile)
    elif w.kind == Q8:
        kernels.matmul_q8(<const int8_t *> w.data + codes, w.scales + block * groups * ROW_BLOCK, groups,
                          w.group_size, x, n, thread.tile)
    elif w.kind == FLOAT16:
        half_rows = <const uint16_t *> w.data + block * ROW_BLOCK * w.columns
        kernels.widen_f16(half_rows, thread.rows, rows * w.columns)
        kernels.matmul_f32(thread.rows, w.columns, rows, w.columns, x, n, thread.tile)
    else:
        kernels.matmul_f32(<const float *> w.data + block * ROW_BLOCK * w.columns, w.columns, rows, w.columns, x, n,
                           thread.tile)


cdef void matmul(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                 Thread *thread) noexcept nogil:
    """y (n, rows) = x (n, columns) times w transposed, or y += that when add is set: this thread's share of rows."""
    cdef int64_t n_blocks = (w.rows + ROW_BLOCK - 1) // ROW_BLOCK
    cdef int64_t block
    cdef int c, r, rows
    cdef float *target
    cdef const float *source
    for block in range(share(n_blocks, thread.id, thread.team), share(n_blocks, thread.id + 1, thread.team)):
        rows = <int> min(<int64_t> ROW_BLOCK, w.rows - block * ROW_BLOCK)
        block_product(kernels, w, x, n, block, rows, thread)
        for c in range(n):
            target = y + c * w.rows + block * ROW_BLOCK
            source = thread.tile + c * ROW_BLOCK
            if add:
                for r in range(rows):
                    target[r] += source[r]
            else:
                memcpy(target, source, rows * sizeof(float))


cdef void lookup_row(const Kernels *kernels, const Matrix *w, int64_t row, float *y) noexcept nogil:
    """y (columns,) = one row of w as float32."""
    cdef int64_t i, j, groups, block, position
    cdef int r = <int> (row % ROW_BLOCK)
    cdef int half = w.group_size // 2
    cdef uint8_t byte
    cdef int code
    if w.kind == FLOAT32:
        memcpy(y, <const float *> w.data + row * w.columns, w.columns * sizeof(float))
        return
    if w.kind == FLOAT16:
        kernels.widen_f16(<const uint16_t *> w.data + row * w.columns, y, w.columns)
        return
    groups = (w.columns + w.group_size - 1) // w.group_size
    block = row // ROW_BLOCK
    for i in range(w.columns):
        if w.kind == Q8:
            position = (block * groups * w.group_size + i // QUAD * QUAD) * ROW_BLOCK + r * QUAD + i % QUAD
            code = (<const int8_t *> w.data)[position]
        else:
            j = i % w.group_size % half  # the byte of the group's row; its high nibble is the second half
            position = (block * groups + i // w.group_size) * half * ROW_BLOCK
            byte = (<const uint8_t *> w.data)[position + j // QUAD * QUAD * ROW_BLOCK + r * QUAD + j % QUAD]
            code = <int> (byte & 15 if i % w.group_size < half else byte >> 4) - 8
        y[i] = code * half_to_float(w.scales[(block * groups + i // w.group_size) * ROW_BLOCK + r])
