"""Products of weight matrices with activations, shared among the threads of a team.

Design: threads claim pieces of the rows (team.h), and compute each in memory of their own before they write it. Results
depend neither on the pieces nor on the number of columns. With few columns the unit of work is a block of 8 rows: it is
read from memory once, and unpacked in registers for every tile of columns. With many columns the unit is a panel of
more rows: it is unpacked once, into memory that stays in cache, and multiplied with all columns.
"""

from cython.parallel cimport parallel
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

from .kernels cimport (
    FLOAT16, FLOAT32, Q4, Q8, QUAD, ROW_BLOCK, Activations, Kernels, Matrix, Product, block_bytes, blocks_together,
    groups_of, half_to_float, multiply_blocks, offsets_of, panel_bytes, steps_of, tile_width,
)
from .openmp cimport end_idle_team, team_of
from .dispatch cimport find_kernels
from .team cimport CACHE_LINES, Seat, make_team, may_write, start_region, start_step, take_piece
from .wait_policy import spins

cdef enum:
    GRAIN_BYTES = 16 * 1024    # of weights of the last pieces with few columns: less than a microsecond
    PIECE_BYTES = 128 * 1024   # and of the first ones: more is lost when a thread is stopped amid one
    PIECE_BLOCKS = 64          # of a piece with few columns, at most
    STREAMED_BLOCKS = 128      # of a thread's share, at least: with many threads there are enough streams
    GRAIN_PRODUCTS = 8 << 20   # multiplications of the last pieces with many columns: some 100 microseconds
    PIECE_PRODUCTS = 16 << 20  # and of the first ones, unless a single panel has more

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
    act.n_groups = groups_of(w)
    act.n_offsets = offsets_of(kernels, w)
    act.panels = kernels.panel_rows and n > kernels.products[<int> w.kind].few_columns
    act.interleave = kernels.panel_columns if act.panels else tile_width(kernels, w, n)
    return act


cdef void prepare(const Kernels *kernels, const Matrix *w, const Activations *x, int column) noexcept nogil:
    """Write one column in the form that products with w want."""
    cdef int64_t first = column // x.interleave * x.interleave, lane = column % x.interleave
    cdef int32_t *steps = <int32_t *> x.steps + first * x.n_steps
    kernels.products[<int> w.kind].prepare(
        w, x.values + column * x.value_stride, x.interleave, steps + lane,
        <float *> x.scales + first * x.n_groups + lane, <int32_t *> x.offsets + first * x.n_offsets + lane)


