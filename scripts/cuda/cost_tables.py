"""The tables of docs/gpu.md, in Markdown: what the model of a step computes, and from which counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import batch_tables
import designs
from cards import CARDS, Card
from compiled import Counted
from tables import table

FAR = 4000  # a position far from the beginning


def cards() -> str:
    """Return what is assumed of each card."""
    head = ["card", "sm", "SMs", "GHz", "GB/s on paper", "attainable", "memory, ns", "L2, ns", "L2, GB/s",
            "L2, MB", "graph node, us", "int8 TOPS"]  # fmt: skip
    return table(head, [
        [card.name, str(card.sm), str(card.n_sms), f"{card.clock_ghz:g}", f"{card.peak_gbs:g}",
         f"{card.attainable_gbs:g}", f"{card.dram_ns:g}", f"{card.l2_ns:g}", f"{card.l2_gbs:g}", f"{card.l2_mb:g}",
         f"{card.node_us:g}", f"{card.int8_tops:g}"] for card in CARDS
    ])  # fmt: skip


def steps(counted: dict[int, Counted]) -> str:
    """Return tokens per second and shares of the bandwidth: at position 0 and far from it, for each design."""
    shown = [(design, position) for design in designs.STAGES for position in (0, FAR)]
    head = ["card", *(f"{design.name}: {position}" for design, position in shown)]
    return table(head, [[card.name, *(_shown(card, counted, *each) for each in shown)] for card in CARDS])


def _shown(card: Card, counted: dict[int, Counted], design: designs.Design, position: int) -> str:
    step = designs.ours(card, counted[card.sm], design, position)
    return f"{step.per_second(card):.0f} ({step.share(card):.0%})"


def doubts(counted: dict[int, Counted]) -> str:
    """Return what the last design's figures at position 0 rest on: latencies and boundaries."""
    head = ["card", "latencies a third longer", "a third shorter", "boundaries", "and first loads"]
    design, rows = designs.STAGES[-1], []
    for card in CARDS:
        step = designs.ours(card, counted[card.sm], design)
        us = step.us(card)
        others = [replace(card, **{name: factor * getattr(card, name) for name in ("dram_ns", "l2_ns", "node_us")})
                  for factor in (4 / 3, 2 / 3)]  # fmt: skip
        changes = [step.per_second(other) / step.per_second(card) - 1 for other in others]
        boundaries = len(step.nodes) * card.node_us / us
        loads = sum(card.dram_ns / 1000 for node in step.nodes if node.n_bytes) / us
        rows.append([card.name, *(f"{change:+.1%}" for change in changes),
                     *(f"{share:.0%}" for share in (boundaries, boundaries + loads))])  # fmt: skip
    return table(head, rows)


def nodes(counted: dict[int, Counted], card: Card) -> str:
    """Return the nodes of a layer of the first and of the last design, on one card."""
    head = ["node", "blocks", "on an SM", "MB", "MB before", "KB in flight", "chain, us", "stream, us", "all, us"]
    rows = []
    for design in dict.fromkeys((designs.STAGES[0], designs.STAGES[-1])):
        step = designs.ours(card, counted[card.sm], design)
        for before, node in pairwise(step.nodes[5:11]):  # of the second layer
            cached, us = node.cached(card, before), node.us(card, before)
            stream = node.stream_us(card, cached)
            rows.append([
                f"{design.name}: {node.name}", str(node.blocks), str(node.resident), f"{node.n_bytes / 1e6:.1f}",
                f"{cached / 1e6:.1f}", f"{node.flight(card) / 1024:.0f}", f"{us - stream - card.node_us:.2f}",
                f"{stream:.2f}", f"{us:.2f}",
            ])  # fmt: skip
    return table(head, rows)


def kernels(counted: dict[int, Counted]) -> str:
    """Return what the compiler says about each kernel."""
    names = list(next(iter(counted.values())).kernels)
    head = ["registers; lane-instructions per weight", *(f"sm_{sm}" for sm in counted)]

    def cell(counted: Counted, name: str) -> str:
        kernel = counted.kernels[name]
        return f"{kernel.registers}" + (f"; {kernel.per_weight:.2f}" if kernel.per_weight else "")

    return table(head, [[name, *(cell(each, name) for each in counted.values())] for name in names])


def calm() -> str:
    """Return what the model says of calm, beside what its author has published."""
    (card,) = (card for card in CARDS if card.name == "4090")
    rows = []
    for (bits, position), published in designs.CALM_TOKENS.items():
        computed = designs.calm(card, bits, position).per_second(card)
        rows.append([f"{bits} bits, position {position}", str(published), f"{computed:.0f}",
                     f"{computed / published - 1:+.1%}"])  # fmt: skip
    return table(["calm on a 4090", "published", "computed", "difference"], rows)


def everything(counted: dict[int, Counted]) -> dict[str, str]:
    """Return all tables by the names that docs/gpu.md has for them."""
    (card,) = (card for card in CARDS if card.name == "4090")
    return {"cards": cards(), "calm": calm(), "steps": steps(counted), "doubts": doubts(counted),
            "nodes": nodes(counted, card), "several": batch_tables.several(counted),
            "prompts": batch_tables.prompts(counted), "kernels": kernels(counted)}  # fmt: skip
