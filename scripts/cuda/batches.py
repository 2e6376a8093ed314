"""A decoding step of 8 tokens, and a chunk of a prompt, of Llama-2 7B, as the models on paper take them.

A step is a chain of nodes as in designs.py. A chunk has the same steps of the model, in a kernel each: products are
those of prompt_model.py, and all else is bytes, boundaries and, in attention, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import designs
from cards import Card
from compiled import SEVERAL, Counted
from llama_7b import DIM, GROUP, HEAD_DIM, HIDDEN_DIM, N_HEADS, N_LAYERS, VOCAB_SIZE, matrix_bytes
from prompt_model import Product
from step_model import LANES, Chain, Node, Step

TOKENS, CHUNK = 8, 512  # of a step, and of a chunk of a prompt
CHUNK_BEFORE = 256  # what it was before; wq, wk and wv were a product each
WARPS = designs.THREADS // 32
LAUNCH_US = 8.0  # for the host to give a kernel to the GPU, if it is not in a graph: an assumption
_ATTENTION_LANES = 2.0  # lane-instructions for a product of a query's and a key's, or a weight's and a value's, number

_QUANTIZED = designs.QUANTIZE_GROUP + Chain(l2=1)  # of numbers that another block has written
# The last block: it adds the squares of all vectors, then each warp quantizes its share of their groups, one by one.
_NORM_BY_LAST = (
    Chain(barriers=4, atomics=1, l2=2, alu=TOKENS * DIM / designs.THREADS, shuffles=5 + TOKENS + 4, shared=1)
    + designs.ROOT + _QUANTIZED.times(TOKENS * DIM / GROUP / WARPS)
)  # fmt: skip
_NORM_BY_EACH = (
    Chain(barriers=3, l2=1, alu=DIM / designs.THREADS, shuffles=9, shared=1)
    + designs.ROOT + _QUANTIZED.times(DIM / GROUP / WARPS)
)  # fmt: skip


# Lane-instructions for a weight of the products that there were before, by dp4a, counted in their machine code. A warp
# had one group on its way, and a multiprocessor one block.
_PER_WEIGHT_BEFORE = {
    75: {"matvec": 6.52, "matvec_residual": 6.27, "matvec_swiglu": 5.60, "matvec_qkv": 6.48},
    80: {"matvec": 6.47, "matvec_residual": 6.22, "matvec_swiglu": 5.61, "matvec_qkv": 6.44},
    86: {"matvec": 6.39, "matvec_residual": 6.12, "matvec_swiglu": 5.63, "matvec_qkv": 6.36},
    89: {"matvec": 6.39, "matvec_residual": 6.12, "matvec_swiglu": 5.63, "matvec_qkv": 6.36},
    90: {"matvec": 6.38, "matvec_residual": 8.43, "matvec_swiglu": 6.84, "matvec_qkv": 6.42},
    120: {"matvec": 5.64, "matvec_residual": 5.66, "matvec_swiglu": 4.72, "matvec_qkv": 5.66},
}


def step(card: Card, counted: Counted, position: int = 0, kv_bytes: int = 2, *, before: bool = False) -> Step:
    """Return a step of eight tokens at the same position; before: with the products that there were before.

    The other arguments are those of designs.ours().
    """

    def product(name: str, kernel: str, type: str, parts: tuple[int, ...], columns: int, tail: Chain,
                tiles: int = 1) -> Node:  # fmt: skip
        found = counted.kernels[kernel + SEVERAL]
        ahead, per_weight = found.ahead or 1, found.per_weight or 0.0
        residents = counted.residents(kernel + SEVERAL, designs.THREADS, card)
        if before:
            ahead, residents, per_weight = 1, 1, _PER_WEIGHT_BEFORE[card.sm][kernel]
        flight = ahead * tiles * GROUP // 2
        return Node(
            name, matrix_bytes(type, parts, columns), sum(-(-rows // designs.TILE) for rows in parts) // tiles,
            designs.THREADS * flight, residents, per_weight * sum(parts) * columns,
            tail=designs.add_up(WARPS) + tail, until_prefetch=designs.add_up(WARPS),
            prefetched=0 if before else designs.prefetched_bytes(card, type, parts, columns),
        )  # fmt: skip

    store = Chain(l2=1)
    attention = designs.attention(card, counted, position, kv_bytes, prefetches=not before)
    attention = replace(attention, n_bytes=TOKENS * attention.n_bytes, blocks=TOKENS * attention.blocks,
                        instructions=TOKENS * attention.instructions,
                        prefetched=min(TOKENS * attention.prefetched, designs.of_cache(card)))  # fmt: skip
    layer = (
        product("qkv", "matvec_qkv", "q4", (DIM,) * 3, DIM, Chain(l2=3, alu=4)),
        attention,
        product("wo", "matvec_residual", "q4", (DIM,), DIM, store + _NORM_BY_LAST),
        product("w1 w3", "matvec_swiglu", "q4", (HIDDEN_DIM,) * 2, DIM, designs.SWIGLU + store, tiles=2),
        product("w2", "matvec_residual", "q4", (DIM,), HIDDEN_DIM, store + _NORM_BY_LAST),
    )
    embed = Node("embed", TOKENS * DIM // 2, TOKENS, 4 * designs.THREADS, 1, head=store, tail=_NORM_BY_EACH)
    output = product("output", "matvec", "q8", (VOCAB_SIZE,), DIM, store)
    output = replace(output, instructions=2 * output.instructions)  # q8 is counted as q4 with twice the work
    largest = Chain(l2=VOCAB_SIZE / 1024 / 8, alu=VOCAB_SIZE / 1024 * 3, shuffles=10, barriers=1, shared=1)
    sample = Node("sample", 0, TOKENS, 0, 1, head=largest, tail=store)
    first = (replace(layer[0], prefetched=0), *layer[1:])  # the embedding prefetches nothing
    return Step((embed, *first, *(layer * (N_LAYERS - 1)), output, sample), designs.AHEAD_US)


def norms_us(card: Card) -> float:
    """Return the microseconds that a step of eight tokens waits for norms."""
    return 2 * N_LAYERS * _NORM_BY_LAST.us(card)


@dataclass(frozen=True)
class Chunk:
    """A chunk of a prompt: its products, and microseconds of all else.

    Attributes:
        products: of all layers.
        others_us: other kernels, with all boundaries.
        launches: kernels.
    """

    products: tuple[Product, ...]
    others_us: float
    launches: int

    def us(self, card: Card) -> float:
        """Microseconds of the chunk: what the GPU takes, or the host for giving it the kernels."""
        return max(products_us(self.products, card) + self.others_us, self.launches * LAUNCH_US)


def products_us(products: tuple[Product, ...], card: Card) -> float:
    """Return the microseconds of some products."""
    return sum(product.us(card) for product in products)


def peak(products: tuple[Product, ...], card: Card, us: float) -> float:
    """Return the share of the int8 peak of the data sheet that some products are, if they take so long."""
    return sum(2 * product.multiplications for product in products) / us / 1e6 / card.int8_tops


def products_before(card: Card) -> tuple[Product, ...]:
    """Return the products of as many tokens as a chunk has now, by the kernels and chunks that there were before."""
    sizes = (*((DIM, DIM) for _ in range(4)), (2 * HIDDEN_DIM, DIM), (DIM, HIDDEN_DIM))
    layer = tuple(Product.before(card, rows, columns, CHUNK_BEFORE) for rows, columns in sizes)
    return layer * N_LAYERS * (CHUNK // CHUNK_BEFORE)


def chunk(card: Card, counted: Counted) -> Chunk:
    """Return the first chunk of a prompt."""
    sizes = (3 * DIM, DIM), (DIM, DIM), (2 * HIDDEN_DIM, DIM), (DIM, HIDDEN_DIM)
    layer = tuple(Product.counted(counted, card, rows, columns, CHUNK) for rows, columns in sizes)
    numbers, hidden = CHUNK * DIM, CHUNK * HIDDEN_DIM
    # Two norms, q rotated, k and v put into the cache, attention, its quantization, silu: bytes read and written.
    n_bytes = (2 * 5 + 8 + 2 * 6 + 8 + 5) * numbers + 9 * hidden
    scores = N_HEADS * CHUNK * (CHUNK + 1) / 2
    attention = 2 * scores * HEAD_DIM * _ATTENTION_LANES / (card.n_sms * LANES * card.clock_ghz * 1000)
    others = n_bytes / card.attainable_gbs / 1000 + attention
    kernels = len(layer) + 6
    return Chunk(layer * N_LAYERS, N_LAYERS * (others + kernels * card.node_us), N_LAYERS * kernels + 1)
