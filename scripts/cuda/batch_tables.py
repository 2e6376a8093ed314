"""The tables of docs/gpu.md about several tokens at once, in Markdown."""

from __future__ import annotations

from dataclasses import replace

import batches
import designs
from cards import CARDS
from compiled import Counted
from tables import table


def several(counted: dict[int, Counted]) -> str:
    """Return how long a step of eight tokens takes at position 0, and the shares of what it consists of."""
    head = ["card", "1 token, us", "before: 8 tokens, us", "times", "now: 8 tokens, us", "times", "streams",
            "instructions", "norms", "boundaries"]  # fmt: skip
    rows = []
    for card in CARDS:
        one = designs.ours(card, counted[card.sm], designs.STAGES[-1]).us(card)
        before = batches.step(card, counted[card.sm], before=True).us(card)
        step = batches.step(card, counted[card.sm])
        us = step.us(card)
        parts = (
            sum(node.stream_us(card) for node in step.nodes),
            sum(replace(node, n_bytes=0).stream_us(card) for node in step.nodes),
            batches.norms_us(card),
            len(step.nodes) * card.node_us,
        )
        rows.append([card.name, f"{one:.0f}", f"{before:.0f}", f"{before / one:.2f}", f"{us:.0f}", f"{us / one:.2f}",
                     *(f"{part / us:.0%}" for part in parts)])  # fmt: skip
    return table(head, rows)


def prompts(counted: dict[int, Counted]) -> str:
    """Return how long a chunk of a prompt takes, which share of the int8 peak that is, and what the products wait for.

    The last columns are shares of the time of the product of wq, wk and wv.
    """
    head = ["card", "before: products, ms", "of the peak", "now: products, ms", "of the peak", "chunk, ms",
            "of the peak", "tokens/s", "tensor cores", "instructions", "shared memory"]  # fmt: skip
    rows = []
    for card in CARDS:
        chunk, old = batches.chunk(card, counted[card.sm]), batches.products_before(card)
        before, us = batches.products_us(old, card), chunk.us(card)
        now = batches.products_us(chunk.products, card)
        wqkv = chunk.products[0]
        group = wqkv.group_cycles(card, wqkv.together(card)) / wqkv.together(card)
        rows.append([
            card.name, f"{before / 1000:.1f}", f"{batches.peak(old, card, before):.0%}", f"{now / 1000:.1f}",
            f"{batches.peak(chunk.products, card, now):.0%}", f"{us / 1000:.1f}",
            f"{batches.peak(chunk.products, card, us):.0%}", f"{batches.CHUNK / us * 1e6:.0f}",
            *(f"{cycles / group:.0%}" for cycles in wqkv.units(card)),
        ])  # fmt: skip
    return table(head, rows)
