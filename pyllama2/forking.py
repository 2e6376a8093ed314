"""What a child of os.fork() has to make anew: it has one thread, and locks that the others held stay held for ever.

An object that has locks registers itself once; in each child its renew_in_child() is called before anything else runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    """An object that goes on working in a child."""

    def renew_in_child(self) -> None:
        """Replace locks, and forget what only threads of the parent could finish."""


_objects: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_after_fork(renewable: Renewable) -> None:
    """Have renew_in_child() of an object called in each child, as long as the object lives."""
    _objects.add(renewable)


def _renew_all() -> None:
    for renewable in list(_objects):
        renewable.renew_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
