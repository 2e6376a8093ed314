"""Products of a weight matrix with activations, one thread's share at a time."""

from libc.stdint cimport int32_t, int64_t

from .kernels cimport Activations, Kernels, Matrix
from .openmp cimport omp_get_num_threads, omp_get_thread_num

cdef enum:
    PANEL_BYTES = 512 * 1024   # of packed weights that a thread multiplies with all columns; a part of the L2 cache
    PANEL_INPUTS = 1024        # inputs of a quantized matrix that are packed together


cdef struct Steps:             # memory for prepared activations, see struct Activations
    void *codes
    float *scales
    int32_t *offsets


cdef struct Thread:
    int id
    int team                   # number of threads of the current region, see enter_team()
    Steps steps                # of one column that only this thread uses
    float *normed              # (dim,) of one token
    float *tile                # (columns, 8), for whole tiles of columns
    void *panels               # packed weights of some panels, and their scales
    float *panel_scales
    float *totals              # (columns, rows of those panels)


cdef class Scratch:
    """Aligned memory for products with any of the matrices that cover() was called for."""
    cdef const Kernels *kernels
    cdef readonly list arrays
    cdef readonly int64_t nbytes
    cdef bint counts_only
    cdef int64_t n_steps, n_groups, panel_bytes, panel_scales, panel_rows  # largest that any matrix needs

    cdef void cover(self, const Matrix *w) noexcept
    cdef void *allocate(self, int64_t n_bytes) except? NULL
    cdef int allocate_steps(self, Steps *steps, int64_t columns) except -1
    cdef int allocate_thread(self, Thread *thread, int id, int64_t columns) except -1


cdef struct PanelPlan:         # how multiply_panels() cuts a matrix
    int64_t groups             # groups that are packed at a time
    int64_t bytes              # of one panel of so many groups
    int64_t scales             # number of its scales
    int64_t together           # panels that are unpacked before they are multiplied


cdef inline Thread *enter_team(Thread *threads) noexcept nogil:
    """Return the calling thread's entry, at the beginning of a parallel region, and note the size of the team."""
    cdef Thread *thread = &threads[omp_get_thread_num()]
    thread.team = omp_get_num_threads()
    return thread


cdef Matrix matrix_of(object weight) except *
cdef Matrix matrix_of_shape(str type, shape, int group_size) except *
cdef PanelPlan plan_panels(const Kernels *kernels, const Matrix *w) noexcept nogil
cdef Activations activations(const Kernels *kernels, const Matrix *w, const Steps *steps, const float *values,
                             int n) noexcept nogil
cdef void prepare(const Kernels *kernels, const Matrix *w, const Activations *x, int column) noexcept nogil
cdef void matmul(const Kernels *kernels, const Matrix *w, const Activations *x, int n, float *y, bint add,
                 Thread *thread) noexcept nogil
cdef int64_t first_row(const Kernels *kernels, const Matrix *w, const Activations *x, const Thread *thread,
                       int further) noexcept nogil
cdef int first_column(const Activations *x, int n, const Thread *thread, int further) noexcept nogil
cdef void prepare_share(const Kernels *kernels, const Matrix *w, const Activations *x, int n,
                        const Thread *thread) noexcept nogil
cdef void lookup_row(const Kernels *kernels, const Matrix *w, int64_t row, float *y) noexcept nogil
