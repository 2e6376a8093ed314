"""The steps of sampling.py that walk over the vocabulary: extremes, penalties, and the choice of a token.

A weight is e^((logit - highest) / temperature), in float64. With a sharp distribution few of 50,000 weights matter, so
few are computed exactly:

    top_k    the k-th largest of the maxima of small groups is below the k-th largest logit: what is not is selected
    top_p    the tokens near the highest logit are weighed exactly, the sum of all others roughly (loops.h). If the edge
             of the nucleus could be another one within the error of that sum, or is not near, it is done again with
             more tokens, at last with the exact sum: the result is always that of exact sums
    min_p    weights that are too small are known by their logits
    none     sums of blocks, and then the weights of the block in which the draw falls

Nothing is sorted: the edge of top_k and of the nucleus is found by halving the range of values in which it lies, in
passes over ever fewer of them. The GIL is kept, since taking it back can take longer than all of this. Python checks
arguments; of logits there must be a finite highest and no NaN.
"""

from libc.math cimport INFINITY, NAN, exp, fabs, log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import numpy as np


cdef extern from "loops.h":
    ctypedef struct Extremes:
        float highest
        float lowest
        bint nan
    ctypedef struct Loops:
        const char *name
        Extremes (*extremes)(const float *x, int64_t n) noexcept nogil
        int64_t (*group_maxima)(const float *x, int64_t n, float *maxima) noexcept nogil
        int64_t (*at_least)(const float *x, int64_t n, float cut, int32_t *places) noexcept nogil
        double (*rough_sum_below)(const float *x, int64_t n, float highest, double temperature,
                                  float cut) noexcept nogil
        double (*sum_below)(const float *x, int64_t n, double highest, double temperature, float cut) noexcept nogil
        void (*exponentials)(double *x, int64_t n) noexcept nogil
    const Loops *loops_find() noexcept nogil
    uint64_t ordered_bits(double x) noexcept nogil
    double from_ordered_bits(uint64_t bits) noexcept nogil

cdef enum:
    FEW = 24     # values that are sorted rather than divided further
    BLOCK = 256  # tokens that are summed together where all are weighed
    NEAR = 8     # a token below the first cut of top_p has at most e^-8 of the mass that is left over


cdef struct Logits:
    const Loops *loops
    const float *values     # (n,)
    int64_t n
    double highest
    double temperature


cdef struct Tokens:         # those that can still be drawn
    int32_t *ids            # ascending
    double *weights
    double *spare           # (2 * vocab_size,) scratch
    int64_t n


# Of all calls, since fresh memory would cost more than what is done in it. Between reserve() and the last use of it a
# call keeps the GIL and runs no Python.
cdef double *scratch = NULL
cdef int64_t scratch_size = 0  # tokens
cdef int64_t token_bytes = 3 * sizeof(double) + sizeof(int32_t)


cdef struct Edge:           # of the largest values, the last that is kept
    double value
    int64_t equals          # how many equal to it are kept: those with the lowest ids
    double before           # the mass before the last


def extremes(const float[::1] logits):
    """The highest and lowest of logits (vocab_size,); both NaN if one of them is."""
    cdef Extremes found = loops_find().extremes(&logits[0], logits.shape[0])
    if found.nan:
        return NAN, NAN
    return found.highest, found.lowest


def penalize(float[::1] logits, token_ids, Py_ssize_t window_start, Py_ssize_t n_prompt, double repetition,
             double presence, double frequency):
    """Change logits (vocab_size,) in place, each as float64 that is rounded once per penalty.

    repetition counts token_ids from window_start on, presence and frequency those from n_prompt on. Raises IndexError
    for an id outside the vocabulary.
    """
    cdef int64_t vocab_size = logits.shape[0], id
    cdef Py_ssize_t i, first = min(window_start, n_prompt), n = len(token_ids) - first
    cdef int64_t *ids = <int64_t *> malloc((n + 1) * sizeof(int64_t))
    cdef int32_t *counts = <int32_t *> calloc(vocab_size, sizeof(int32_t))
    try:
        if ids is NULL or counts is NULL:
            raise MemoryError
        for i in range(n):
            id = token_ids[first + i]
            if not 0 <= id < vocab_size:
                raise IndexError(f"token id {id} is outside the vocabulary of {vocab_size}")
            ids[i] = id
        if repetition != 1:
            penalize_repetition(&logits[0], ids, window_start - first, n, repetition, counts)
        if presence != 0 or frequency != 0:
            penalize_counts(&logits[0], ids, n_prompt - first, n, presence, frequency, counts)
    finally:
        free(ids)
        free(counts)


