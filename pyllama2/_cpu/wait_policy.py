"""How long a thread spins at a barrier before it sleeps; to be imported before the extensions are.

libgomp spins for a millisecond and more. On a machine with nothing else to do that saves a wake-up now and then; where
another program has one of the cores, the spinning thread keeps its partner from running, at each of some hundred
barriers a token (measured on 2 cores with 2 other busy processes: 0.9 tokens/s, and 11 with this setting). libgomp
reads its settings from the environment once, when it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SPINS = "2000"  # some tens of microseconds


@contextmanager
def short_spins() -> Iterator[None]:
    """While libgomp is loaded: its setting, unless the user made one; the environment is as before afterwards."""
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
