"""A model on paper of a prompt's products: counts and assumptions in, microseconds out.

A block has some rows and some vectors. It goes through their groups one by one: it stages a group in shared memory,
multiplies it, and adds the result to its totals.

    busy      what takes longest of: issuing, products of tensor cores or dp4a, loads and stores of shared memory; and a
              tenth of the second of them
    group     busy, + what the block waits: for the data, at barriers, for operations that need each other
    groups    of all blocks of a multiprocessor together: at least busy for each of them

If copies run ahead by some groups, the block waits for data only as long as these groups do not take.

A multiprocessor gets new blocks as others end, and at most ceil(blocks / multiprocessors) of them. It has as many at a
time as fit on it, and in the end those that are left over. These are fewer, so they take less time. A whole product
takes at least as long as its bytes from memory and from the L2 cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cards import Card
from compiled import Counted
from instructions import StagingLoop
from llama_7b import GROUP
from step_model import ALU_CYCLES, BARRIER_CYCLES, LANES, OVERLAP, SHARED_CYCLES

MMA_CYCLES = 34  # of mma.sync, from its operands to its result: assumed
DP4A_A_CLOCK = 64  # lanes of a multiprocessor that can begin a dp4a in a clock
IN_A_DP4A = 4  # products


@dataclass(frozen=True)
class Tiling:
    """How the kernel cuts a product into blocks.

    Attributes:
        rows, vectors: of a block.
        warps: of a block.
        ahead: groups that are copied before they are needed.
        barriers: of a block, for a group.
        chained: cycles of the products that wait for each other, for a group.
    """

    rows: int
    vectors: int
    warps: int
    ahead: int
    barriers: float
    chained: float


# What the source has, before sm_80 and from there on. Without copies that run ahead, an mma is done in two steps.
TILINGS = {75: Tiling(64, 128, 8, 0, 1, 4 * MMA_CYCLES), 80: Tiling(64, 128, 8, 2, 1, 2 * MMA_CYCLES)}
# What it had before: products by dp4a there, no copies that run ahead here, and two barriers for a group.
TILINGS_BEFORE = {75: Tiling(64, 64, 8, 0, 2, 32 * ALU_CYCLES), 80: Tiling(64, 128, 8, 0, 2, 2 * MMA_CYCLES)}
# Counted in the machine code of these kernels: by architecture, the loop, and blocks of a multiprocessor.
LOOPS_BEFORE = {
    75: (StagingLoop(636, 135, uses_mma=False), 2), 80: (StagingLoop(318, 71, uses_mma=True), 1),
    86: (StagingLoop(318, 71, uses_mma=True), 1), 89: (StagingLoop(318, 71, uses_mma=True), 1),
    90: (StagingLoop(333, 71, uses_mma=True), 1), 120: (StagingLoop(262, 51, uses_mma=True), 2),
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """One matrix (rows, columns) times n vectors.

    Attributes:
        rows, columns, n: sizes.
        tiling: of the kernel.
        loop: what a warp does for a group.
        resident: blocks that a multiprocessor can have at a time.
    """

    rows: int
    columns: int
    n: int
    tiling: Tiling
    loop: StagingLoop
    resident: int

    @classmethod
    def counted(cls, counted: Counted, card: Card, rows: int, columns: int, n: int) -> Product:
        """Return a product by the kernel that is compiled for a card."""
        loop = counted.kernels["matmul"].staging
        assert loop is not None
        tiling = TILINGS[min(card.sm, 80)]
        return cls(rows, columns, n, tiling, loop, counted.residents("matmul", 32 * tiling.warps, card))

    @classmethod
    def before(cls, card: Card, rows: int, columns: int, n: int) -> Product:
        """Return a product by the kernel that there was before."""
        return cls(rows, columns, n, TILINGS_BEFORE[min(card.sm, 80)], *LOOPS_BEFORE[card.sm])

    @property
    def multiplications(self) -> float:
        """Products of a weight and an input."""
        return self.rows * self.columns * self.n

    def busy_cycles(self, card: Card) -> float:
        """Cycles in which one block keeps a multiprocessor busy for a group."""
        limits = sorted(self.units(card))
        return limits[2] + OVERLAP * limits[1]

    def units(self, card: Card) -> tuple[float, float, float]:
        """Cycles that a group of one block takes of tensor cores or dp4a, of issuing, and of shared memory."""
        tiling, loop = self.tiling, self.loop
        products = tiling.rows * tiling.vectors * GROUP
        a_clock = card.int8_per_clock / 2 if loop.uses_mma else DP4A_A_CLOCK * IN_A_DP4A
        issued = tiling.warps * loop.instructions * 32 / LANES
        return products / a_clock, issued, tiling.warps * loop.shared_cycles

    def group_cycles(self, card: Card, together: int) -> float:
        """Cycles from a group to the next one, of so many blocks that a multiprocessor has at a time."""
        tiling, busy = self.tiling, self.busy_cycles(card)
        waits = tiling.barriers * BARRIER_CYCLES + SHARED_CYCLES + tiling.chained + 3 * ALU_CYCLES
        arrives = card.dram_ns * card.clock_ghz  # the first block that needs a weight waits for memory, which is idle
        data = max(0.0, arrives - tiling.ahead * (busy + waits))
        return max(together * busy, busy + waits + data)

    def us(self, card: Card) -> float:
        """Microseconds of the product."""
        groups = self.columns / GROUP
        computing = groups * self.rounds_cycles(card) / card.clock_ghz / 1000
        weights = self.rows * self.columns * (0.5 + 2 / GROUP)
        inputs, outputs = self.n * self.columns * (1 + 8 / GROUP), 4 * self.rows * self.n
        memory = (weights + inputs + outputs) / card.attainable_gbs / 1000
        staged = weights * math.ceil(self.n / self.tiling.vectors) + inputs * math.ceil(self.rows / self.tiling.rows)
        limits = sorted((computing, memory, staged / card.l2_gbs / 1000))
        return limits[2] + OVERLAP * limits[1] + card.node_us

    def together(self, card: Card) -> int:
        """Blocks that a multiprocessor has at a time, as long as there are enough."""
        return min(self.resident, self._blocks_of_one(card))

    def rounds_cycles(self, card: Card) -> float:
        """Cycles of one group in each round of the multiprocessor that has most blocks, summed up.

        Rounds are full, except for the last one, which has what is left over.
        """
        together = self.together(card)
        full, left = divmod(self._blocks_of_one(card), together)
        return full * self.group_cycles(card, together) + (self.group_cycles(card, left) if left else 0.0)

    def _blocks_of_one(self, card: Card) -> int:
        blocks = math.ceil(self.rows / self.tiling.rows) * math.ceil(self.n / self.tiling.vectors)
        return math.ceil(blocks / card.n_sms)
