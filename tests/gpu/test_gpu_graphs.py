"""What the CUDA backend launches and allocates, counted by the pretended driver: graphs, and the plan of memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.gpu_backend import make_model, pool_bytes, pretended, random_tokens
from helpers.tiny import CONFIGS, GQA
from pretended_driver import Machine

from pyllama2._gpu import CudaBackend
from pyllama2._gpu.launchers.attention import Attend
from pyllama2._gpu.planner import CHUNKS, CONTEXT_BYTES, GRAPHS, plan
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.errors import BackendUnavailableError, Pyllama2Error
from pyllama2.sampling.sampler import Draw

# As many layers as 7B has, for counts that depend on nothing else.
DEEP = ModelConfig(
    dim=32, hidden_dim=64, n_layers=32, n_heads=4, n_kv_heads=4, head_dim=8, vocab_size=40, max_seq_len=4096
)  # fmt: skip


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The pretended driver of one test: its counts begin at 0."""
    with pretended().machine() as machine:
        yield machine


def used_bytes() -> int:
    """What CuPy's pool counts for the arrays that are alive."""
    return int(pretended().cupy.get_default_memory_pool().used_bytes())


def step(token: int, position: int, row: int = 0) -> Batch:
    return Batch.of_sequence([token], row, position)


@pytest.mark.subprocess
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_a_token_of_32_layers_is_one_launch_of_163_kernels(machine: Machine, kv_dtype: str) -> None:
    backend = CudaBackend(make_model(DEEP), kv_dtype=kv_dtype)
    cache = backend.new_cache(1, 20)
    for position in range(3):  # kernel by kernel, then recorded and launched
        backend.sample(step(1, position), cache, [Draw(0.0)])
    kernels, graphs = len(machine.launches), machine.graph_launches
    for position in range(3, 13):
        backend.sample(step(1, position), cache, [Draw(0.0)])
    assert machine.graph_launches - graphs == 10
    assert len(machine.launches) - kernels == 10 * (1 + 5 * 32 + 2)  # of 195 that are allowed
    assert backend.describe().launches == "one graph for each decoding step"


@pytest.mark.slow
def test_greedy_steps_leave_nothing_to_the_host_but_an_id(machine: Machine) -> None:
    """The token and its position stay on the device; a drawn token needs its random number, too."""
    backend, check = (CudaBackend(make_model(GQA)) for _ in range(2))
    cache, checked = backend.new_cache(2, 30), check.new_cache(2, 30)

    def run(n_steps: int, draw: Draw, row: int, token: int, position: int) -> int:
        for _ in range(n_steps):
            logits = check.forward(step(token, position, row), checked)[0]
            chosen = backend.sample(step(token, position, row), cache, [draw])
            assert chosen is not None and chosen.dtype == np.int32
            if draw.temperature == 0:
                assert chosen.tolist() == [logits.argmax()]
            token, position = int(chosen[0]), position + 1
        return token

    token = run(4, Draw(0.0), 0, 1, 0)
    n_kernels, n_graphs = len(machine.launches), machine.graph_launches
    machine.copies.clear()
    alone = [Draw(0.0)]
    for position in range(4, 10):
        chosen = backend.sample(step(token, position), cache, alone)
        assert chosen is not None
        token = int(chosen[0])
    assert machine.copies == [("from", 4)] * 6
    assert machine.graph_launches == n_graphs + 6
    assert machine.launches[n_kernels:].count("sample") == 6
    # Another row, another position, another choice: what differs is copied.
    expected = run(3, Draw(0.0), 1, 5, 0)
    assert run(1, Draw(0.0), 1, expected, 3) >= 0
    assert run(3, Draw(0.7, 20, 0.9, 0.01, 0.5), 0, token, 10) >= 0


def test_an_interrupted_choice_is_forgotten(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has made the next step's inputs then, which nobody knows of."""
    backend = CudaBackend(make_model(GQA))
    cache = backend.new_cache(1, 10)
    expected = [backend.sample(step(3, position), cache, [Draw(0.0)]) for position in (0, 1)]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend._work, "fetch_sampled", interrupt)
        with pytest.raises(KeyboardInterrupt):
            backend.sample(step(3, 1), cache, [Draw(0.0)])
    assert backend.sample(step(3, 1), cache, [Draw(0.0)]) == expected[1]


@pytest.mark.slow
def test_graphs_are_kept_by_what_they_depend_on(machine: Machine) -> None:
    """Numbers of tokens, powers of two of 256 positions, whether logits are wanted, and caches have their own."""
    backend = CudaBackend(make_model(replace(GQA, n_layers=1, max_seq_len=1200)))
    cache, other = backend.new_cache(2, 1200), backend.new_cache(1, 1200)
    without = replace(step(1, 0), outputs=np.empty(0, np.int32))
    pair = Batch(*(np.array(a, np.int32) for a in ([1, 2], [0, 1], [0, 0], [0, 1])))
    cases = [(step(1, 0), cache), (step(1, 255), cache), (step(1, 256), cache), (step(1, 512), cache),
             (step(1, 1100), cache), (without, cache), (pair, cache), (step(1, 0), other)]  # fmt: skip
    for batch, where in [*cases, *cases, *cases]:
        backend.forward(batch, where)
    assert backend._graphs.n_captured == len(cases) - 1  # positions 0 and 255 share one
    captured = machine.graph_launches
    for batch, where in cases:
        backend.forward(batch, where)
    assert machine.graph_launches == captured + len(cases)


