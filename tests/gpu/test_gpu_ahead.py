"""Steps that the GPU is given before the host has the tokens of those before: the same tokens, and enough buffers.

On the pretended driver, work waits until the host waits for it. The tests of buffers put a mistake in, which is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gpu_backend import checking_cupy, make_model, pretended, random_tokens, real_cupy
from helpers.tiny import GQA
from helpers.tiny_llama import PROMPTS, same, write_tiny
from numpy.typing import NDArray
from pretended_driver import Machine

from pyllama2 import Completion, Llama
from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend, steps_ahead, workspace
from pyllama2._gpu.steps_ahead import StepsAhead
from pyllama2.backend.base import Backend, Batch
from pyllama2.sampling.sampler import Draw, sampled

pytestmark = pytest.mark.subprocess
LENGTH = 40


@pytest.fixture
def machine() -> Iterator[Machine]:
    with pretended().machine() as machine:
        yield machine


def drawn(n_steps: int, n_rows: int, *, greedy: bool = False) -> list[list[Draw]]:
    """Draws of each step and row. Greedy ones are all equal, others all differ."""
    uniforms = np.random.default_rng(3).random((n_steps, n_rows))
    return [[Draw(0.0) if greedy else Draw(1.5, uniform=float(u)) for u in of_step] for of_step in uniforms]


def next_step(tokens: Sequence[int], position: int, rows: Sequence[int] | None = None) -> Batch:
    """A token of each row at one position."""
    n = len(tokens)
    columns = (tokens, range(n) if rows is None else rows, [position] * n, range(n))
    return Batch(*(np.array(column, np.int32) for column in columns))


class Texts:
    """Sequences that a backend decodes, beside the CPU's logits: each token is checked."""

    def __init__(self, backend: Backend, cpu: CpuBackend, n_rows: int, length: int = LENGTH) -> None:
        self.backend, self.cpu = backend, cpu
        self.ours, self.theirs = backend.new_cache(n_rows, length), cpu.new_cache(n_rows, length)
        self.tokens = [3 + row for row in range(n_rows)]  # the newest ones
        self.position = 0

    def step(
        self, draws: Sequence[Draw], following: Sequence[Draw] | None = None, rows: Sequence[int] | None = None
    ) -> None:
        """Feed the newest token of some rows, or of all, and take the next ones."""
        rows = range(len(self.tokens)) if rows is None else rows
        batch = next_step([self.tokens[row] for row in rows], self.position, rows)
        expected = [
            sampled(logits, draw) for logits, draw in zip(self.cpu.forward(batch, self.theirs), draws, strict=True)
        ]
        found = self.backend.sample(batch, self.ours, draws, following)
        assert found is not None and found.tolist() == expected
        for row, token in zip(rows, expected, strict=True):
            self.tokens[row] = token
        self.position += 1

    def check_cache(self) -> None:
        """Keys and values of all positions that were fed are the CPU's."""
        for row in range(len(self.tokens)):
            ours, theirs = (cache.save_row(row, self.position) for cache in (self.ours, self.theirs))
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(make_model(GQA), n_threads=1, kv_dtype="float16")


def texts(cpu: CpuBackend, n_rows: int) -> tuple[Texts, CudaBackend]:
    found = CudaBackend(make_model(GQA), kv_dtype="float16")
    return Texts(found, cpu, n_rows), found


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 8])
def test_a_step_is_launched_before_the_wait_for_the_token_that_it_feeds(
    machine: Machine, cpu: CpuBackend, n_rows: int, greedy: bool
) -> None:
    """When the host has the token of step t, step t + 1 has been given to the GPU, and has not run."""
    of, backend = texts(cpu, n_rows)
    draws = drawn(13, n_rows, greedy=greedy)
    launched: list[int] = []
    work = backend._work
    assert work is not None
    fetch = work.fetch_sampled

    def fetch_sampled(slot: int, n: int) -> NDArray[np.int32]:
        launched.append(machine.calls["cudaEventRecord"])
        return fetch(slot, n)

    work.fetch_sampled = fetch_sampled  # type: ignore[method-assign]
    for i in range(12):
        of.step(draws[i], draws[i + 1])
        assert machine.launches.count("sample") == i + 1
    assert launched == list(range(2, 14))
    of.check_cache()  # which drops the step that is under way
    assert machine.launches.count("sample") == 13
    assert machine.graph_launches == 12  # the first step is launched kernel by kernel


def test_greedy_steps_copy_nothing_but_tokens(machine: Machine, cpu: CpuBackend) -> None:
    of, _ = texts(cpu, 2)
    draws = drawn(1, 2, greedy=True)[0]
    for _ in range(3):
        of.step(draws, draws)
    machine.copies.clear()
    for _ in range(5):
        of.step(draws, draws)
    of.step(draws)
    of.step(draws)  # the inputs that the last one has made are known
    assert machine.copies == [("from", 8)] * 6


