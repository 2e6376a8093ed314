"""RMSNorm on the CPU: the order of its additions, which GPUs share, with every instruction set."""

from __future__ import annotations

import pytest
from helpers.gpu_layout import random_vectors, rms_norm
from helpers.instruction_sets import HERE
from helpers.tiny import GQA

from pyllama2._cpu.layer_steps import LayerSteps


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("dim", [1, 7, 30, 64, 172, 511, 512, 513, 576, 1100, 4096])
def test_squares_are_added_in_512_sums(dim: int, isa: str) -> None:
    x, weight = random_vectors(3, dim), random_vectors(1, dim, seed=5)[0]
    steps = LayerSteps(GQA, 1, isa)
    assert steps.rms_norm(x, weight).tobytes() == rms_norm(x, weight, GQA.norm_eps).tobytes()
