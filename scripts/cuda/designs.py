"""The nodes of a decoding step of Llama-2 7B: of this project's kernels, and of calm's, as the model takes them.

Chains are read from the source of the kernels: kernels/product.cu, norm.cu, quantize.cu, attention.cu. Blocks and bytes
follow from the sizes, residents and instructions from the compiler (compiled.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cards import Card
from compiled import HALVES, NORMED, Counted
from llama_7b import DIM, GROUP, HEAD_DIM, HIDDEN_DIM, N_HEADS, N_LAYERS, VOCAB_SIZE, matrix_bytes
from step_model import Chain, Node, Step

THREADS, SPAN_THREADS = 512, 256  # of products, and of attention
FLIGHT = 64  # bytes of weights that a lane has in flight, as Plan of product.cu makes it for one column
ATTEND_FLIGHT = 256 + 64  # keys that a thread loads before it needs the first, and its share of a chunk of values
LATE_FLIGHT = 128 + 64  # where the queries come first
SPAN, CHUNK = 256, 64  # positions, as in attention.cu
TILE = 32
TILE_AHEAD, SHARE = 64 << 10, 4  # bytes of a tile, and part of the L2 cache, that are prefetched: prefetch.py
STAGED = 32  # groups that a warp adds up after the last barrier


@dataclass(frozen=True)
class Design:
    """What the kernels do.

    Attributes:
        name: for tables.
        norms_at_head: the block that needs a normed vector norms it, with 512 sums. Else the last block of the kernel
            before does it, with 8 sums.
        half_tiles: wo and w2 have a block for each half of a tile, if there are fewer tiles than multiprocessors.
        early_keys: attention loads keys and values before it needs the queries, has a thread for each weight, and loads
            values while others are added up. Factors of all merges are found at once.
        ahead: the next step is given to the GPU before the host has the token.
        prefetches: a kernel prefetches the first bytes of the matrix that the next one reads.
    """

    name: str
    norms_at_head: bool = False
    half_tiles: bool = False
    early_keys: bool = False
    ahead: bool = False
    prefetches: bool = False


# Each adds something to the one before it. The last one is what the source has.
STAGES = (
    Design("before"),
    Design("norms", norms_at_head=True),
    Design("half tiles", norms_at_head=True, half_tiles=True),
    Design("ahead", norms_at_head=True, half_tiles=True, ahead=True),
    Design("attention", norms_at_head=True, half_tiles=True, early_keys=True, ahead=True),
    Design("prefetch", norms_at_head=True, half_tiles=True, early_keys=True, ahead=True, prefetches=True),
)

# The host gets the token, chooses what to do, and gives the next graph: an assumption for this project's Python.
HOST_US = 150.0
# What the GPU has between two graphs if the host is ahead of it: a copy of the token, which takes 2 us, as the start of
# a graph does: assumptions. A text that is not greedy has a copy of its next random number, too.
AHEAD_US = 2.0 + 2.0

_STORE = Chain(l2=1)
QUANTIZE_GROUP = Chain(shuffles=10, alu=25)  # maximum, division, codes, sum
ROOT = Chain(alu=25)  # a square root and a division
# The last block: it finds out that it is the last, adds dim squares in eight sums, and quantizes four groups a warp.
_NORM_BY_LAST = (
    Chain(barriers=2, atomics=1, l2=1, alu=2)
    + Chain(barriers=2 * DIM / 1024, shared=DIM / 1024, alu=DIM / 8, shuffles=3)
    + ROOT + Chain(l2=1, dram=1)
    + QUANTIZE_GROUP.times(DIM / GROUP / 16)
)  # fmt: skip
# Each block: 512 sums of dim / 512 squares, added up in a warp and between warps; then the groups of its first step.
_NORM_AT_HEAD = (
    Chain(l2=1, alu=1 + DIM / THREADS, shuffles=5, shared=1, barriers=1)
    + Chain(shuffles=4) + ROOT + Chain(shared=2, alu=4) + QUANTIZE_GROUP + Chain(shared=1)
)  # fmt: skip
SWIGLU = Chain(alu=35) + Chain(barriers=2, atomics=1, l2=1) + QUANTIZE_GROUP


def add_up(staged: int) -> Chain:
    """Return what a warp does after the last barrier, with so many groups: it loads the numbers of eight at a time."""
    return Chain(barriers=1, shared=1 + staged / 8, alu=staged + 4)


def of_cache(card: Card) -> float:
    """Return the bytes of the L2 cache that what is prefetched may have."""
    return card.l2_mb * 2**20 / SHARE


def prefetched_bytes(card: Card, type: str, parts: tuple[int, ...], columns: int) -> float:
    """Return the bytes that are prefetched of a matrix: every other kilobyte of the first codes of its tiles."""
    tiles = min(sum(-(-rows // TILE) for rows in parts), int(of_cache(card) / TILE_AHEAD))
    return tiles * min(TILE_AHEAD, TILE * columns * int(type[1]) / 8 / 2)


def ours(card: Card, counted: Counted, design: Design, position: int = 0, kv_bytes: int = 2) -> Step:
    """Return a step of one token.

    Args:
        card: the GPU.
        counted: of its architecture.
        design: what the kernels do.
        position: of the token.
        kv_bytes: bytes of a number in the cache.
    """

    def product(name: str, kernel: str, type: str, parts: tuple[int, ...], columns: int, tail: Chain,
                tiles: int = 1, normed: bool = False, may_halve: bool = False) -> Node:  # fmt: skip
        n_bytes = matrix_bytes(type, parts, columns)
        norm = design.norms_at_head and normed
        blocks = sum(-(-rows // TILE) for rows in parts) // tiles
        halves = 2 if design.half_tiles and may_halve and blocks < card.n_sms else 1
        kernel += NORMED if norm else HALVES if halves == 2 else ""
        return Node(
            name, n_bytes + (4 * DIM if norm else 0), halves * blocks, THREADS * FLIGHT,
            counted.residents(kernel, THREADS, card),
            counted.per_weight(kernel) * sum(parts) * columns,
            beside=_NORM_AT_HEAD if norm else Chain(), tail=add_up(halves * STAGED) + tail,
            until_prefetch=Chain(barriers=1, l2=1 if name == "qkv" else 0),  # 15 of 16 warps do not add up
            prefetched=prefetched_bytes(card, type, parts, columns) if design.prefetches else 0,
        )  # fmt: skip

    norm = _STORE if design.norms_at_head else Chain(l2=1) + _STORE + _NORM_BY_LAST  # and what was there before
    layer = (
        product("qkv", "matvec_qkv", "q4", (DIM,) * 3, DIM, Chain(l2=2, alu=4) + _STORE, normed=True),
        attention(card, counted, position, kv_bytes, early=design.early_keys, prefetches=design.prefetches),
        product("wo", "matvec_residual", "q4", (DIM,), DIM, norm, may_halve=True),
        product("w1 w3", "matvec_swiglu", "q4", (HIDDEN_DIM,) * 2, DIM, SWIGLU + _STORE, tiles=2, normed=True),
        product("w2", "matvec_residual", "q4", (DIM,), HIDDEN_DIM, norm, may_halve=True),
    )
    embed = Node("embed", DIM // 2 + DIM // GROUP * 2, 1, 4 * THREADS, 1, head=Chain(l2=1), tail=norm)
    output = product("output", "matvec", "q8", (VOCAB_SIZE,), DIM, _STORE, normed=True)
    output = replace(output, instructions=2 * output.instructions)  # q8 is counted as q4 with twice the work
    largest = Chain(l2=VOCAB_SIZE / 1024 / 8, alu=VOCAB_SIZE / 1024 * 3, shuffles=10, barriers=1, shared=1)
    sample = Node("sample", 0, 1, 0, 1, head=largest, tail=_STORE)
    first = (replace(layer[0], prefetched=0), *layer[1:])  # the embedding prefetches nothing
    nodes = (embed, *first, *(layer * (N_LAYERS - 1)), output, sample)
    return Step(nodes, AHEAD_US if design.ahead else HOST_US)


def attention(card: Card, counted: Counted, position: int, kv_bytes: int, *, early: bool = True,
              prefetches: bool = True) -> Node:  # fmt: skip
    """Return attention of one token. early, prefetches: see Design.early_keys, and Design.prefetches for its keys."""
    n_spans, last = position // SPAN + 1, min(position + 1, SPAN)
    chunks = -(-last // CHUNK)
    span, merge = _early_chains(n_spans, last, chunks) if early else _late_chains(n_spans, last, chunks)
    n_bytes = 2 * (position + 1) * DIM * kv_bytes
    return Node(
        "attention", n_bytes, n_spans * N_HEADS, SPAN_THREADS * (ATTEND_FLIGHT if early else LATE_FLIGHT),
        counted.residents("attend", SPAN_THREADS, card), 5 * n_bytes / kv_bytes,
        head=Chain(l2=1) if early else Chain(l2=2, barriers=1), beside=Chain(l2=1, barriers=1) if early else Chain(),
        tail=span + (merge if n_spans > 1 else Chain()) + Chain(alu=12, barriers=1) + QUANTIZE_GROUP + _STORE,
        until_prefetch=span, prefetched=min(n_bytes / 4, of_cache(card)) if prefetches else 0,
    )  # fmt: skip


def _early_chains(n_spans: int, last: int, chunks: int) -> tuple[Chain, Chain]:
    span = (
        Chain(alu=HEAD_DIM)  # a score
        + Chain(shuffles=5, barriers=1, shared=2, alu=8 + 14)  # the maximum, and a weight; the sum is beside the values
        + Chain(barriers=2 * chunks, alu=last, shared=chunks)  # values
    )
    eights = -(-(n_spans - 1) // 8)  # of spans, whose vectors are loaded together
    merge = (
        Chain(barriers=2, atomics=1, l2=1)
        + Chain(shuffles=7, alu=5 + 15, barriers=1)  # largest maxima so far, and factors
        + Chain(l2=eights, shared=eights, alu=2 * n_spans)
    )
    return span, merge


def _late_chains(n_spans: int, last: int, chunks: int) -> tuple[Chain, Chain]:
    span = (
        Chain(alu=HEAD_DIM, barriers=1)  # a score
        + Chain(shared=2 * -(-last // 64), alu=2 * last / 16 + 14, shuffles=8, barriers=1)  # softmax, by half a warp
        + Chain(barriers=2 * chunks, alu=last, shared=last / 8)  # values
    )
    return span, Chain(barriers=2, atomics=1, l2=n_spans / 4, alu=16 * n_spans)


# calm (github.com/zeux/calm) as published: one cooperative kernel for all layers, a block of 1024 threads for each
# multiprocessor, six barriers of all blocks a layer; a row for a warp, which loads words of four bytes, eight at a
# time; then a kernel for the output, and the host samples.
CALM_HOST_US = 40.0
CALM_TOKENS = {(4, 0): 246, (8, 0): 135, (16, 0): 69, (4, 4000): 158, (8, 4000): 103, (16, 4000): 60}  # on a 4090
# Lane-instructions for a weight, by its bits: of gf4 three bits are cut out and converted, twice.
_CALM_PER_WEIGHT = {4: 6.0, 8: 3.0, 16: 2.0}


def calm(card: Card, bits: int, position: int = 0) -> Step:
    """Return a step of one token of calm, with weights of so many bits."""
    threads, warp = 1024, Chain(shuffles=5)
    norm = Chain(l2=1, alu=12, shuffles=10, shared=2, barriers=2) + ROOT

    def stage(name: str, weights: int, head: Chain, tail: Chain) -> Node:
        return Node(name, weights * bits / 8, card.n_sms, threads * 32, 1, _CALM_PER_WEIGHT[bits] * weights, head=head,
                    tail=warp + tail, in_kernel=True)  # fmt: skip

    cache = Node("keys", (position + 1) * DIM * 2, card.n_sms, threads * 32, 1, head=Chain(l2=1),
                 tail=Chain(shuffles=2, alu=60) + _STORE, in_kernel=True)  # fmt: skip
    values = replace(cache, name="values", tail=Chain(shuffles=10, alu=10) + _STORE)
    layer = (
        stage("qkv", 3 * DIM * DIM, norm, Chain(alu=60) + _STORE),
        cache,
        values,
        stage("wo", DIM * DIM, Chain(l2=1), _STORE),
        stage("w1 w3", 2 * DIM * HIDDEN_DIM, norm, Chain(alu=30) + _STORE),
        stage("w2", DIM * HIDDEN_DIM, Chain(l2=1), _STORE),
    )
    output = replace(stage("output", VOCAB_SIZE * DIM, norm, _STORE), in_kernel=False)
    embed = Node("embed", DIM * bits / 8, 128, 128, 16, tail=_STORE)
    return Step((embed, *(layer * N_LAYERS), output), CALM_HOST_US)
