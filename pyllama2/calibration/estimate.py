"""How long a calibration takes, from the number of products and how fast they are here."""

from __future__ import annotations

import time

import numpy as np

from ..config import ModelConfig
from .products import Products

_SIDE = 1024  # of the matrices that are multiplied to measure
_OVERHEAD = 1.35  # an allowance for transposing, packing, attention and the rounding itself
_SURVEY_SHARE = 0.4  # of a time limit that measuring the steps of a survey may take
_INT8 = 3.0  # how many times faster the products of a quantized model are
_LOGIT = 300.0  # operations that comparing a logit takes as long as
_MEASURED = (1024, 512, 256, 128)  # tokens that a survey may measure on
PART = 4  # of so many windows of the text a survey calibrates on one


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


def survey_seconds(config: ModelConfig, n_tokens: int, n_measured: int, rate: float) -> float:
    """Time of a survey (survey.py): a calibration to two types, and the model once more for each step of each layer.

    Args:
        config: the model's.
        n_tokens: of the whole text.
        n_measured: tokens that each step is measured on.
        rate: measured_rate().
    """
    shapes = step_shapes(config)
    again = config.n_layers * sum(7.0 * rows * columns**2 for rows, columns in shapes)
    return seconds(config, n_tokens // PART, rate) + _OVERHEAD * again / rate + _measuring(config, n_measured, rate)


def measured_tokens(config: ModelConfig, limit_s: float | None, rate: float) -> int:
    """The number of tokens that a survey is to measure on, for a limit of the whole time; None: there is none."""
    for n in _MEASURED:
        if limit_s is None or _measuring(config, n, rate) <= _SURVEY_SHARE * limit_s:
            return n
    return _MEASURED[-1]


def _measuring(config: ModelConfig, n_measured: int, rate: float) -> float:
    shapes = step_shapes(config)
    n_weights = config.n_layers * sum(rows * columns for rows, columns in shapes) + config.vocab_size * config.dim
    runs = len(shapes) * config.n_layers + 1
    return runs * n_measured * (2.0 * n_weights / _INT8 + _LOGIT * config.vocab_size) / rate


def affordable_tokens(
    config: ModelConfig, limit_s: float, rate: float, most: int, step: int, *, surveyed: bool = False
) -> int:
    """The largest multiple of step up to most whose calibration takes at most limit_s, but at least one step.

    With surveyed, the survey before the calibration counts.
    """
    n_measured = measured_tokens(config, limit_s, rate)
    n_tokens = most
    while n_tokens > step:
        survey = survey_seconds(config, n_tokens, n_measured, rate) if surveyed else 0.0
        if survey + seconds(config, n_tokens, rate) <= limit_s:
            break
        n_tokens -= step
    return n_tokens


def duration(seconds: float) -> str:
    """Say how long something takes: 40 s, 12 minutes, 1.5 hours."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
