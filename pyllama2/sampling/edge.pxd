"""The edge of what a cut keeps, the smallest value that is still in, without sorting all values.

The range of values in which the edge lies is halved again and again. Each step moves the values of one half to the
front, so that passes go over ever fewer of them. The few that are left at the end are sorted.
"""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "loops.h":
    uint64_t ordered_bits(double x) noexcept nogil
    double from_ordered_bits(uint64_t bits) noexcept nogil

cdef enum:
    FEW = 24  # values that are sorted rather than divided further


cdef struct Edge:           # the smallest value that is kept
    double value
    int64_t equals          # how many values equal to it are kept: those with the lowest ids
    double before           # the mass of all that is kept before the last


cdef inline Edge find_edge(double *values, double *other, int64_t n, double lowest, double highest, double target,
                           bint counted) noexcept nogil:
    """Of values (n,), largest first, the last one with no more mass before it than target, which is at least 0.

    The mass of a value is the value itself, or 1 if counted. All values lie between lowest and highest. values and
    other, (n,) scratch, are overwritten.
    """
    cdef uint64_t middle, low = ordered_bits(lowest), high = ordered_bits(highest)
    cdef int64_t i, n_upper, n_lower
    cdef double value, pivot, mass, before = 0.0
    while n > FEW and low < high:
        middle = low + (high - low) // 2 + 1
        pivot = from_ordered_bits(middle)
        n_upper = 0
        for i in range(n):  # without branches, which the processor could not predict
            value = values[i]
            values[n_upper], other[i - n_upper] = value, value
            n_upper += value >= pivot
        n_lower = n - n_upper
        if n_lower > 0:
            mass = n_upper if counted else sum_of(values, n_upper)
            if before + mass > target:
                n, low = n_upper, middle
                continue
            before += mass
            values, other = other, values
        n = n_lower if n_lower > 0 else n_upper
        high = middle - 1
        if n_upper == 0 or n_lower == 0:  # the range is much too wide, or all values are equal
            lowest = highest = values[0]
            for i in range(1, n):
                lowest, highest = min(lowest, values[i]), max(highest, values[i])
            low, high = ordered_bits(lowest), ordered_bits(highest)
    if low < high:
        sort_descending(values, n)
    cdef Edge edge
    edge.value, edge.equals, edge.before = values[0], 1, before
    for i in range(1, n):
        before += 1.0 if counted else values[i - 1]
        if before > target:
            break
        edge.equals = edge.equals + 1 if values[i] == edge.value else 1
        edge.value, edge.before = values[i], before
    return edge


cdef inline void sort_descending(double *values, int64_t n) noexcept nogil:
    cdef int64_t i, j
    cdef double value
    for i in range(1, n):
        value, j = values[i], i
        while j > 0 and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


cdef inline double sum_of(const double *values, int64_t n) noexcept nogil:
    """The sum, in four lanes that do not wait for each other."""
    cdef double[4] lanes
    cdef int64_t i, j
    lanes[0] = lanes[1] = lanes[2] = lanes[3] = 0.0
    for i in range(0, n - 3, 4):
        for j in range(4):
            lanes[j] += values[i + j]
    for i in range(n - n % 4, n):
        lanes[0] += values[i]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
