"""Every target on its seeds, on what once showed a defect, and on some damages: what is promised holds."""

from __future__ import annotations

from random import Random

import pytest

from .targets import TARGETS

pytestmark = pytest.mark.usefixtures("one_thread")
_RANDOM = ("quantize", "sample", "forward")  # whose seeds are bytes of any kind
_FEW = {"template": 3}  # each starts a process


@pytest.mark.subprocess
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    accepted = [TARGETS[name].run(seed) for seed in TARGETS[name].seeds]
    assert any(accepted) if name in _RANDOM else all(accepted)


@pytest.mark.subprocess
@pytest.mark.parametrize("name", TARGETS)
def test_damages_end_as_promised(name: str) -> None:
    target, random = TARGETS[name], Random(name)
    for _ in range(_FEW.get(name, 150)):
        data = random.choice(target.seeds)
        for _ in range(random.randint(1, 3)):
            data = target.mutate(data, random)
        target.run(data)


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, target in TARGETS.items() for file in target.regressions]
)
def test_what_once_showed_a_defect(name: str, file: str) -> None:
    TARGETS[name].run(TARGETS[name].regressions[file])
