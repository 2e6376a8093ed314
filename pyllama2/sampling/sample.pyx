"""The steps of sampler.py that go through the vocabulary: extremes, penalties, and the sampling of a token.

A weight is e^((logit - highest) / temperature), in float64. In a sharp distribution only few of 50,000 weights matter,
so only few are computed exactly:

    top_k    The k-th largest of the maxima of small groups is at most the k-th largest logit. Only logits that are not
             below it are looked at.
    top_p    Tokens near the highest logit are weighed exactly, the sum of all others roughly (loops.h). If the error of
             that sum could move the edge of the nucleus, or the edge is not near, this is repeated with more tokens,
             at last with the exact sum. The result is always that of exact sums.
    min_p    Weights that are too small are known by their logits.
    none     The sums of blocks, then the weights of the block in which the draw falls.

The vocabulary is not sorted: edge.pxd finds the edge of top_k and of the nucleus. The GIL is kept, because to take it
back can take longer than all of this. Arguments are not checked. Of logits, the highest must be finite and none may be
NaN.
"""

from libc.math cimport INFINITY, NAN, exp, fabs, log
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from .edge cimport Edge, find_edge, sum_of

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

cdef enum:
    BLOCK = 256  # tokens that are summed together where all are weighed
    NEAR = 8     # a token below the first cut of top_p has at most e^-8 of the mass that is left over


cdef struct Logits:
    const Loops *loops
    const float *values     # (n,)
    int64_t n
    double highest
    double temperature


cdef struct Tokens:         # tokens that can still be drawn
    int32_t *ids            # ascending
    double *weights
    double *spare           # (2 * vocab_size,) scratch
    int64_t n


# Shared by all calls, since fresh memory would cost more than the work in it. From reserve() to its last use of this
# memory, a call keeps the GIL and runs no Python.
cdef double *scratch = NULL
cdef int64_t scratch_size = 0  # in tokens
cdef int64_t token_bytes = 3 * sizeof(double) + sizeof(int32_t)


def extremes(const float[::1] logits):
    """The highest and lowest of logits (vocab_size,) float32; both are NaN if one of the logits is."""
    cdef Extremes result = loops_find().extremes(&logits[0], logits.shape[0])
    if result.nan:
        return NAN, NAN
    return result.highest, result.lowest


def penalize(float[::1] logits, token_ids, Py_ssize_t window_start, Py_ssize_t n_prompt, double repetition,
             double presence, double frequency):
    """Change logits (vocab_size,) float32 in place. Each penalty is computed in float64 and rounded once.

    repetition is for token_ids from window_start on, presence and frequency for those from n_prompt on. Raises
    IndexError for an id outside the vocabulary.
    """
    cdef int64_t vocab_size = logits.shape[0], token_id
    cdef Py_ssize_t i, first = min(window_start, n_prompt), n = len(token_ids) - first
    cdef int64_t *ids = <int64_t *> malloc((n + 1) * sizeof(int64_t))
    cdef int32_t *counts = <int32_t *> calloc(vocab_size, sizeof(int32_t))
    try:
        if ids is NULL or counts is NULL:
            raise MemoryError
        for i in range(n):
            token_id = token_ids[first + i]
            if not 0 <= token_id < vocab_size:
                raise IndexError(f"token id {token_id} is outside the vocabulary of {vocab_size}")
            ids[i] = token_id
        if repetition != 1:
            penalize_repetition(&logits[0], ids, window_start - first, n, repetition, counts)
        if presence != 0 or frequency != 0:
            penalize_counts(&logits[0], ids, n_prompt - first, n, presence, frequency, counts)
    finally:
        free(ids)
        free(counts)


