"""All that this package knows of OpenMP's run time.

Design: a parallel region is entered once per chunk of tokens (forward.pyx). Every step inside it is a function of the
thread's number and the team's size, which takes its own share of rows, tokens or heads and meets the others at
barriers.
"""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <omp.h>
    static inline void team_barrier(void) { _Pragma("omp barrier") }
    """
    void team_barrier() noexcept nogil
    double omp_get_wtime() noexcept nogil


cdef inline int64_t share(int64_t n, int part, int parts) noexcept nogil:
    """First of n things that belong to a part; the next part's first is where it ends."""
    return n * part // parts