def test_any_use_in_between(machine: Machine, cpu: CpuBackend) -> None:
    """Each drops the step that is under way, and what comes then is as if it had never been."""
    of, backend = texts(cpu, 3)
    draws = drawn(LENGTH, 3)
    other = backend.new_cache(1, LENGTH)

    def larger() -> None:
        """The workspace is made anew, and with it all buffers."""
        before = backend._work
        backend.new_cache(1, GQA.max_seq_len).close()
        assert backend._work is not before

    def copy() -> None:
        of.ours.copy_prefix(0, 2, of.position)
        of.theirs.copy_prefix(0, 2, of.position)

    uses: list[Callable[[], Any]] = [
        lambda: backend.forward(next_step([1], 3), other),
        lambda: backend.forward(Batch.of_sequence(random_tokens(GQA, 12)), other),
        lambda: backend.sample(next_step([1], 5), other, [Draw(1.0, uniform=0.3)]),
        lambda: backend.sample(next_step([1], 5), other, [Draw(1.0, uniform=0.4)], [Draw(1.0, uniform=0.6)]),
        copy,
        lambda: of.ours.load_row(0, of.ours.save_row(0, of.position)),
        larger, backend.free_bytes,
    ]  # fmt: skip
    for use in uses:
        i = of.position
        of.step(draws[i], draws[i + 1])
        use()
        assert backend._ahead._begun is None or backend._ahead._begun.cache is other
        of.step(draws[i + 1], draws[i + 2])
        of.step(draws[i + 2])
    of.check_cache()


def test_what_is_wanted_may_be_otherwise(machine: Machine, cpu: CpuBackend) -> None:
    """Some of the rows, in another order, with other draws, another token, or at another position."""
    of, backend = texts(cpu, 3)
    draws = drawn(LENGTH, 3)
    n_run = 0

    def ran() -> int:
        nonlocal n_run
        before, n_run = n_run, machine.launches.count("sample")
        return n_run - before

    of.step(draws[0], draws[1])
    of.step(draws[1][1:], draws[2][1:], rows=[1, 2])  # what is there of these is taken
    assert ran() == 2 and backend._ahead._begun is None
    of.position -= 1
    of.step(draws[1][:1], rows=[0])
    assert ran() == 1
    for wanted, n in (([2, 0, 1], 1), ([1], 1)):
        i = of.position
        of.step(draws[i], draws[i + 1])
        of.step([draws[i + 1][row] for row in wanted], [draws[i + 2][row] for row in wanted], rows=wanted)
        assert ran() == n + 1 and backend._ahead._begun is None
    of.position -= 1
    of.step([draws[of.position][0], draws[of.position][2]], rows=[0, 2])
    for change in ("draws", "tokens", "position"):
        i = of.position
        of.step(draws[i], draws[i + 1])
        ran()
        if change == "tokens":
            of.tokens[1] = (of.tokens[1] + 1) % GQA.vocab_size
        of.position -= change == "position"
        of.step(draws[i + 2] if change == "draws" else draws[i + 1])
        assert ran() == 2  # the one that was begun ran for nothing
    of.check_cache()


def test_the_end_of_the_cache(machine: Machine, cpu: CpuBackend) -> None:
    of, backend = texts(cpu, 2)
    draws = drawn(LENGTH, 2, greedy=True)
    for i in range(LENGTH):
        of.step(draws[i], draws[i])
        assert (backend._ahead._begun is None) == (i == LENGTH - 1)
    of.check_cache()


def test_steps_that_nothing_can_follow(machine: Machine) -> None:
    """Several tokens of a row, and outputs of some only."""
    backend = CudaBackend(make_model(GQA))
    cache = backend.new_cache(2, LENGTH)
    several = Batch.of_sequence([1, 2], outputs="all")
    some = replace(next_step([1, 2], 0), outputs=np.array([1], np.int32))
    for batch in (several, some):
        draws = [Draw(0.0)] * len(batch.outputs)
        assert backend.sample(batch, cache, draws, draws) is not None
        assert backend._ahead._begun is None


def test_numbers_that_are_not_finite(machine: Machine) -> None:
    model = make_model(GQA)
    model.weights["norm.weight"].data[3] = np.nan
    backend = CudaBackend(model)
    cache = backend.new_cache(1, LENGTH)
    for _ in range(2):
        found = backend.sample(next_step([1], 0), cache, [Draw(0.0)], [Draw(0.0)])
        assert found is not None and found.tolist() == [-1]