def forbid(float[::1] logits, const uint32_t[::1] mask):
    """Set logits (vocab_size,) float32 to -inf in place where mask (at least vocab_size / 32,) uint32 has a 0.

    Bit i % 32 of mask[i // 32] belongs to token i. Returns whether mask has a 1.
    """
    cdef int64_t n = logits.shape[0], word, i
    cdef uint32_t bits, any = 0
    cdef float *row
    for word in range((n + 31) // 32):
        bits = mask[word]
        if bits == 0xFFFFFFFF:
            any = 1
            continue
        row = &logits[32 * word]
        for i in range(min(<int64_t> 32, n - 32 * word)):
            any |= bits >> i & 1
            if not bits >> i & 1:
                row[i] = -INFINITY
    return any != 0


def few_allowed(const uint32_t[::1] mask, int64_t vocab_size, int64_t most):
    """Ids of the tokens of which mask, as in forbid(), has a 1; ascending. None if they are more than most."""
    cdef int64_t word, i
    cdef uint32_t bits
    found = []
    for word in range((vocab_size + 31) // 32):
        bits = mask[word]
        for i in range(32):
            if bits == 0:
                break
            if bits & 1 and 32 * word + i < vocab_size:
                if len(found) == most:
                    return None
                found.append(32 * word + i)
            bits >>= 1
    return found


def sample(const float[::1] logits, double highest, double temperature, top_k, double top_p, double min_p,
           double uniform):
    """The id of the token on which a draw falls.

    Of the tokens that top_k, top_p and min_p leave, in ascending order of ids, it is the first with which the mass so
    far exceeds uniform, in [0, 1), times the mass of all. highest is the highest of logits (vocab_size,) float32;
    temperature > 0; top_k 0 is off.
    """
    cdef Logits row
    cdef Tokens tokens
    row.loops, row.values, row.n = loops_find(), &logits[0], logits.shape[0]
    row.highest, row.temperature = highest, temperature
    cdef int64_t k = min(top_k, row.n)
    reserve(&tokens, row.n)
    if 0 < k < row.n:
        keep_largest(&row, k, &tokens)
        weigh(&row, &tokens)
        if top_p < 1:
            keep_nucleus(&tokens, top_p, 0.0, 0.0, 0.0)
    elif top_p < 1:
        find_nucleus(&row, top_p, &tokens)
    elif min_p > 0:
        keep_near(&row, -log(min_p), &tokens)
    else:
        return draw_of_all(&row, uniform, tokens.spare, tokens.weights)
    if min_p > 0:
        keep(&tokens, min_p, tokens.n)
    return tokens.ids[draw(&tokens, uniform)]


def largest(const float[::1] logits, int64_t k):
    """Ids (k,) int64, ascending, of the k largest of logits (n,); of equal logits the lowest ids. 0 < k <= n."""
    cdef Logits row
    cdef Tokens tokens
    cdef int64_t i
    ids = np.empty(k, np.int64)  # before scratch memory is in use: this may let other threads run
    cdef int64_t[::1] view = ids
    row.loops, row.values, row.n, row.highest = loops_find(), &logits[0], logits.shape[0], INFINITY
    reserve(&tokens, row.n)
    keep_largest(&row, k, &tokens)
    for i in range(k):
        view[i] = tokens.ids[i]
    return ids


def log_sum(const float[::1] logits, double highest):
    """Natural logarithm of the sum of e^(logit - highest) over logits (vocab_size,)."""
    return log(loops_find().sum_below(&logits[0], logits.shape[0], highest, 1.0, INFINITY))


cdef void penalize_repetition(float *logits, const int64_t *ids, Py_ssize_t start, Py_ssize_t n, double penalty,
                              int32_t *counts) noexcept nogil:
    """counts (vocab_size,) must be zeros, and are zeros afterwards."""
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
    """counts (vocab_size,) must be zeros, and are zeros afterwards."""
    cdef Py_ssize_t i
    for i in range(start, n):
        counts[ids[i]] += 1
    for i in range(start, n):
        if counts[ids[i]] > 0:
            logits[ids[i]] = <float> (logits[ids[i]] - (presence + frequency * counts[ids[i]]))
            counts[ids[i]] = 0


def scratch_array():
    """A view (n_bytes,) uint8 of scratch memory, valid until the next call; empty before the first."""
    if scratch_size == 0:
        return np.empty(0, np.uint8)
    return np.asarray(<uint8_t[:scratch_size * token_bytes]> <uint8_t *> scratch)


cdef int reserve(Tokens *tokens, int64_t vocab_size) except -1:
    """Give tokens scratch memory for one call."""
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


cdef float keep_near(const Logits *row, double depth, Tokens *tokens) noexcept nogil:
    """Keep and weigh all tokens of weight e^-depth or more, and some just below. Returns the cut: lower logits are out.
    """
    # The cut is lowered by more than rounding errors here and in the weights. Its conversion to float32 cannot lift it
    # above a logit that was not below it.
    cdef double width = (depth + 1e-9) * row.temperature
    cdef float cut = <float> (row.highest - width - 1e-15 * (fabs(row.highest) + width))
    tokens.n = row.loops.at_least(row.values, row.n, cut, tokens.ids)
    weigh(row, tokens)
    return cut


cdef void weigh(const Logits *row, Tokens *tokens) noexcept nogil:
    cdef int64_t i
    for i in range(tokens.n):
        tokens.weights[i] = (row.values[tokens.ids[i]] - row.highest) / row.temperature
    row.loops.exponentials(tokens.weights, tokens.n)


cdef void keep_largest(const Logits *row, int64_t k, Tokens *tokens) noexcept nogil:
    """Keep the k largest logits; of equal logits the lowest ids."""
    cdef float *maxima = <float *> tokens.weights
    cdef float cut = -INFINITY
    cdef int64_t i, n = row.loops.group_maxima(row.values, row.n, maxima)
    if k <= n // 2:
        for i in range(n):
            tokens.spare[i] = maxima[i] + 0.0  # -0.0 becomes 0.0, which it equals
        cut = <float> find_edge(tokens.spare, tokens.spare + n, n, -INFINITY, row.highest, k - 1, True).value
    tokens.n = row.loops.at_least(row.values, row.n, cut, tokens.ids)
    for i in range(tokens.n):
        tokens.weights[i] = tokens.spare[i] = row.values[tokens.ids[i]] + 0.0
    cdef Edge edge = find_edge(tokens.spare, tokens.spare + tokens.n, tokens.n, cut, row.highest, k - 1, True)
    keep(tokens, edge.value, edge.equals)


cdef void find_nucleus(const Logits *row, double top_p, Tokens *tokens) noexcept nogil:
    """Keep and weigh the tokens that top_p keeps of all."""
    cdef double left = 1 - top_p, below, error
    cdef float cut
    cdef int attempt
    for attempt in range(3):
        # All tokens below the second depth weigh less than left / e together, so they are outside.
        cut = keep_near(row, NEAR - log(left) if attempt == 0 else 1 + log(row.n / left), tokens)
        if attempt == 0 and tokens.n > row.n // 8:
            continue  # a flat distribution: too much of the mass may be below the cut
        if attempt < 2:
            below = row.loops.rough_sum_below(row.values, row.n, <float> row.highest, row.temperature, cut)
            error = 1e-5 * below + 1e-9
            # Tokens that weigh the same must all be near, or all outside.
            if keep_nucleus(tokens, top_p, below - error, below + error,
                            exp((cut - row.highest) / row.temperature) * (1 + 1e-9)):
                return
        else:
            below = row.loops.sum_below(row.values, row.n, row.highest, row.temperature, cut)
            keep_nucleus(tokens, top_p, below, below, 0.0)


cdef bint keep_nucleus(Tokens *tokens, double top_p, double below_low, double below_high, double limit) noexcept nogil:
    """Drop the tokens that top_p drops. Those that are dropped already weigh between below_low and below_high together.

    Returns False, and drops nothing, when the last token to keep depends on that sum, or its weight is not above limit.
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
    """Drop the tokens that weigh less than value, and of those that weigh value all but the first equals."""
    cdef int64_t i, n = 0
    cdef double weight
    cdef bint tie
    for i in range(tokens.n):  # without branches, which the processor could not predict
        weight = tokens.weights[i]
        tie = (weight == value) & (equals > 0)
        equals -= tie
        tokens.ids[n], tokens.weights[n] = tokens.ids[i], weight
        n += (weight > value) | tie
    tokens.n = n


cdef int64_t draw(const Tokens *tokens, double uniform) noexcept nogil:
    """The first index at which the sum of the weights up to it exceeds uniform times their total."""
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


cdef int64_t draw_of_all(const Logits *row, double uniform, double *sums, double *weights) noexcept nogil:
    """The id on which the draw falls among all tokens. sums and weights (n,) are scratch."""
    cdef int64_t i, block, first, count, n_blocks = (row.n + BLOCK - 1) // BLOCK, last = 0
    cdef double sum = 0.0, mass = 0.0, wanted
    for block in range(n_blocks):
        first = block * BLOCK
        sums[block] = row.loops.sum_below(row.values + first, min(<int64_t> BLOCK, row.n - first), row.highest,
                                          row.temperature, INFINITY)
        sum += sums[block]
    wanted = uniform * sum
    block = 0
    while block < n_blocks - 1 and mass + sums[block] <= wanted:
        mass += sums[block]
        block += 1
    first, count = block * BLOCK, min(<int64_t> BLOCK, row.n - block * BLOCK)
    for i in range(count):
        weights[i] = (row.values[first + i] - row.highest) / row.temperature
    row.loops.exponentials(weights, count)
    for i in range(count):
        mass += weights[i]
        if weights[i] > 0:
            last = i
            if mass > wanted:
                break
    return first + last  # the last that can be drawn, if the block's sum was rounded up
