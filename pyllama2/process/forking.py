"""What a child of os.fork() has to make anew: it has one thread, and locks that the others held stay held for ever.

An object that has locks registers once how it is renewed; that is called in each child before anything else runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_renewals: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def renew_after_fork(thing: T, renew: Callable[[T], None]) -> None:
    """Have renew(thing) called in each child, as long as thing lives; renew must not keep it alive."""
    _renewals[thing] = renew


def _renew_all() -> None:
    for thing, renew in list(_renewals.items()):
        renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