def test_the_graphs_used_last_are_kept(machine: Machine) -> None:
    """So many as the plan counts, and no more however long a text gets."""
    backend = CudaBackend(make_model(replace(GQA, n_layers=1, max_seq_len=1200)))
    assert backend._graphs._most == GRAPHS
    backend._graphs._most = 2
    cache = backend.new_cache(1, 1200)
    expected = {position: backend.forward(step(1, position), cache) for position in (0, 300, 600, 1100)}
    for position in (0, 0, 300, 300, 600, 600, 1100, 1100):
        assert np.array_equal(backend.forward(step(1, position), cache), expected[position], equal_nan=True)
        assert backend._graphs.n_kept <= 2
    captured, launched = backend._graphs.n_captured, machine.graph_launches
    for position in (600, 1100, 1100):  # those used last
        backend.forward(step(1, position), cache)
    assert (backend._graphs.n_captured, machine.graph_launches) == (captured, launched + 3)


@pytest.mark.parametrize("when", ["begin", "middle", "end"])
def test_without_graphs_steps_are_launched_kernel_by_kernel(
    machine: Machine, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CudaBackend(make_model(GQA))
    backend = CudaBackend(make_model(GQA))
    theirs, ours = expected.new_cache(1, 20), backend.new_cache(1, 20)
    refuse_captures(machine, when, backend, monkeypatch)
    for position in range(5):
        found = backend.forward(step(3, position), ours)
        assert not machine.captures
        assert np.array_equal(found, expected.forward(step(3, position), theirs))
    assert backend.describe().launches == "kernel by kernel (no captures today)"


def refuse_captures(machine: Machine, when: str, backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    stream_class, stream = type(backend._stream), backend._stream
    begin, end = stream_class.begin_capture, stream_class.end_capture

    def refuse(self: Any, *args: Any) -> Any:
        if self is not stream:
            return (begin if args else end)(self, *args)
        if when == "end":
            end(self)
        raise RuntimeError("no captures today")  # CuPy raises a subclass

    if when == "middle":
        launch = Attend.__call__

        def attend(*args: Any) -> None:
            if machine.captures:
                raise RuntimeError("no captures today")  # CuPy raises a subclass
            launch(*args)

        monkeypatch.setattr(Attend, "__call__", attend)
    else:
        monkeypatch.setattr(stream_class, f"{when}_capture", refuse)


def test_ctrl_c_in_a_capture_leaves_the_stream_usable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CudaBackend(make_model(GQA))
    cache = backend.new_cache(1, 20)
    backend.forward(step(3, 0), cache)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Attend, "__call__", interrupt)
        backend.forward(step(3, 1), cache)
    assert not machine.captures
    tokens = random_tokens(GQA, 12)
    expected = backend.forward(Batch.of_sequence(tokens), backend.new_cache(1, 12))
    for position, token in enumerate(tokens):
        found = backend.forward(step(token, position), cache)
    assert np.array_equal(found, expected)
    assert backend.describe().launches.startswith("one graph")


@pytest.mark.subprocess
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_plan_is_what_the_backend_allocates(machine: Machine, name: str, kv_dtype: str) -> None:
    backend = CudaBackend(make_model(CONFIGS[name]), kv_dtype=kv_dtype)
    cache = backend.new_cache(3, 40)
    planned = backend.plan(3, 40)
    assert backend.kv_cache_bytes(3, 40) == cache.nbytes == planned.parts["cache"]
    assert planned.allocated == planned.total - CONTEXT_BYTES - planned.driver_bytes
    assert used_bytes() == pool_bytes(planned)
    for n in (1, 12, 1, 1):
        backend.forward(Batch.of_sequence([1] * n), cache)
    assert used_bytes() == pool_bytes(planned)  # a pass allocates nothing
    facts = backend.describe()
    assert facts.weight_bytes + facts.scratch_bytes + cache.nbytes == planned.allocated
    cache.close()
    backend.close()
    del cache, backend
    assert used_bytes() == 0


def test_int8_is_taken_where_only_that_fits() -> None:
    model, driver = make_model(replace(DEEP, n_layers=16)), pretended()
    with driver.machine():
        assert CudaBackend(model).kv_dtype == "float16"
        needed = {kind: plan(model.config, model.quantization, 1, 2048, kind, CHUNKS[-1]).needed
                  for kind in ("float16", "int8")}  # fmt: skip
    with driver.machine(total_bytes=needed["float16"] - 1):
        assert CudaBackend(model).kv_dtype == "int8"
        with pytest.raises(Pyllama2Error, match="float16 keys and values of 2048 tokens"):
            CudaBackend(model, kv_dtype="float16")
    with driver.machine(total_bytes=needed["int8"] - 1), pytest.raises(Pyllama2Error, match="would fit"):
        CudaBackend(model)


def test_a_cache_that_does_not_fit_is_refused_with_numbers(machine: Machine) -> None:
    backend = CudaBackend(make_model(replace(DEEP, n_layers=2)))
    before = used_bytes()
    with pytest.raises(Pyllama2Error, match=r"of 9000 sequences of 4096 tokens .* GiB are free"):
        backend.new_cache(9000, 4096)
    assert used_bytes() == before
    free = backend.free_bytes()
    assert free is not None and 0 < free < machine.settings.total_bytes
    for n_rows, length in ((0, 4), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            backend.new_cache(n_rows, length)


def test_models_and_settings_that_the_gpu_has_not(machine: Machine) -> None:
    with pytest.raises(BackendUnavailableError, match="heads of up to 256 numbers"):
        CudaBackend(make_model(replace(GQA, head_dim=512)))
    with pytest.raises(ValueError, match="kv_dtype must be float16 or int8"):
        CudaBackend(make_model(GQA), kv_dtype="float32")
