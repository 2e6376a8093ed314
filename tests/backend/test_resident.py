"""What a process has of the memory that it reserved."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pyllama2.backend import resident
from pyllama2.backend.resident import resident_bytes

LARGE = 64 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says it")
def test_pages_count_once_they_were_written_to() -> None:
    array = np.zeros(LARGE, np.uint8)
    assert resident_bytes([array]) < LARGE / 8
    array[: LARGE // 2] = 1
    assert LARGE / 2 <= resident_bytes([array]) < LARGE * 5 / 8
    array[:] = 1
    assert resident_bytes([array]) == LARGE
    assert resident_bytes([array, array[: LARGE // 4]]) == LARGE * 5 / 4


def test_a_part_of_a_page_is_not_a_page() -> None:
    assert resident_bytes([np.ones(10, np.uint8), np.ones(0, np.uint8)]) == 10
    assert resident_bytes([]) == 0


def test_all_counts_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_mincore", lambda: None)
    assert resident_bytes([np.zeros(LARGE, np.uint8)]) == LARGE
    monkeypatch.setattr(resident, "_mincore", lambda: lambda *_: -1)
    assert resident_bytes([np.zeros(LARGE, np.uint8)]) == LARGE
