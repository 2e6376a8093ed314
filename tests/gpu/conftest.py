"""What tests of the CUDA backend have: mistakes that the pretended driver notes are failures of the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.gpu_backend import pretended, real_cupy
from pretended_driver import Machine


@pytest.fixture(autouse=True)
def no_findings() -> Iterator[None]:
    """All work that is still waiting is done at the end; then there must be no findings."""
    yield
    if "pretended_driver" in sys.modules and (driver := sys.modules["pretended_driver"].installed()):
        with driver.pretended.lock:
            driver.pretended.run_all()
        assert driver.pretended.take_findings() == []


@pytest.fixture
def gpu() -> Iterator[Any]:
    """cupy, on a GPU or on a pretended driver."""
    with real_cupy() as cupy:
        yield cupy


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The pretended driver of one test, whose counts begin at 0."""
    with pretended().machine() as machine:
        yield machine