def choose(const float[::1] logits, double highest, double temperature, top_k, double top_p, double min_p,
           double uniform):
    """The token on which a draw falls: uniform, in [0, 1), of the mass of those that the cuts leave, by ascending id.

    highest is that of logits (vocab_size,); temperature > 0; top_k 0 is off.
    """
    cdef Logits all
    cdef Tokens tokens
    all.loops, all.values, all.n = loops_find(), &logits[0], logits.shape[0]
    all.highest, all.temperature = highest, temperature
    cdef int64_t k = min(top_k, all.n)
    reserve(&tokens, all.n)
    if 0 < k < all.n:
        keep_largest(&all, k, &tokens)
        weigh(&all, &tokens)
        if top_p < 1:
            keep_nucleus(&tokens, top_p, 0.0, 0.0, 0.0)
    elif top_p < 1:
        find_nucleus(&all, top_p, &tokens)
    elif min_p > 0:
        take_near(&all, -log(min_p), &tokens)
    else:
        return draw_of_all(&all, uniform, tokens.spare, tokens.weights)
    if min_p > 0:
        keep(&tokens, min_p, tokens.n)
    return tokens.ids[draw(&tokens, uniform)]


def largest(const float[::1] logits, int64_t k):
    """Ascending ids (k,) of the k largest of logits (n,), of equals the lowest; 0 < k <= n."""
    cdef Logits all
    cdef Tokens tokens
    cdef int64_t i
    ids = np.empty(k, np.int64)  # before scratch memory is in use: other threads may run meanwhile
    cdef int64_t[::1] view = ids
    all.loops, all.values, all.n, all.highest = loops_find(), &logits[0], logits.shape[0], INFINITY
    reserve(&tokens, all.n)
    keep_largest(&all, k, &tokens)
    for i in range(k):
        view[i] = tokens.ids[i]
    return ids


def log_sum(const float[::1] logits, double highest):
    """Natural logarithm of the sum of e^(logit - highest), which are at most 1."""
    return log(loops_find().sum_below(&logits[0], logits.shape[0], highest, 1.0, INFINITY))


cdef void penalize_repetition(float *logits, const int64_t *ids, Py_ssize_t start, Py_ssize_t n, double penalty,
                              int32_t *counts) noexcept nogil:
    """counts (vocab_size,) are zeros, before and after."""
    cdef Py_ssize_t i
    cdef double value
    for i in range(start, n):
        if counts[ids[i]] == 0:
            counts[ids[i]] = 1
            value = logits[ids[i]]
            logits[ids[i]] = <float> (value / penalty if value > 0 else value * penalty)
    for i in range(start, n):
        counts[ids[i]] = 0


cdef void penalize_counts(float *logits, const int64_t *ids, Py_ssize_t start, Py_ssize_t n, double presence,
                          double frequency, int32_t *counts) noexcept nogil:
    """Likewise."""
    cdef Py_ssize_t i
    for i in range(start, n):
        counts[ids[i]] += 1
    for i in range(start, n):
        if counts[ids[i]] > 0:
            logits[ids[i]] = <float> (logits[ids[i]] - (presence + frequency * counts[ids[i]]))
            counts[ids[i]] = 0


def scratch_array():
    """Scratch memory as it is now, (bytes,) uint8, to be looked at before any other call; empty before the first."""
    if scratch_size == 0:
        return np.empty(0, np.uint8)
    return np.asarray(<uint8_t[:scratch_size * token_bytes]> <uint8_t *> scratch)


