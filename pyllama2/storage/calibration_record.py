"""What a calibrated file says of its calibration: its metadata has it as JSON, under "calibration"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..shown import shown

START_TOKENS = 16  # that a window is recognised by
_MOST_STARTS = 4096


@dataclass(frozen=True)
class CalibrationRecord:
    """How a file's weights were chosen, and what they lost on tokens that had no part in it.

    Attributes:
        method: such as "GPTQ, asymmetric".
        text: "self" for a text that the model wrote, else "given".
        n_tokens: tokens that the weights were chosen for.
        window: tokens of a window.
        sha256: of each text given, or of the token ids that the model wrote.
        starts: for each window that was used, a short hash of its first tokens: see window_hash().
        n_held_out: tokens of the same text that the following were measured on.
        kl_divergence: mean KL(unquantized || quantized), in nats.
        kl_standard_error: of that mean, over windows.
        top_1_agreement: share of tokens for which both rank the same token first.
        perplexity_ratio: the quantized model's over the unquantized model's.
    """

    method: str
    text: str
    n_tokens: int
    window: int
    sha256: tuple[str, ...]
    starts: tuple[str, ...]
    n_held_out: int
    kl_divergence: float
    kl_standard_error: float
    top_1_agreement: float
    perplexity_ratio: float

    def to_json(self) -> str:
        """The record as a JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> CalibrationRecord:
        """Make the record from what to_json() wrote. Fields that are not known are left out.

        Raises:
            ValueError: text is not such a record.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("calibration must be a JSON object")
        known: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in values:
                raise ValueError(f"calibration lacks {field.name}")
            known[field.name] = _CHECKS[str(field.type)](field.name, values[field.name])
        return cls(**known)


def window_hash(tokens: Sequence[int]) -> str:
    """8 hexadecimal digits of the first START_TOKENS of a window, BOS left out."""
    return hashlib.sha256(np.asarray(tokens[:START_TOKENS], "<i4").tobytes()).hexdigest()[:8]


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} of the calibration must be a string")
    return shown(value[:200])


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError(f"{name} of the calibration must be a number of tokens")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        raise ValueError(f"{name} of the calibration must be a number")
    return float(value)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MOST_STARTS:
        raise ValueError(f"{name} of the calibration must be a list")
    return tuple(_string(name, item) for item in value)


_CHECKS = {"str": _string, "int": _count, "float": _number, "tuple[str, ...]": _strings}
