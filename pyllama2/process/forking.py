"""What a child of os.fork() must renew. It has one thread, so locks that other threads held are never released.

An object with locks registers a function that renews it. The function is called in each child before anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_renewals: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def renew_after_fork(thing: T, renew: Callable[[T], None]) -> None:
    """Call renew(thing) in each child of a fork, as long as thing lives. renew must not keep thing alive."""
    _renewals[thing] = renew


def _renew_all() -> None:
    for thing, renew in list(_renewals.items()):
        renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