cdef int reserve(Tokens *tokens, int64_t vocab_size) except -1:
    """Scratch memory for one call."""
    global scratch, scratch_size
    if vocab_size > scratch_size:
        free(scratch)
        scratch, scratch_size = <double *> malloc(vocab_size * token_bytes), vocab_size
        if scratch is NULL:
            scratch_size = 0
            raise MemoryError
    tokens.weights, tokens.spare = scratch, scratch + vocab_size
    tokens.ids, tokens.n = <int32_t *> (scratch + 3 * vocab_size), 0
    return 0


cdef float take_near(const Logits *all, double depth, Tokens *tokens) noexcept nogil:
    """Take and weigh all tokens of at least e^-depth, and some that are hardly less. Returns the lowest logit taken."""
    # Lowered by more than the rounding of this and of the weights. Conversion to float32 cannot take it above a logit
    # that it was not above.
    cdef double width = (depth + 1e-9) * all.temperature
    cdef float cut = <float> (all.highest - width - 1e-15 * (fabs(all.highest) + width))
    tokens.n = all.loops.at_least(all.values, all.n, cut, tokens.ids)
    weigh(all, tokens)
    return cut


cdef void weigh(const Logits *all, Tokens *tokens) noexcept nogil:
    cdef int64_t i
    for i in range(tokens.n):
        tokens.weights[i] = (all.values[tokens.ids[i]] - all.highest) / all.temperature
    all.loops.exponentials(tokens.weights, tokens.n)


cdef void keep_largest(const Logits *all, int64_t k, Tokens *tokens) noexcept nogil:
    """Take the k largest logits, of equals the lowest ids."""
    cdef float *maxima = <float *> tokens.weights
    cdef float cut = -INFINITY
    cdef int64_t i, n = all.loops.group_maxima(all.values, all.n, maxima)
    if k <= n // 2:
        for i in range(n):
            tokens.spare[i] = maxima[i] + 0.0  # -0.0 becomes 0.0, which it equals
        cut = <float> find_edge(tokens.spare, tokens.spare + n, n, -INFINITY, all.highest, k - 1, True).value
    tokens.n = all.loops.at_least(all.values, all.n, cut, tokens.ids)
    for i in range(tokens.n):
        tokens.weights[i] = tokens.spare[i] = all.values[tokens.ids[i]] + 0.0
    cdef Edge edge = find_edge(tokens.spare, tokens.spare + tokens.n, tokens.n, cut, all.highest, k - 1, True)
    keep(tokens, edge.value, edge.equals)


cdef void find_nucleus(const Logits *all, double top_p, Tokens *tokens) noexcept nogil:
    """Take and weigh the tokens that top_p keeps of all."""
    cdef double left = 1 - top_p, below, error
    cdef float cut
    cdef int attempt
    for attempt in range(3):
        # All tokens below the second depth have less than left / e together, so they are outside.
        cut = take_near(all, NEAR - log(left) if attempt == 0 else 1 + log(all.n / left), tokens)
        if attempt == 0 and tokens.n > all.n // 8:
            continue  # flat: too much of the mass may be below
        if attempt < 2:
            below = all.loops.rough_sum_below(all.values, all.n, <float> all.highest, all.temperature, cut)
            error = 1e-5 * below + 1e-9
            # Tokens that weigh the same must all be near, or all outside.
            if keep_nucleus(tokens, top_p, below - error, below + error,
                            exp((cut - all.highest) / all.temperature) * (1 + 1e-9)):
                return
        else:
            below = all.loops.sum_below(all.values, all.n, all.highest, all.temperature, cut)
            keep_nucleus(tokens, top_p, below, below, 0.0)


cdef bint keep_nucleus(Tokens *tokens, double top_p, double below_low, double below_high, double limit) noexcept nogil:
    """Drop the tokens that top_p drops, when those that were not taken have a sum between below_low and below_high.

    False, and nothing is dropped, when the last that is kept depends on that sum, or is not above limit.
    """
    cdef double sum = sum_of(tokens.weights, tokens.n)
    cdef double target = top_p * (sum + below_high)
    if below_high > 0 and sum <= target:
        return False
    memcpy(tokens.spare, tokens.weights, tokens.n * sizeof(double))
    cdef Edge edge = find_edge(tokens.spare, tokens.spare + tokens.n, tokens.n, 0.0, 1.0, target, False)
    if edge.before > top_p * (sum + below_low) or edge.value <= limit:
        return False
    keep(tokens, edge.value, edge.equals)
    return True


