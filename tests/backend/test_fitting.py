"""What an error about memory suggests."""

from __future__ import annotations

import pytest

from pyllama2.backend.fitting import gib, largest_context


@pytest.mark.parametrize("step", [1, 32])
@pytest.mark.parametrize("most", [0, 31, 32, 100])
@pytest.mark.parametrize("room", [0, 1, 31, 32, 33, 64, 99, 100, 500])
def test_the_largest_context_that_fits(step: int, most: int, room: int) -> None:
    expected = max(n for n in range(0, most + 1, step) if n <= room)
    assert largest_context(lambda n: n <= room, most, step) == expected


def test_sizes() -> None:
    assert gib(3 << 29) == "1.50 GiB"
