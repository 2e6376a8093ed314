"""How long a calibration takes, from the number of products and how fast they are here."""

from __future__ import annotations

import time

import numpy as np

from ..config import ModelConfig
from .products import Products

_SIDE = 1024  # of the matrices that are multiplied to measure
_OVERHEAD = 1.35  # an allowance for transposing, packing, attention and the rounding itself


def step_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """Rows, of all matrices together, and columns of the four steps of a layer."""
    return (
        (config.q_dim + 2 * config.kv_dim, config.dim),
        (config.dim, config.q_dim),
        (2 * config.hidden_dim, config.dim),
        (config.dim, config.hidden_dim),
    )


def operations(config: ModelConfig, n_tokens: int) -> float:
    """Floating-point operations of a calibration on n_tokens tokens, without those that write the text."""
    total = 0.0
    for rows, columns in step_shapes(config):
        forward = 4.0 * n_tokens * rows * columns
        moments = 3.0 * n_tokens * columns**2
        factors = 2 * (8 / 3) * columns**3
        correction = 6.0 * rows * columns**2
        rounding = 1.0 * rows * columns**2
        total += forward + moments + factors + correction + rounding
    return total * config.n_layers


def measured_rate(products: Products) -> float:
    """Floating-point operations a second, of a product that takes some hundredths of a second."""
    x = np.ones((_SIDE, _SIDE), np.float32)
    products.times(x, x)
    start = time.perf_counter()
    products.times(x, x)
    return 2 * _SIDE**3 / (time.perf_counter() - start)


def seconds(config: ModelConfig, n_tokens: int, rate: float) -> float:
    """Time of a calibration at a measured rate."""
    return _OVERHEAD * operations(config, n_tokens) / rate


def affordable_tokens(config: ModelConfig, limit_s: float, rate: float, most: int, step: int) -> int:
    """The largest multiple of step up to most whose calibration takes at most limit_s, but at least one step."""
    n_tokens = most
    while n_tokens > step and seconds(config, n_tokens, rate) > limit_s:
        n_tokens -= step
    return n_tokens