cdef void keep(Tokens *tokens, double value, int64_t equals) noexcept nogil:
    """Drop the tokens that weigh less than value, and those that weigh as much after the first so many."""
    cdef int64_t i, n = 0
    cdef double weight
    cdef bint tie
    for i in range(tokens.n):  # without branches, which could not be foretold
        weight = tokens.weights[i]
        tie = (weight == value) & (equals > 0)
        equals -= tie
        tokens.ids[n], tokens.weights[n] = tokens.ids[i], weight
        n += (weight > value) | tie
    tokens.n = n


cdef Edge find_edge(double *values, double *other, int64_t n, double lowest, double highest, double target,
                    bint counted) noexcept nogil:
    """The last of values (n,), largest first, before which there is no more mass than target, at least 0.

    The mass of a value is the value itself, or 1 if they are counted. All lie between lowest and highest. values and
    other (n,) are overwritten.
    """
    cdef uint64_t middle, low = ordered_bits(lowest), high = ordered_bits(highest)
    cdef int64_t i, n_upper, n_lower
    cdef double value, pivot, mass, before = 0.0
    while n > FEW and low < high:
        middle = low + (high - low) // 2 + 1
        pivot = from_ordered_bits(middle)
        n_upper = 0
        for i in range(n):  # likewise
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
        if n_upper == 0 or n_lower == 0:  # the range is much too wide, or all are equal
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


cdef void sort_descending(double *values, int64_t n) noexcept nogil:
    cdef int64_t i, j
    cdef double value
    for i in range(1, n):
        value, j = values[i], i
        while j > 0 and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


cdef double sum_of(const double *values, int64_t n) noexcept nogil:
    """In four lanes, which do not wait for each other."""
    cdef double[4] lanes
    cdef int64_t i, j
    lanes[0] = lanes[1] = lanes[2] = lanes[3] = 0.0
    for i in range(0, n - 3, 4):
        for j in range(4):
            lanes[j] += values[i + j]
    for i in range(n - n % 4, n):
        lanes[0] += values[i]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef int64_t draw(const Tokens *tokens, double uniform) noexcept nogil:
    """The place at which the sum of weights first exceeds a share of their sum."""
    cdef double mass = 0.0, sum = 0.0
    cdef int64_t i
    for i in range(tokens.n):
        sum += tokens.weights[i]
    for i in range(tokens.n):
        mass += tokens.weights[i]
        # uniform <= 1 - 2**-53, so the product is below the sum even when rounded, and some mass exceeds it.
        if mass > uniform * sum:
            return i
    return tokens.n - 1


cdef int64_t draw_of_all(const Logits *all, double uniform, double *sums, double *weights) noexcept nogil:
    """The same of all tokens; sums and weights (n,) are scratch."""
    cdef int64_t i, block, first, count, n_blocks = (all.n + BLOCK - 1) // BLOCK, last = 0
    cdef double sum = 0.0, mass = 0.0, wanted
    for block in range(n_blocks):
        first = block * BLOCK
        sums[block] = all.loops.sum_below(all.values + first, min(<int64_t> BLOCK, all.n - first), all.highest,
                                          all.temperature, INFINITY)
        sum += sums[block]
    wanted = uniform * sum
    block = 0
    while block < n_blocks - 1 and mass + sums[block] <= wanted:
        mass += sums[block]
        block += 1
    first, count = block * BLOCK, min(<int64_t> BLOCK, all.n - block * BLOCK)
    for i in range(count):
        weights[i] = (all.values[first + i] - all.highest) / all.temperature
    all.loops.exponentials(weights, count)
    for i in range(count):
        mass += weights[i]
        if weights[i] > 0:
            last = i
            if mass > wanted:
                break
    return first + last  # the last that can be drawn, where the sum of the block was rounded up
