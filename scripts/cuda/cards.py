"""Six GPUs, as the model of a step's time takes them.

peak_gbs, n_sms, clock_ghz, l2_mb and int8_tops are from the makers' data sheets, and int8_per_clock follows from
them, except for the H100. All else is an assumption. Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: of the card.
        sm: its architecture: 89 for sm_89.
        n_sms: multiprocessors.
        clock_ghz: the clock that it keeps under load.
        peak_gbs: bandwidth of its memory on paper, GB/s.
        attainable_gbs: what a kernel that only reads can have of it.
        dram_ns: from a load to its data, memory idle. Twice that is assumed while memory is busy.
        l2_ns: from a load to its data, if these are in the L2 cache.
        node_us: from the last instruction of a graph's kernel to the first of the next one.
        barrier_us: of all blocks of a cooperative kernel.
        threads: most threads of a multiprocessor.
        l2_gbs: bandwidth of the L2 cache.
        l2_mb: its size.
        int8_tops: products and sums of int8 on tensor cores, in 10^12 a second, without sparsity, at the highest clock.
        int8_per_clock: the same of a multiprocessor in a clock, by the instruction mma.sync. An H100 is assumed to
            reach 62% of its peak with it: the rest takes wgmma, which no other card has.
    """

    name: str
    sm: int
    n_sms: int
    clock_ghz: float
    peak_gbs: float
    attainable_gbs: float
    dram_ns: float
    l2_ns: float
    node_us: float
    barrier_us: float
    threads: int
    l2_gbs: float
    l2_mb: float
    int8_tops: float
    int8_per_clock: int


CARDS = (
    Card("3060 12 GB", 86, 28, 1.78, 360, 340, 400, 130, 1.4, 1.0, 1536, 1300, 3, 102, 2048),
    Card("T4", 75, 40, 1.30, 320, 265, 450, 170, 1.6, 1.2, 1024, 1100, 4, 130, 2048),
    Card("4090", 89, 128, 2.52, 1008, 950, 400, 120, 1.3, 0.9, 1536, 4500, 72, 660, 2048),
    Card("A100 80 GB", 80, 108, 1.41, 2039, 1800, 450, 160, 1.3, 1.1, 2048, 4500, 40, 624, 4096),
    Card("H100", 90, 132, 1.75, 3350, 3000, 500, 160, 1.3, 1.1, 2048, 5500, 50, 1979, 5080),
    Card("5090", 120, 170, 2.41, 1792, 1650, 450, 140, 1.3, 0.9, 1536, 6000, 96, 838, 2048),
)
