"""Models of float16 and float32 weights on the CUDA backend: the CPU's bits, one graph for each step, the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.gpu_backend import (
    assert_cpus_logits,
    make_model,
    pool_bytes,
)
from helpers.tiny import BIASES, CONFIGS, GQA, MHA, TIED, quantized_model, random_weights
from pretended_driver import Machine

from pyllama2._gpu import CudaBackend, planner
from pyllama2._gpu.planner import plan
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Sampler
from pyllama2.storage.weights import Quantization

TYPES = ("float16", "float32")
HEADS_64 = ModelConfig(dim=136, hidden_dim=200, n_layers=1, n_heads=6, n_kv_heads=2, head_dim=64, vocab_size=101,
                       max_seq_len=400)  # fmt: skip
HEADS_128 = ModelConfig(dim=256, hidden_dim=172, n_layers=1, n_heads=4, n_kv_heads=1, head_dim=128, vocab_size=99,
                        max_seq_len=64, tied_embeddings=True)  # fmt: skip
# Prompts together, single tokens that are launched, recorded and launched as a graph, several tokens of one row.
PIECES = [[12, 9], [1, 1], [1, 1], [1, 1], [0, 2], [1, 0], [8, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("config", [*CONFIGS.values(), HEADS_128], ids=[*CONFIGS, "heads of 128"])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.usefixtures("gpu")
def test_logits_are_those_of_the_cpu(type: str, config: ModelConfig, kv_dtype: str) -> None:
    assert_cpus_logits(make_model(config, type, 0), kv_dtype, PIECES)


@pytest.mark.usefixtures("gpu")
def test_a_tiny_model_has_the_logits_of_the_cpu() -> None:
    assert_cpus_logits(make_model(TIED, "float16", 0), "float16", [[9], [1], [1], [1]])


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.usefixtures("gpu")
def test_steps_of_1_to_8_tokens(n: int) -> None:
    assert_cpus_logits(make_model(GQA, "float16", 0), "float16", [[n]] * 4)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_prompt_of_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "CHUNKS", (256,))
    assert_cpus_logits(make_model(HEADS_64, "float16", 0), "float16", [[300], [1], [20]], 330)


@pytest.mark.usefixtures("gpu")
def test_denormal_numbers_are_kept() -> None:
    """CuPy's -ftz=true would make zeros of the logits of a token whose weights are so small."""
    weights = random_weights(MHA)
    weights["output.weight"][5] = np.float32(1e-42)
    weights["output.weight"][6] *= np.float32(1e-38)
    assert_cpus_logits(quantized_model(MHA, weights, "float32", 0), "float16", [[1], [9]])


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("config", [GQA, BIASES, TIED], ids=["gqa", "biases", "tied"])
def test_the_plan_is_what_is_allocated(gpu: Any, config: ModelConfig, type: str) -> None:
    backend = CudaBackend(make_model(config, type, 0))
    cache = backend.new_cache(3, 40)
    planned, facts = backend.plan(3, 40), backend.describe()
    assert facts.weight_bytes + facts.scratch_bytes + cache.nbytes == planned.allocated
    assert gpu.get_default_memory_pool().used_bytes() == pool_bytes(planned)


def test_weights_take_what_their_numbers_take() -> None:
    """By hand: 7B in float16, whose widths are multiples of 128, and whose rows are multiples of 32."""
    config = ModelConfig(dim=4096, hidden_dim=11008, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128,
                         vocab_size=32000, max_seq_len=4096)  # fmt: skip
    for type, size in (("float16", 2), ("float32", 4)):
        parts = plan(config, Quantization.of(type), 1, 4096).parts
        assert parts["linear"] == size * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
        assert parts["output"] == parts["embeddings"] == size * 32000 * 4096


def test_a_step_is_one_graph_with_five_kernels_a_layer(machine: Machine) -> None:
    backend = CudaBackend(make_model(GQA, "float16", 0))
    cache, draws = backend.new_cache(1, 20), Sampler(SamplingParams(temperature=0), 0).draws(1)
    assert draws is not None
    for position in range(3):  # kernel by kernel, then recorded and launched
        backend.sample(Batch.of_sequence([1], 0, position), cache, draws)
    kernels, graphs = len(machine.launches), machine.graph_launches
    for position in range(3, 8):
        backend.sample(Batch.of_sequence([1], 0, position), cache, draws)
    assert machine.graph_launches - graphs == 5
    assert len(machine.launches) - kernels == 5 * (1 + 5 * GQA.n_layers + 2)
