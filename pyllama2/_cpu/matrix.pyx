"""Products of weight matrices with activations, shared among the threads of a team.

Design: each thread takes a contiguous share of the rows. Results depend neither on the shares nor on the number of
columns. With few columns the unit of work is a block of 8 rows: it is read from memory once, and unpacked in registers
for every tile of columns. With many columns the unit is a panel of more rows: it is unpacked once, into memory that
stays in cache, and multiplied with all columns.
"""

from cython.parallel cimport parallel
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

from .kernels cimport (
    FLOAT16, FLOAT32, Q4, Q8, QUAD, ROW_BLOCK, Activations, Kernels, Matrix, Product, groups_of, half_to_float,
    panel_bytes, steps_of, tile_width,
)
from .openmp cimport end_idle_team, share, team_barrier, team_of
from .dispatch cimport find_kernels

_KINDS = {"float32": FLOAT32, "float16": FLOAT16, "q8": Q8, "q4": Q4}


def team_size(int n_threads):
    """Return the number of threads that a parallel region now gets when it asks for n_threads."""
    return team_of(n_threads)


def end_team():
    """End the calling thread's OpenMP team, which must be idle. Its next parallel region starts another."""
    end_idle_team()


cdef Matrix matrix_of(object weight) except *:
    """The Matrix of a weights.Weight, whose arrays must outlive it."""
    cdef Matrix matrix = matrix_of_shape(weight.type, weight.shape, weight.group_size)
    cdef size_t address = weight.data.ctypes.data
    cdef size_t scales = weight.scales.ctypes.data if weight.scales is not None else 0
    if not weight.data.flags.c_contiguous or not weight.data.flags.aligned:
        raise ValueError(f"{weight.name} is not a contiguous, aligned array")
    matrix.data = <const void *> address
    matrix.scales = <const uint16_t *> scales
    return matrix


cdef Matrix matrix_of_shape(str type, shape, int group_size) except *:
    """The Matrix of a type and shape (rows, columns), without its arrays; group_size is that of quantized types."""
    cdef Matrix matrix
    matrix.kind = _KINDS[type]
    matrix.rows, matrix.columns = shape
    matrix.group_size = group_size if matrix.kind == Q8 or matrix.kind == Q4 else 0
    matrix.data, matrix.scales = NULL, NULL
    return matrix


cdef Activations activations(const Kernels *kernels, const Matrix *w, const Steps *steps, const float *values,
                             int n) noexcept nogil:
    """The Activations of n columns, values (n, w.columns), for products with w. prepare() writes them to steps."""
    cdef Activations act
    act.values, act.value_stride = values, w.columns
    act.steps, act.scales, act.offsets = steps.codes, steps.scales, steps.offsets
    act.n_steps = steps_of(w)
    act.n_groups = groups_of(w) if w.group_size else 0
    act.panels = kernels.panel_rows and n > kernels.products[<int> w.kind].few_columns
    act.interleave = kernels.panel_columns if act.panels else tile_width(kernels, w, n)
    return act


cdef void prepare(const Kernels *kernels, const Matrix *w, const Activations *x, int column) noexcept nogil:
    """Write one column in the form that products with w want."""
    cdef int64_t first = column // x.interleave * x.interleave, lane = column % x.interleave
    cdef int32_t *steps = <int32_t *> x.steps
    cdef const Product *product = &kernels.products[<int> w.kind]
    product.prepare(w, x.values + column * x.value_stride, x.interleave, steps + first * x.n_steps + lane,
                    <float *> x.scales + first * x.n_groups + lane, <int32_t *> x.offsets + first * x.n_groups + lane)


