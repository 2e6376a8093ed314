"""Checks of arguments that users give. The wrong type raises TypeError, a value out of range ValueError.

Each message is one sentence that begins with the name of the argument. Numbers may be numpy's. True and "2" are not
numbers, and bytes are not strings.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .shown import shown_value


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Return value as an int. It must be in low .. high."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        refuse(name, "an integer", value)
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {bounds}, not {shown_value(number)}")
    return number


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Return value as a float. It must be finite and in low .. high."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        refuse(name, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        if low == -math.inf:
            bounds = "finite"
        else:
            bounds = f"at least {low:g} and finite" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {bounds}, not {number}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return value as a bool. It must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, "True or False", value)
    return bool(value)


def string(name: str, value: Any) -> str:
    """Return value. It must be a string."""
    if not isinstance(value, str):
        refuse(name, "a string", value)
    return value


def path(name: str, value: Any) -> str:
    """Return value as a string. It must be a string or path-like object that can be a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        refuse(name, "a path", value)
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{name} must be a path, and no file can be called {shown_value(text)}")
    return text


def function(name: str, value: Any) -> None:
    """Check that value can be called, or is None."""
    if value is not None and not callable(value):
        refuse(name, "a function", value)


def sequence(name: str, value: Any) -> Sequence[Any] | NDArray[Any]:
    """Return value. It must be a sequence, a one-dimensional array, or an iterator, which becomes a list."""
    if isinstance(value, Iterator):
        return list(value)
    if isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, (Sequence, np.ndarray)):
        refuse(name, "a list", value)
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise TypeError(f"{name} must be a list, not an array of shape {value.shape}")
    return value


def refuse(name: str, wanted: str, value: Any) -> NoReturn:
    """Raise the TypeError for an argument of the wrong type.

    Args:
        name: the argument's name.
        wanted: what it must be, as words.
        value: what it is.
    """
    raise TypeError(f"{name} must be {wanted}, not {type(value).__name__:.80} {shown_value(value)}")
