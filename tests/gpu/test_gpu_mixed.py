"""Models of mixed types on the CUDA backend: the CPU's bits, one graph for each step, and the plan of the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.gpu_backend import (
    assert_cpus_logits,
    checking_cupy,
    pair,
    pool_bytes,
)
from helpers.tiny import GQA, MHA, TIED, quantized_model, random_weights
from pretended_driver import Machine

from pyllama2._gpu import CudaBackend
from pyllama2._gpu.planner import CONTEXT_BYTES, plan
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Sampler
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import StorageType

# A block of attention has the 192 results of three heads: whole groups of 64, but not of 128.
WIDE = ModelConfig(dim=172, hidden_dim=200, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=64, vocab_size=101,
                   max_seq_len=64)  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """A model of mixed types.

    Attributes:
        config: of the model.
        kinds: the types of the four steps of each layer.
        type, output_type, group_size: of embeddings and output.
    """

    config: ModelConfig
    kinds: tuple[str, ...]
    type: str = "q4"
    output_type: str = "q8"
    group_size: int = 64

    def model(self) -> StoredModel:
        """The model, of random weights."""
        layers = tuple(tuple(StorageType.parse(kind) for kind in layer.split()) for layer in self.kinds)
        return quantized_model(
            self.config, random_weights(self.config), self.type, self.group_size, self.output_type, layers
        )


# Widths of 32, 48, 64, 96, 100, 172 and 200: most of the last groups are padded.
MIXES = {
    "every step another": Mix(GQA, ("q4/32 q4/64 q4/128 q8/64", "q8/32 q4/32 q8/128 q4/32")),
    "types alone": Mix(MHA, ("q4/64 q8/64 q8/64 q4/64", "q8/64 q4/64 q4/64 q8/64", "q4/64 q4/64 q8/64 q8/64")),
    "layers": Mix(GQA, ("q8/128 q8/128 q8/128 q8/128", "q4/32 q4/32 q4/32 q4/32"), "q8", "q4", 32),
    "tied": Mix(TIED, ("q4/128 q4/32 q8/32 q4/64", "q4/32 q8/64 q4/128 q8/32"), "q4", "q8", 128),
    "wide heads": Mix(WIDE, ("q4/64 q4/64 q4/64 q8/32", "q4/64 q4/128 q4/64 q4/64")),
}  # fmt: skip
OTHERS = MIXES["every step another"]
ALIKE = Mix(TIED, ("q4/64 q8/64 q4/32 q4/128",) * 2)  # with the fewest kernels


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", MIXES)
@pytest.mark.usefixtures("gpu")
def test_logits_are_those_of_the_cpu(name: str, kv_dtype: str) -> None:
    """Prompts together, and steps of two tokens: launched, recorded, and as a graph."""
    assert_cpus_logits(MIXES[name].model(), kv_dtype, [[12, 9], [1, 1], [1, 1], [1, 1], [0, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.usefixtures("gpu")
def test_steps_of_1_to_8_tokens(n: int) -> None:
    assert_cpus_logits(ALIKE.model(), "float16", [[n]] * 4)


@pytest.mark.slow
def test_every_access_is_in_order() -> None:
    """Bounds, races, barriers, unwritten memory and the order of streams, checked by the emulator."""
    with checking_cupy(order="backward"):
        assert_cpus_logits(ALIKE.model(), "float16", [[9], [2], [2]])


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_the_plan_is_what_is_allocated(gpu: Any, name: str, kv_dtype: str) -> None:
    model = MIXES[name].model()
    backend = CudaBackend(model, kv_dtype=kv_dtype)
    cache = backend.new_cache(3, 40)
    planned = backend.plan(3, 40)
    facts = backend.describe()
    assert facts.weight_bytes + facts.scratch_bytes + cache.nbytes == planned.allocated
    assert planned.total == planned.allocated + CONTEXT_BYTES + planned.driver_bytes
    assert gpu.get_default_memory_pool().used_bytes() == pool_bytes(planned)
    backend.forward(Batch.of_sequence([1] * 12), cache)
    assert gpu.get_default_memory_pool().used_bytes() == pool_bytes(planned)  # a pass allocates nothing


def test_weights_take_what_their_types_say() -> None:
    """By hand: a row of 48 or 100 numbers is padded to whole groups, with a scale of 2 bytes each; tiles of 32 rows."""
    shapes = plan(OTHERS.config, OTHERS.model().quantization, 1, 40).shapes("linear")
    assert shapes["layers.0.wqkv.codes"] == (
        "uint8",
        (4, 2, 1, 32, 16),
    )  # 48, 24, 24 rows; 48 inputs as 2 * 32 * 4 bits
    assert shapes["layers.0.wo.codes"] == ("uint8", (2, 1, 2, 32, 16))  # 64 * 4 bits
    assert shapes["layers.0.w13.codes"] == ("uint8", (8, 1, 4, 32, 16))  # 128 * 4 bits
    assert shapes["layers.0.w2.codes"] == ("uint8", (2, 2, 4, 32, 16))  # 100 inputs as 2 * 64 * 8 bits
    assert shapes["layers.1.w13.codes"] == ("uint8", (8, 1, 8, 32, 16))  # 128 * 8 bits
    assert shapes["layers.1.w2.scales"] == ("float16", (2, 4, 32))  # 100 inputs in groups of 32


def test_a_step_is_one_graph_with_five_kernels_a_layer(machine: Machine) -> None:
    backend = CudaBackend(OTHERS.model())
    cache, draws = backend.new_cache(1, 20), Sampler(SamplingParams(temperature=0), 0).draws(1)
    assert draws is not None
    for position in range(3):  # kernel by kernel, then recorded and launched
        backend.sample(Batch.of_sequence([1], 0, position), cache, draws)
    kernels, graphs = len(machine.launches), machine.graph_launches
    for position in range(3, 8):
        backend.sample(Batch.of_sequence([1], 0, position), cache, draws)
    assert machine.graph_launches - graphs == 5
    assert len(machine.launches) - kernels == 5 * (1 + 5 * OTHERS.config.n_layers + 2)


@pytest.mark.usefixtures("gpu")
def test_tokens_sampled_on_the_device_are_those_of_the_sampler() -> None:
    """Two rows with settings of their own."""
    cpu, gpu = pair(OTHERS.model(), "int8")
    ours, theirs = gpu.new_cache(2, 20), cpu.new_cache(2, 20)
    params = [SamplingParams(temperature=0), SamplingParams(temperature=0.8, top_p=0.8, top_k=20)]
    host, device = ([Sampler(p, 11) for p in params] for _ in range(2))
    tokens = [1, 2]
    for position in range(8):
        batch = Batch(*(np.array(a, np.int32) for a in (tokens, range(2), [position] * 2, range(2))))
        logits = cpu.forward(batch, theirs)
        expected = [s.sample(row, tokens[:1], 1) for s, row in zip(host, logits, strict=True)]
        draws = [draw for sampler in device for draw in sampler.draws(1) or []]
        chosen = gpu.sample(batch, ours, draws)
        assert chosen is not None
        tokens = [s.accept(int(token), 1) for s, token in zip(device, chosen, strict=True)]
        assert tokens == expected
