"""All that this package uses of OpenMP's run time.

Design: a parallel region computes layers of a chunk of tokens (forward.pyx). How its threads share each step is in
team.h. The size of the team is that of the region: OpenMP may give fewer threads than were asked for (OMP_THREAD_LIMIT,
OMP_DYNAMIC, OMP_MAX_ACTIVE_LEVELS, a region within another).
"""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <omp.h>
    static inline int team_of(int n_threads) {
      int size = 0;
      _Pragma("omp parallel num_threads(n_threads)") {
        _Pragma("omp single")
        size = omp_get_num_threads();
      }
      return size;
    }

    /* LLVM's run time makes new teams in a forked child by itself. */
    static inline void end_idle_team(void) {
    #if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
      omp_pause_resource_all(omp_pause_soft);
    #endif
    }
    """
    int team_of(int n_threads) noexcept nogil
    void end_idle_team() noexcept nogil
    double omp_get_wtime() noexcept nogil
    int omp_get_thread_num() noexcept nogil
    int omp_get_num_threads() noexcept nogil


cdef inline int64_t share(int64_t n, int part, int parts) noexcept nogil:
    """The first of n items that a part has. The part ends where the next one begins."""
    return n * part // parts