cdef int64_t first_row(const Kernels *kernels, const Matrix *w, const Activations *x, const Thread *thread,
                       int further) noexcept nogil:
    """The first row of a share: of this thread (further 0), or of the next one (further 1)."""
    cdef int64_t unit = kernels.panel_rows if x.panels else ROW_BLOCK
    return min(w.rows, share((w.rows + unit - 1) // unit, thread.id + further, thread.team) * unit)


cdef int first_column(const Activations *x, int n, const Thread *thread, int further) noexcept nogil:
    """The first of n columns of a share, as first_row(). Columns that are interleaved stay together."""
    cdef int units = (n + x.interleave - 1) // x.interleave
    return min(n, <int> share(units, thread.id + further, thread.team) * x.interleave)


cdef void matmul(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                 Thread *thread) noexcept nogil:
    """This thread's rows of y (n, rows) = x (n, columns) times w transposed. With add, y += it."""
    if x.panels:
        multiply_panels(kernels, w, x, n, y, add, thread)
    else:
        multiply_blocks(kernels, w, x, n, y, add, thread)


cdef void multiply_blocks(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                          Thread *thread) noexcept nogil:
    cdef int64_t block, row, end = first_row(kernels, w, x, thread, 1)
    for block in range(first_row(kernels, w, x, thread, 0) // ROW_BLOCK, (end + ROW_BLOCK - 1) // ROW_BLOCK):
        row = block * ROW_BLOCK
        kernels.products[<int> w.kind].block(w, block, x, n, thread.tile)
        write_back(thread.tile, ROW_BLOCK, n, min(<int64_t> ROW_BLOCK, end - row), y + row, w.rows, add)


cdef PanelPlan plan_panels(const Kernels *kernels, const Matrix *w) noexcept nogil:
    """How multiply_panels() cuts w: see the picture there."""
    cdef PanelPlan plan
    plan.groups = 1  # float panels take all inputs at a time
    if w.group_size:
        plan.groups = min(groups_of(w), <int64_t> PANEL_INPUTS // w.group_size)
    plan.bytes = panel_bytes(w, plan.groups, kernels.panel_rows)
    plan.scales = plan.groups * kernels.panel_rows
    plan.together = max(<int64_t> 1, PANEL_BYTES // plan.bytes) if plan.bytes else 1
    return plan


cdef void multiply_panels(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                          Thread *thread) noexcept nogil:
    """This thread's rows, some panels of them together, as many as stay in its cache.

                       inputs, in parts of plan.groups groups
                     part 0          part 1          part 2
        panel 0    [ packed once ][             ][             ]     a panel: kernels.panel_rows rows
        panel 1    [ packed once ][             ][             ]     plan.together panels, unpacked to thread.panels
                         |
                         +-- swept over the columns of x, x.interleave at a time -> thread.totals (columns, rows)

    The totals are written to y after the last part.
    """
    cdef const Product *product = &kernels.products[<int> w.kind]
    cdef PanelPlan plan = plan_panels(kernels, w)
    cdef int64_t height = kernels.panel_rows, groups = groups_of(w) if w.group_size else 1
    cdef int64_t row = first_row(kernels, w, x, thread, 0), end = first_row(kernels, w, x, thread, 1)
    cdef int64_t part, g, last, p, panels, stride
    cdef int tile, c
    while row < end:
        panels = min(plan.together, (end - row + height - 1) // height)
        stride = panels * height
        if w.group_size:
            memset(thread.totals, 0, (n + x.interleave - 1) // x.interleave * x.interleave * stride * sizeof(float))
        for part in range((groups + plan.groups - 1) // plan.groups):
            g, last = part * plan.groups, min(groups, (part + 1) * plan.groups)
            for p in range(panels):
                product.pack(w, row // height + p, g, last, <char *> thread.panels + p * plan.bytes,
                             thread.panel_scales + p * plan.scales)
            for tile in range((n + x.interleave - 1) // x.interleave):
                c = tile * x.interleave
                for p in range(panels):
                    product.panel(w, <char *> thread.panels + p * plan.bytes, thread.panel_scales + p * plan.scales, g,
                                  last, x, c, thread.totals + c * stride + p * height, stride)
        write_back(thread.totals, stride, n, min(stride, end - row), y + row, w.rows, add)
        row += stride


cdef inline void write_back(const float *source, int64_t source_stride, int n, int64_t rows, float *y, int64_t y_stride,
                            bint add) noexcept nogil:
    """y (n, rows) = or += source (n, rows)."""
    cdef int c
    cdef int64_t r
    for c in range(n):
        if add:
            for r in range(rows):
                y[c * y_stride + r] += source[c * source_stride + r]
        else:
            memcpy(y + c * y_stride, source + c * source_stride, rows * sizeof(float))


cdef class Scratch:

    def __cinit__(self, bint counts_only=False):
        self.arrays, self.counts_only = [], counts_only

    cdef void cover(self, const Matrix *w) noexcept:
        """Make room for products with w."""
        cdef PanelPlan plan
        self.n_steps = max(self.n_steps, steps_of(w))
        self.n_groups = max(self.n_groups, groups_of(w) if w.group_size else 0)
        if self.kernels.panel_rows:
            plan = plan_panels(self.kernels, w)
            self.panel_bytes = max(self.panel_bytes, plan.bytes * plan.together)
            self.panel_scales = max(self.panel_scales, plan.scales * plan.together)
            self.panel_rows = max(self.panel_rows, plan.together * self.kernels.panel_rows)

    cdef void *allocate(self, int64_t n_bytes) except? NULL:
        """Zeros that start at a multiple of 64 bytes. NULL if they are only counted.

        Pages that are never written to take no memory.
        """
        cdef size_t address
        self.nbytes += n_bytes + 64
        if self.counts_only:
            return NULL
        array = np.zeros(n_bytes + 64, np.uint8)
        self.arrays.append(array)
        address = array.ctypes.data
        return <void *> ((address + 63) // 64 * 64)

    cdef int allocate_steps(self, Steps *steps, int64_t columns) except -1:
        columns += max(self.kernels.panel_columns, self.kernels.tile_columns)
        steps.codes = self.allocate(columns * self.n_steps * 4)
        steps.scales = <float *> self.allocate(columns * self.n_groups * sizeof(float))
        steps.offsets = <int32_t *> self.allocate(columns * self.n_groups * sizeof(int32_t))
        return 0

    cdef int allocate_thread(self, Thread *thread, int id, int64_t columns) except -1:
        """Allocate what a thread needs for products with so many columns."""
        thread.id = id
        self.allocate_steps(&thread.steps, 1)
        thread.tile = <float *> self.allocate((columns + self.kernels.tile_columns) * ROW_BLOCK * sizeof(float))
        thread.panels = self.allocate(self.panel_bytes)
        thread.panel_scales = <float *> self.allocate(self.panel_scales * sizeof(float))
        columns += self.kernels.panel_columns
        thread.totals = <float *> self.allocate(columns * self.panel_rows * sizeof(float))
        return 0


cdef class MatrixProduct:
    """Products with a single weight, for tests and measurements.

    MatrixProduct(...)(x) is x (n, weight's columns) times weight transposed: (n, weight's rows), both float32.

    Args:
        weight: a weights.Weight.
        columns: largest n.
        n_threads: threads of the team.
        isa: the instruction set. "": the best one.
    """

    cdef Matrix matrix
    cdef Scratch scratch
    cdef Steps steps
    cdef Thread *threads
    cdef int n_threads
    cdef object weight

    def __cinit__(self, weight, int columns, int n_threads=1, str isa=""):
        cdef int t
        self.weight, self.matrix, self.n_threads = weight, matrix_of(weight), n_threads
        self.scratch = Scratch()
        self.scratch.kernels = find_kernels(isa)
        self.threads = <Thread *> calloc(n_threads, sizeof(Thread))
        if self.threads is NULL:
            raise MemoryError("no memory for the threads' table")
        self.scratch.cover(&self.matrix)
        self.scratch.allocate_steps(&self.steps, columns)
        for t in range(n_threads):
            self.scratch.allocate_thread(&self.threads[t], t, columns)

    def __dealloc__(self):
        free(self.threads)

    def __call__(self, const float[:, ::1] x):
        cdef int n = <int> x.shape[0]
        cdef float[:, ::1] y = np.empty((n, self.matrix.rows), np.float32)
        cdef Activations act = activations(self.scratch.kernels, &self.matrix, &self.steps, &x[0, 0], n)
        with nogil, parallel(num_threads=self.n_threads):
            multiply_as(self.scratch.kernels, &self.matrix, &act, n, &y[0, 0], enter_team(self.threads))
        return np.asarray(y)


cdef void multiply_as(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y,
                      Thread *thread) noexcept nogil:
    """Compute a whole product, as one thread of the team."""
    prepare_share(kernels, w, x, n, thread)
    team_barrier()
    matmul(kernels, w, x, n, y, False, thread)


cdef void prepare_share(const Kernels *kernels, const Matrix *w, const Activations *x, int n,
                        const Thread *thread) noexcept nogil:
    """Prepare this thread's share of n columns."""
    cdef int c
    for c in range(first_column(x, n, thread, 0), first_column(x, n, thread, 1)):
        prepare(kernels, w, x, c)


cdef void lookup_row(const Kernels *kernels, const Matrix *w, int64_t row, float *y) noexcept nogil:
    """y (columns,) = one row of w as float32."""
    cdef int64_t g, groups, block
    cdef int r = <int> (row % ROW_BLOCK), half = w.group_size // 2, i, j, n
    cdef const int8_t *codes
    cdef const uint8_t *bytes
    cdef float scale
    if w.kind == FLOAT32:
        memcpy(y, <const float *> w.data + row * w.columns, w.columns * sizeof(float))
        return
    if w.kind == FLOAT16:
        kernels.widen_f16(<const uint16_t *> w.data + row * w.columns, y, w.columns)
        return
    groups = groups_of(w)
    block = row // ROW_BLOCK
    for g in range(groups):
        scale = half_to_float(w.scales[(block * groups + g) * ROW_BLOCK + r])
        n = <int> min(<int64_t> w.group_size, w.columns - g * w.group_size)
        codes = <const int8_t *> w.data + (block * groups + g) * w.group_size * ROW_BLOCK + r * QUAD
        bytes = <const uint8_t *> w.data + (block * groups + g) * half * ROW_BLOCK + r * QUAD
        for i in range(n):
            if w.kind == Q8:
                y[i] = codes[(i & ~3) * ROW_BLOCK + (i & 3)] * scale
            else:
                j = i if i < half else i - half  # the byte in the row's group; high nibbles are the second half
                j = (j & ~3) * ROW_BLOCK + (j & 3)
                y[i] = ((bytes[j] & 15 if i < half else bytes[j] >> 4) - 8) * scale
        y += w.group_size
