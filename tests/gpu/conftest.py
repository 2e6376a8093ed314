"""What every test of the CUDA backend has: mistakes that the pretended driver notes are failures of the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_findings() -> Iterator[None]:
    """All work that is still waiting is done at the end; then there must be no findings."""
    yield
    if "pretended_driver" in sys.modules and (driver := sys.modules["pretended_driver"].installed()):
        with driver.pretended.lock:
            driver.pretended.run_all()
        assert driver.pretended.take_findings() == []
