"""How long a thread spins at a barrier before it sleeps. Import it before the compiled modules.

libgomp spins for a millisecond and more. On an idle machine that saves a wake-up now and then. If another program has
one of the cores, a spinning thread keeps its partner from running, at each of some hundred barriers per token. Measured
on 2 cores with 2 other busy processes: 0.9 tokens/s, and 11 with this setting. libgomp reads its settings from the
environment once, when it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = "2000"  # some tens of microseconds


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
