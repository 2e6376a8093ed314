"""Products of weight matrices with activations, by a team of threads."""

from libc.stdint cimport int32_t, int64_t

from .kernels cimport Activations, Kernels, Matrix
from .openmp cimport omp_get_num_threads, omp_get_thread_num
from .team cimport Member, Team, enter_region

cdef enum:
    PANEL_BYTES = 512 * 1024   # of packed weights that a thread multiplies with all columns; a part of the L2 cache
    PANEL_INPUTS = 1024        # inputs of a quantized matrix that are packed together
    MOST_PRODUCTS = 3          # that are one step


cdef enum Finish:              # what becomes of the products of a step
    STORE                      # y = product, of each matrix
    ADD                        # y += product
    SWIGLU                     # y = silu(product of the first matrix) * product of the second, which has its shape


cdef struct Steps:             # memory for prepared activations, see struct Activations
    void *codes
    float *scales
    int32_t *offsets


cdef struct Thread:
    Member member              # of the team, see team.h
    int cpu                    # that it is bound to in the forward pass, or ANYWHERE
    Steps steps                # of one column that only this thread uses
    float *normed              # (dim,) of one token
    float *tiles               # results of a piece of few columns: of each block (columns, 8)
    int64_t tile_floats        # room of tiles
    void *panels               # packed weights of some panels, and their scales
    float *panel_scales
    float *totals              # results of a piece of many columns: (columns, rows of those panels)


cdef struct Products:          # a step: products of some matrices with the same activations
    const Matrix *w[MOST_PRODUCTS]
    float *y[MOST_PRODUCTS]    # (n, rows)
    int count                  # of matrices with a y: SWIGLU has one for its two
    Finish finish
    const Activations *x       # these are set by start_products():
    int n
    int64_t height             # rows of a unit, which is a block or a panel
    int64_t starts[MOST_PRODUCTS + 1]  # the first unit of each matrix, and the number of units
    int64_t unit_floats        # of the results of a unit
    int64_t second             # where the results of SWIGLU's second matrix are, in floats


cdef class Scratch:
    """Aligned memory for products with any of the matrices that cover() was called for."""
    cdef const Kernels *kernels
    cdef readonly list arrays
    cdef readonly int64_t nbytes
    cdef bint counts_only
    # largest that any matrix needs
    cdef int64_t n_steps, n_groups, n_offsets, panel_bytes, panel_scales, panel_rows

    cdef void cover(self, const Matrix *w) noexcept
    cdef void *allocate(self, int64_t n_bytes) except? NULL
    cdef int allocate_steps(self, Steps *steps, int64_t columns) except -1
    cdef int allocate_thread(self, Thread *thread, int64_t columns) except -1
    cdef Team *allocate_team(self, int n_threads) except? NULL


cdef struct PanelPlan:         # how multiply_panels() cuts a matrix
    int64_t groups             # groups that are packed at a time
    int64_t bytes              # of one panel of so many groups
    int64_t scales             # number of its scales
    int64_t together           # panels that are unpacked before they are multiplied


cdef inline Thread *enter_team(Team *team, Thread *threads) noexcept nogil:
    """Return the calling thread's entry, at the beginning of a parallel region."""
    cdef Thread *thread = &threads[omp_get_thread_num()]
    enter_region(&thread.member, team, omp_get_thread_num(), omp_get_num_threads())
    return thread


cdef Matrix matrix_of(object weight) except *
cdef Matrix matrix_of_shape(str type, shape, int group_size) except *
cdef PanelPlan plan_panels(const Kernels *kernels, const Matrix *w) noexcept nogil
cdef Activations activations(const Kernels *kernels, const Matrix *w, const Steps *steps, const float *values,
                             int n) noexcept nogil
cdef void prepare(const Kernels *kernels, const Matrix *w, const Activations *x, int column) noexcept nogil
cdef void start_columns(const Activations *x, int n, int kind, Thread *thread) noexcept nogil
cdef bint take_columns(const Activations *x, int n, Thread *thread, int *first, int *end) noexcept nogil
cdef void set_product(Products *products, const Matrix *w, float *y, Finish finish) noexcept nogil
cdef void start_products(const Kernels *kernels, Products *products, const Activations *x, int n, int kind,
                         Thread *thread) noexcept nogil
cdef void run_products(const Kernels *kernels, const Products *products, Thread *thread) noexcept nogil
cdef void lookup_row(const Kernels *kernels, const Matrix *w, int64_t row, float *y) noexcept nogil