cdef void start_columns(const Activations *x, int n, int kind, Thread *thread) noexcept nogil:
    """Begin a step whose units are those of n columns that are interleaved. take_columns() takes them."""
    start_step(&thread.member, kind, (n + x.interleave - 1) // x.interleave, 1, n, False)


cdef bint take_columns(const Activations *x, int n, Thread *thread, int *first, int *end) noexcept nogil:
    """Take the columns first .. end. Returns False when all columns are done."""
    if not take_piece(&thread.member):
        return False
    first[0] = <int> thread.member.first * x.interleave
    end[0] = min(n, <int> thread.member.end * x.interleave)
    return True


cdef void set_product(Products *products, const Matrix *w, float *y, Finish finish) noexcept nogil:
    """Make a step of one matrix, to which others may be added."""
    products.count, products.finish = 1, finish
    products.w[0], products.y[0] = w, y


cdef void start_products(const Kernels *kernels, Products *products, const Activations *x, int n, int kind,
                         Thread *thread) noexcept nogil:
    """Begin the step of products with n columns. Unless it is over, x must be prepared before run_products()."""
    cdef const Matrix *w = products.w[0]
    cdef int i
    cdef int64_t columns = (n + x.interleave - 1) // x.interleave * x.interleave, unit_bytes, unit_products
    cdef int64_t grain, most, together, least = 1
    products.x, products.n, products.starts[0] = x, n, 0
    products.height = kernels.panel_rows if x.panels else ROW_BLOCK
    for i in range(products.count):
        products.starts[i + 1] = products.starts[i] + (products.w[i].rows + products.height - 1) // products.height
    products.unit_floats = columns * products.height
    together = 2 if products.finish == SWIGLU else 1
    if x.panels:
        unit_products = together * products.height * w.columns * n
        most = max(<int64_t> 1, min(plan_panels(kernels, w).together // together, PIECE_PRODUCTS // unit_products))
        grain = min(most, max(<int64_t> 1, GRAIN_PRODUCTS // unit_products))
    else:
        unit_bytes = block_bytes(w) if w.group_size else ROW_BLOCK * w.columns * (2 if w.kind == FLOAT16 else 4)
        most = min(<int64_t> PIECE_BLOCKS, thread.tile_floats // (together * products.unit_floats))
        if n > 1 or products.starts[products.count] >= STREAMED_BLOCKS * thread.member.size:
            least = blocks_together(kernels, w, n)
        most = max(least, min(most, PIECE_BYTES // (together * unit_bytes)))
        grain = min(most, max(least, GRAIN_BYTES // (together * unit_bytes)))
    products.second = most * products.unit_floats
    start_step(&thread.member, kind, products.starts[products.count], grain, most, True)


cdef void run_products(const Kernels *kernels, const Products *products, Thread *thread) noexcept nogil:
    """Take part in a step that start_products() began, until it is over."""
    cdef float *results = thread.totals if products.x.panels else thread.tiles
    cdef int64_t first, end
    cdef int i
    while take_piece(&thread.member):
        for i in range(products.count):
            first, end = units_of(products, i, thread)
            if first < end:
                multiply(kernels, products, i, first, end, results_at(products, results, i, thread), thread)
        if products.finish == SWIGLU:
            multiply(kernels, products, 1, first, end, results + products.second, thread)
            kernels.silu_product(results, results + products.second, (end - first) * products.unit_floats)
        if may_write(&thread.member):
            for i in range(products.count):
                first, end = units_of(products, i, thread)
                if first < end:
                    write(products, i, first, end, results_at(products, results, i, thread))


cdef inline (int64_t, int64_t) units_of(const Products *products, int i, const Thread *thread) noexcept nogil:
    """The units of matrix i in this thread's piece, counted from the matrix's first: first and end."""
    cdef int64_t start = products.starts[i]
    return (max(<int64_t> 0, thread.member.first - start),
            min(products.starts[i + 1], thread.member.end) - start)


cdef inline float *results_at(const Products *products, float *results, int i, const Thread *thread) noexcept nogil:
    """Where the results of matrix i are among those of this thread's piece."""
    return results + max(<int64_t> 0, products.starts[i] - thread.member.first) * products.unit_floats


cdef inline void multiply(const Kernels *kernels, const Products *products, int i, int64_t first, int64_t end,
                          float *results, Thread *thread) noexcept nogil:
    """Compute some units of matrix i."""
    cdef const Matrix *w = products.w[i]
    if products.x.panels:
        multiply_panels(kernels, w, products.x, products.n, first, end, results, thread)
    else:
        multiply_blocks(kernels, w, first, end, products.x, products.n, products.unit_floats, results)


cdef inline void write(const Products *products, int i, int64_t first, int64_t end,
                       const float *results) noexcept nogil:
    """Write the results of some units to y."""
    cdef int64_t rows = products.w[i].rows, row = first * products.height, stride = (end - first) * products.height
    cdef int64_t unit
    cdef bint add = products.finish == ADD
    if products.x.panels:
        write_back(results, stride, products.n, min(stride, rows - row), products.y[i] + row, rows, add)
    else:
        for unit in range(first, end):
            row = unit * ROW_BLOCK
            write_back(results, ROW_BLOCK, products.n, min(<int64_t> ROW_BLOCK, rows - row), products.y[i] + row, rows,
                       add)
            results += products.unit_floats


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


cdef void multiply_panels(const Kernels *kernels, const Matrix *w, const Activations *x, int n, int64_t first,
                          int64_t end, float *totals, Thread *thread) noexcept nogil:
    """Products of the panels first .. end, at most plan.together, which stay in the cache of the thread.

                       inputs, in parts of plan.groups groups
                     part 0          part 1          part 2
        panel 0    [ packed once ][             ][             ]     a panel: kernels.panel_rows rows
        panel 1    [ packed once ][             ][             ]     all panels, unpacked to thread.panels
                         |
                         +-- swept over the columns of x, x.interleave at a time -> totals (columns, rows)
    """
    cdef const Product *product = &kernels.products[<int> w.kind]
    cdef PanelPlan plan = plan_panels(kernels, w)
    cdef int64_t height = kernels.panel_rows, groups = groups_of(w) if w.group_size else 1
    cdef int64_t part, g, last, p, panels = end - first, stride = panels * height
    cdef int tile, c, tiles = (n + x.interleave - 1) // x.interleave
    if w.group_size:
        memset(totals, 0, tiles * x.interleave * stride * sizeof(float))
    for part in range((groups + plan.groups - 1) // plan.groups):
        g, last = part * plan.groups, min(groups, (part + 1) * plan.groups)
        for p in range(panels):
            product.pack(w, first + p, g, last, <char *> thread.panels + p * plan.bytes,
                         thread.panel_scales + p * plan.scales)
        for tile in range(tiles):
            c = tile * x.interleave
            for p in range(panels):
                product.panel(w, <char *> thread.panels + p * plan.bytes, thread.panel_scales + p * plan.scales, g,
                              last, x, c, totals + c * stride + p * height, stride)


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
        self.n_groups = max(self.n_groups, groups_of(w))
        self.n_offsets = max(self.n_offsets, offsets_of(self.kernels, w))
        if self.kernels.panel_rows:
            plan = plan_panels(self.kernels, w)
            self.panel_bytes = max(self.panel_bytes, plan.bytes * plan.together)
            self.panel_scales = max(self.panel_scales, plan.scales * plan.together)
            # Two panels at least: one of each matrix of SWIGLU.
            self.panel_rows = max(self.panel_rows, max(<int64_t> 2, plan.together) * self.kernels.panel_rows)

    cdef void *allocate(self, int64_t n_bytes) except? NULL:
        """Zeros that start at a multiple of 64 bytes. NULL if they are only counted.

        Pages that are never written to take no memory.
        """
        self.nbytes += n_bytes + 64
        if self.counts_only:
            return NULL
        array = np.zeros(n_bytes + 64, np.uint8)
        self.arrays.append(array)
        return <void *> ((<size_t> array.ctypes.data + 63) // 64 * 64)

    cdef int allocate_steps(self, Steps *steps, int64_t columns) except -1:
        columns += max(self.kernels.panel_columns, self.kernels.tile_columns)
        steps.codes = self.allocate(columns * self.n_steps * 4)
        steps.scales = <float *> self.allocate(columns * self.n_groups * sizeof(float))
        steps.offsets = <int32_t *> self.allocate(columns * self.n_offsets * sizeof(int32_t))
        return 0

    cdef int allocate_thread(self, Thread *thread, int64_t columns) except -1:
        """Allocate what a thread needs for products with so many columns."""
        cdef int64_t few = ROW_BLOCK * 2 * PIECE_BLOCKS * max(self.kernels.tile_columns, 1)
        self.allocate_steps(&thread.steps, 1)
        thread.tile_floats = max(few, 2 * (columns + self.kernels.tile_columns) * ROW_BLOCK)
        thread.tiles = <float *> self.allocate(thread.tile_floats * sizeof(float))
        thread.panels = self.allocate(self.panel_bytes)
        thread.panel_scales = <float *> self.allocate(self.panel_scales * sizeof(float))
        columns += self.kernels.panel_columns
        thread.totals = <float *> self.allocate(columns * self.panel_rows * sizeof(float))
        return 0

    cdef Team *allocate_team(self, int n_threads) except? NULL:
        """Allocate what a team shares."""
        cdef size_t address = <size_t> self.allocate(sizeof(Team) + n_threads * sizeof(Seat) + CACHE_LINES)
        cdef Team *team = <Team *> ((address + CACHE_LINES - 1) // CACHE_LINES * CACHE_LINES)
        if address:
            make_team(team, n_threads, spins())
        return team


cdef class MatrixProduct:
    """MatrixProduct(...)(x) is x (n, weight's columns) times weight transposed, (n, weight's rows), both float32.

    Args:
        weight: a weights.Weight.
        columns: largest n.
        n_threads: threads of the team.
        isa: the instruction set. "": the best one.
        few_columns: up to so many columns are multiplied by blocks of rows, more by panels.
    """

    cdef Kernels kernels
    cdef Matrix matrix
    cdef Scratch scratch
    cdef Steps steps
    cdef Team *team
    cdef Thread *threads
    cdef int n_threads
    cdef object weight

    def __cinit__(self, weight, int columns, int n_threads=1, str isa="", int few_columns=16):
        cdef int t
        self.weight, self.matrix, self.n_threads = weight, matrix_of(weight), n_threads
        self.scratch, self.kernels = Scratch(), find_kernels(isa)[0]
        self.kernels.products[<int> self.matrix.kind].few_columns = few_columns
        self.scratch.kernels = &self.kernels
        self.threads = <Thread *> calloc(n_threads, sizeof(Thread))
        if self.threads is NULL:
            raise MemoryError("no memory for the threads' table")
        self.scratch.cover(&self.matrix)
        self.scratch.allocate_steps(&self.steps, columns)
        self.team = self.scratch.allocate_team(n_threads)
        for t in range(n_threads):
            self.scratch.allocate_thread(&self.threads[t], columns)

    def __dealloc__(self):
        free(self.threads)

    def __call__(self, const float[:, ::1] x):
        cdef int n = <int> x.shape[0]
        cdef float[:, ::1] y = np.empty((n, self.matrix.rows), np.float32)
        cdef Activations act = activations(self.scratch.kernels, &self.matrix, &self.steps, &x[0, 0], n)
        start_region(self.team)
        with nogil, parallel(num_threads=self.n_threads):
            multiply_as(self.scratch.kernels, &self.matrix, &act, n, &y[0, 0], enter_team(self.team, self.threads))
        return np.asarray(y)


cdef void multiply_as(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y,
                      Thread *thread) noexcept nogil:
    """Compute a whole product, as one thread of the team."""
    cdef Products products
    cdef int c, first = 0, end = 0
    start_columns(x, n, 0, thread)
    while take_columns(x, n, thread, &first, &end):
        for c in range(first, end):
            prepare(kernels, w, x, c)
    set_product(&products, w, y, STORE)
    start_products(kernels, &products, x, n, 0, thread)
    run_products(kernels, &products, thread)


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
