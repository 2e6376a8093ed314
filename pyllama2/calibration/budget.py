"""Bits where they count: the storage type of each step of each layer, for a number of bits a weight in all.

What a step loses as q4 in groups of 64 is measured (survey.py): `base` is what the KL divergence of the model in 8 bits
rises by when that step alone has these 4. With another type the step is taken to lose in proportion to its rounding
error:

    loss(type) = base * error(type) / error(q4/64)

Types are chosen so that the losses together are least. Of each step's types those count that lie on the lower convex
hull of loss over bytes. From the smallest types on, the improvement that saves most per byte comes first, until the
bytes are spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from ..config import ModelConfig
from ..storage.weights import STEPS, StorageType, packed_shapes

BASE = StorageType("q4", 64)
FINER = StorageType("q8", 64)
CANDIDATES = (StorageType("q4", 128), BASE, StorageType("q4", 32), FINER)
_LEAST_SHARE = 0.1  # of the mean loss: a step of which noise hides that it loses something still does

Types = tuple[tuple[StorageType, ...], ...]


@dataclass(frozen=True)
class StepLoss:
    """What one step of one layer loses.

    Attributes:
        base: KL divergence, in nats, that the model loses if this step alone becomes BASE, and all others are FINER.
        errors: the rounding error of each of CANDIDATES, over that of BASE.
    """

    base: float
    errors: Mapping[StorageType, float]


def step_bytes(config: ModelConfig, step: int, kind: StorageType) -> int:
    """Return the bytes of a step's matrices in a layer, padding and scales included."""
    shapes = config.tensor_shapes()
    total = 0
    for name in STEPS[step]:
        codes, scales = packed_shapes(kind.type, shapes[f"layers.0.{name}.weight"], kind.group_size)
        total += prod(codes) + (2 * prod(scales) if scales else 0)
    return total


def bits_of(config: ModelConfig, types: Types) -> float:
    """Return the bits a weight of all layers' matrices."""
    shapes = config.tensor_shapes()
    n_weights = sum(prod(shapes[f"layers.0.{name}.weight"]) for names in STEPS for name in names)
    n_bytes = sum(step_bytes(config, step, kind) for layer in types for step, kind in enumerate(layer))
    return 8 * n_bytes / (n_weights * config.n_layers)


def bounds(config: ModelConfig) -> tuple[float, float]:
    """Return the fewest and the most bits a weight that there are types for."""
    totals = []
    for pick in (min, max):
        layer = tuple(pick(CANDIDATES, key=lambda kind: step_bytes(config, step, kind)) for step in range(len(STEPS)))
        totals.append(bits_of(config, (layer,) * config.n_layers))
    return totals[0], totals[1]


def choose_types(config: ModelConfig, bits: float, losses: Mapping[tuple[int, int], StepLoss]) -> Types:
    """Choose the storage types of all steps.

    Args:
        config: the model's.
        bits: bits a weight of the layers' matrices, scales included.
        losses: of each (layer, step).

    Returns:
        The types of the steps of each layer, of at most so many bits.
    """
    n_steps = len(STEPS)
    sizes = [{kind: step_bytes(config, step, kind) for kind in CANDIDATES} for step in range(n_steps)]
    floor = _LEAST_SHARE * max(0.0, sum(loss.base for loss in losses.values()) / len(losses))
    chosen: dict[tuple[int, int], StorageType] = {}
    improvements: list[tuple[float, int, tuple[int, int], StorageType]] = []
    for place, loss in losses.items():
        base = max(loss.base, floor, 1e-12)
        hull = _lower_hull([(sizes[place[1]][kind], base * loss.errors[kind], kind) for kind in CANDIDATES])
        chosen[place] = hull[0][2]
        for order, (before, after) in enumerate(pairwise(hull)):
            slope = (before[1] - after[1]) / (after[0] - before[0])
            improvements.append((-slope, order, place, after[2]))
    shapes = config.tensor_shapes()
    n_weights = sum(prod(shapes[f"layers.0.{name}.weight"]) for names in STEPS for name in names) * config.n_layers
    left = bits * n_weights / 8 - sum(sizes[step][kind] for (_, step), kind in chosen.items())
    blocked: set[tuple[int, int]] = set()  # steps whose next type no longer fits
    for _, _, place, kind in sorted(improvements, key=lambda item: item[:3]):
        cost = sizes[place[1]][kind] - sizes[place[1]][chosen[place]]
        if place in blocked or cost > left:
            blocked.add(place)
            continue
        chosen[place] = kind
        left -= cost
    return tuple(tuple(chosen[layer, step] for step in range(n_steps)) for layer in range(config.n_layers))


def _lower_hull(points: list[tuple[int, float, StorageType]]) -> list[tuple[int, float, StorageType]]:
    """Of (bytes, loss, type) the corners of the lower convex hull, from the fewest bytes to the least loss."""
    hull: list[tuple[int, float, StorageType]] = []
    for point in sorted(points, key=lambda item: item[:2]):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[int, float, StorageType], b: tuple[int, float, StorageType]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
