"""How long a thread that waits for others looks before it sleeps. Import it before the compiled modules.

At the end of a parallel region libgomp spins for a millisecond and more. On an idle machine that saves a wake-up now
and then. If another program has one of the cores, a spinning thread keeps its partner from running. libgomp reads its
settings from the environment once, when it is loaded. The waits between the steps of a region, in team.h, follow the
same settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = "2000"  # some tens of microseconds
_FOR_EVER = 1 << 40


@contextmanager
def short_spins() -> Iterator[None]:
    """A block that loads libgomp with this setting, unless the user chose one. It restores the environment."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def spins() -> int:
    """Return how often a thread looks for work before it lets other programs run, by the same settings."""
    policy = os.environ.get("OMP_WAIT_POLICY", "").strip().lower()
    asked = os.environ.get("GOMP_SPINCOUNT", _SPINS if policy != "active" else "infinity").strip().lower()
    if policy == "passive" and "GOMP_SPINCOUNT" not in os.environ:
        return 0
    if asked in ("infinite", "infinity"):
        return _FOR_EVER
    return min(int(asked), _FOR_EVER) if asked.isdecimal() else int(_SPINS)