def test_ctrl_c_while_waiting(machine: Machine, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    of, backend = texts(cpu, 2)
    draws = drawn(LENGTH, 2)
    of.step(draws[0], draws[1])

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = list(of.tokens)
    with monkeypatch.context() as patch:
        patch.setattr(backend._work, "fetch_sampled", interrupt)
        with pytest.raises(KeyboardInterrupt):
            of.step(draws[1], draws[2])
    assert backend._ahead._begun is None and of.tokens == before
    of.step(draws[1], draws[2])
    of.step(draws[2])
    of.check_cache()


def test_closing_with_a_step_under_way(machine: Machine, cpu: CpuBackend) -> None:
    of, backend = texts(cpu, 2)
    of.step(*drawn(2, 2))
    of.ours.close()
    backend.close()
    assert backend._ahead._begun is None


# ---- buffers: each mistake is found


def findings(machine: Machine, cpu: CpuBackend, *, dropping: bool = False) -> list[str]:
    """What is wrong with some steps that are drawn."""
    of, _ = texts(cpu, 2)
    draws = drawn(12, 2)
    wrong = []
    try:
        for i in range(10):
            of.step(draws[i], draws[i + 2 if dropping else i + 1])
        of.check_cache()
    except AssertionError:
        wrong = ["wrong tokens"]
    with machine.lock:
        machine.run_all()
    return wrong + machine.take_findings()


@pytest.mark.parametrize("dropping", [False, True])
def test_no_buffer_is_used_again_too_early(machine: Machine, cpu: CpuBackend, dropping: bool) -> None:
    assert findings(machine, cpu, dropping=dropping) == []


def test_draws_that_are_written_over_too_early_are_found(
    machine: Machine, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one piece of host memory: it has the next ones when the GPU comes to copying it."""
    init = workspace.Mirror.__init__
    monkeypatch.setattr(workspace.Mirror, "__init__", lambda self, cupy, device, n_staged=1: init(self, cupy, device))
    assert any("pinned memory" in sentence for sentence in findings(machine, cpu))


def test_tokens_that_are_written_over_too_early_are_found(
    machine: Machine, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one piece of host memory: the next ones are on the way there when the host reads it."""
    monkeypatch.setattr(workspace, "STEPS_AT_ONCE", 1)
    assert findings(machine, cpu)


def test_a_step_that_is_dropped_without_waiting_is_found(
    machine: Machine, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepsAhead, "drop", StepsAhead.forget)
    assert any("pinned memory" in sentence for sentence in findings(machine, cpu, dropping=True))


def test_a_step_that_is_taken_for_another_is_found(
    machine: Machine, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_ahead.SampledStep, "places", lambda self, wanted: list(range(len(wanted))))
    assert findings(machine, cpu, dropping=True) == ["wrong tokens"]


# ---- texts


def stories(llm: Llama) -> list[Completion]:
    """Texts of all kinds, of which some come while others are decoded, end early, are closed, or need logits."""
    found = [llm.generate(PROMPTS[2], temperature=0, max_tokens=12), *llm.generate(PROMPTS, seed=2, max_tokens=9)]
    streams = [llm.stream([1, 5 + i], seed=i, temperature=1.2, stop=stop, max_tokens=n, ignore_eos=True)
               for i, (stop, n) in enumerate([(["e"], 20), ([], 7), (["th"], 30), ([], 12)])]  # fmt: skip
    for _ in range(3):
        next(streams[1]), next(streams[3])
    streams[3].close()
    found.append(llm.generate([1, 5, 9], seed=4, max_tokens=5, repetition_penalty=1.2))
    while sum(next(stream, None) is not None for stream in streams):
        pass
    found += [stream.completion for stream in streams]
    again = [1, 5, *found[-4].token_ids]  # its prefix is in the cache
    return [*found, llm.generate(again, temperature=0, max_tokens=8)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin", weight_type="q4")


def assert_stories_are_the_cpus(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    places = steps_ahead.SampledStep.places

    def counted(self: steps_ahead.SampledStep, wanted: steps_ahead.SampledStep) -> list[int] | None:
        taken.append(places(self, wanted))
        return taken[-1]

    monkeypatch.setattr(steps_ahead.SampledStep, "places", counted)
    with Llama(path, device="cpu", kv_dtype="float16", n_threads=1) as llm:
        expected = stories(llm)
    with Llama(path, device="cuda", kv_dtype="float16") as llm:
        assert all(map(same, stories(llm), expected))
        state = path.parent / "state"
        llm.save_state(state)
    assert len(taken) > 40 and taken.count(None) == 0


def test_texts_are_those_of_the_cpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_cupy():
        assert_stories_are_the_cpus(path, monkeypatch)


def test_every_access_is_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checking emulator."""
    with checking_cupy():
        assert_stories_are_the_cpus(path, monkeypatch)
