"""A model on paper of the time of a decoding step: counts and assumptions in, microseconds out.

    node     boundary + head + first load + stream + tail
    step     the sum of its nodes, + what the GPU waits for the host

A node is a kernel, or what lies between two barriers of a cooperative kernel. Its stream is what memory delivers: at
the attainable bandwidth, or at what the loads that are in flight allow, if that is less. Head and tail are chains of
operations of which each waits for the one before. A head beside the first load costs only what it is longer. A node may
prefetch bytes of the next one: they come from memory while it ends and while the next one begins, and lie in the L2
cache then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cards import Card

# Cycles from an operation to the next one that needs its result: assumed, the same for all generations.
ALU_CYCLES, SHARED_CYCLES, SHUFFLE_CYCLES, BARRIER_CYCLES = 4.5, 30, 24, 35
BUSY = 2.0  # latency of a busy memory / that of an idle one
DUTY = 0.6  # share of the time in which a warp's loads are in flight: not while it multiplies what came
LANES = 100  # lane-instructions of a multiprocessor in a clock: it issues 128, but integers have half of that rate
OVERLAP = 0.1  # what is not the limit delays by a tenth of its time all the same


@dataclass(frozen=True)
class Chain:
    """Operations that wait for each other: how many of each kind.

    Attributes:
        alu: additions, products and the like.
        shared: loads from shared memory.
        shuffles: between the lanes of a warp.
        barriers: of a block.
        l2: loads that the L2 cache has.
        dram: loads from memory.
        atomics: a fence and an atomic addition, two round trips to the L2 cache.
    """

    alu: float = 0
    shared: float = 0
    shuffles: float = 0
    barriers: float = 0
    l2: float = 0
    dram: float = 0
    atomics: float = 0

    def __add__(self, other: Chain) -> Chain:
        return Chain(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def times(self, n: float) -> Chain:
        """Return n such chains, one after the other."""
        return Chain(**{name: n * value for name, value in vars(self).items()})

    @property
    def cycles(self) -> float:
        """Cycles of what does not leave the multiprocessor."""
        return (ALU_CYCLES * self.alu + SHARED_CYCLES * self.shared + SHUFFLE_CYCLES * self.shuffles
                + BARRIER_CYCLES * self.barriers)  # fmt: skip

    def us(self, card: Card) -> float:
        """Microseconds on a card."""
        outside = (self.l2 + 2 * self.atomics) * card.l2_ns + self.dram * card.dram_ns
        return (self.cycles / card.clock_ghz + outside) / 1000


@dataclass(frozen=True)
class Node:
    """A kernel of a step, or a stage of a cooperative kernel.

    Attributes:
        name: what it computes.
        n_bytes: that it reads from memory.
        blocks: of its grid.
        block_flight: bytes of weights, or keys and values, that one block has in flight at most.
        resident: blocks that a multiprocessor can have at a time.
        instructions: lane-instructions of the whole node.
        head: before its first load.
        beside: beside its first load.
        tail: after the last data have come.
        in_kernel: it begins after a barrier of all blocks, not as a kernel of its own.
        until_prefetch: of the tail, what comes before the node prefetches bytes of the next one.
        prefetched: bytes that the node before prefetches at most. As many that it does not prefetch lie between them.
    """

    name: str
    n_bytes: float
    blocks: int
    block_flight: float
    resident: int
    instructions: float = 0
    head: Chain = field(default_factory=Chain)
    beside: Chain = field(default_factory=Chain)
    tail: Chain = field(default_factory=Chain)
    in_kernel: bool = False
    until_prefetch: Chain = field(default_factory=Chain)
    prefetched: float = 0

    def flight(self, card: Card) -> float:
        """Bytes that are in flight for a multiprocessor at most, on average over all of them."""
        return min(self.blocks, card.n_sms * self.resident) * self.block_flight / card.n_sms

    def stream_us(self, card: Card, cached: float = 0) -> float:
        """Microseconds of the stream, with so many bytes in the L2 cache."""
        latency = BUSY * card.dram_ns / 1000
        in_flight = DUTY * self.flight(card) * card.n_sms / latency / 1000  # GB/s
        rate, half_rate = min(card.attainable_gbs, in_flight), min(card.attainable_gbs, in_flight / 2)
        mixed = max(cached / half_rate, 2 * cached / card.l2_gbs) if cached else 0.0
        reading = (mixed + (self.n_bytes - 2 * cached) / rate) / 1000 if self.n_bytes else 0.0
        rounds = -(-self.blocks // (card.n_sms * self.resident))
        slowest = rounds * latency * self.n_bytes / self.blocks / self.block_flight if self.n_bytes else 0.0
        issuing = self.instructions / (card.n_sms * LANES * card.clock_ghz * 1000)
        limits = sorted((max(reading, slowest), issuing))
        return limits[1] + OVERLAP * limits[0]

    def begin_us(self, card: Card) -> float:
        """Microseconds from the end of the node before to the first data."""
        boundary = card.barrier_us if self.in_kernel else card.node_us
        first = card.dram_ns / 1000 if self.n_bytes else 0.0
        return boundary + self.head.us(card) + max(first, self.beside.us(card))

    def cached(self, card: Card, before: Node | None) -> float:
        """Bytes that the node before has prefetched and that have come when the first data are there."""
        if before is None or not self.prefetched:
            return 0.0
        asking = before.tail.us(card) - before.until_prefetch.us(card) + self.begin_us(card) - card.dram_ns / 1000
        return min(self.prefetched, 1000 * card.attainable_gbs * max(0.0, asking))

    def us(self, card: Card, before: Node | None = None) -> float:
        """Microseconds from the end of the node before to the end of this one."""
        return self.begin_us(card) + self.stream_us(card, self.cached(card, before)) + self.tail.us(card)


@dataclass(frozen=True)
class Step:
    """All nodes of a step, and what the GPU waits for the host between two steps."""

    nodes: tuple[Node, ...]
    host_us: float

    @property
    def n_bytes(self) -> float:
        """Bytes that the step reads."""
        return sum(node.n_bytes for node in self.nodes)

    def us(self, card: Card) -> float:
        """Microseconds of the step."""
        before = (None, *self.nodes[:-1])
        return sum(node.us(card, last) for node, last in zip(self.nodes, before, strict=True)) + self.host_us

    def per_second(self, card: Card) -> float:
        """Steps a second."""
        return 1e6 / self.us(card)

    def share(self, card: Card) -> float:
        """Share of the attainable bandwidth."""
        return self.n_bytes / card.attainable_gbs / 1000 / self.us(card)
