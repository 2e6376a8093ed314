"""How fast a team of threads can read memory: the limit of decoding, which reads every weight once per token.

Design: each thread sums its own share of the buffer, four streams at a time, with software prefetch. A single stream
without prefetch reads up to a third less per thread, because too few cache lines are on their way. Wider vectors gain
almost nothing. The sum itself has no meaning.
"""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from .openmp cimport share


cdef extern from *:
    """
    typedef uint64_t pair __attribute__((vector_size(16), aligned(8), may_alias));

    static uint64_t sum_streams(const uint64_t* memory, int64_t n) { /* n times 32 words */
      pair s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0};
      for (int64_t i = 0; i < n; i++, memory += 8) {
        const pair *a = (const pair*)memory, *b = (const pair*)(memory + 8 * n);
        const pair *c = (const pair*)(memory + 16 * n), *d = (const pair*)(memory + 24 * n);
        __builtin_prefetch(a + 64), __builtin_prefetch(b + 64), __builtin_prefetch(c + 64), __builtin_prefetch(d + 64);
        s0 += a[0], s1 += a[1], s0 += a[2], s1 += a[3];
        s2 += b[0], s3 += b[1], s2 += b[2], s3 += b[3];
        s4 += c[0], s5 += c[1], s4 += c[2], s5 += c[3];
        s6 += d[0], s7 += d[1], s6 += d[2], s7 += d[3];
      }
      s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7;
      return s0[0] + s0[1];
    }
    """
    uint64_t sum_streams(const uint64_t *memory, int64_t n) noexcept nogil

cdef enum:
    WORDS = 32  # words of a row of memory: a cache line of each stream


def touch(uint64_t[:, ::1] memory, int n_threads):
    """Zero memory (n, 32). Each thread zeroes the share that it reads in read(), so that it lies near that thread."""
    cdef int64_t first, last, n = memory.shape[0]
    cdef uint64_t *start = &memory[0, 0]
    cdef int part
    for part in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
        first, last = share(n, part, n_threads), share(n, part + 1, n_threads)
        memset(start + first * WORDS, 0, (last - first) * WORDS * sizeof(uint64_t))


def read(const uint64_t[:, ::1] memory, int n_threads):
    """Return the sum of memory (n, 32) modulo 2**64. Each thread reads its share once."""
    cdef int64_t first, last, n = memory.shape[0]
    cdef const uint64_t *start = &memory[0, 0]
    cdef uint64_t total = 0
    cdef int part
    for part in prange(n_threads, nogil=True, num_threads=n_threads, schedule="static"):
        first, last = share(n, part, n_threads), share(n, part + 1, n_threads)
        total += sum_streams(start + first * WORDS, last - first)
    return total
