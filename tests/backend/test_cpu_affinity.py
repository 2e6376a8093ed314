"""Threads that are bound to CPUs: which ones, for how long, and that results are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import quantized_model, random_weights

from pyllama2 import Llama
from pyllama2._cpu import CpuBackend
from pyllama2._cpu.threads import cpus_of, shown_cpus, team_of
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind threads")

CONFIG = ModelConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, vocab_size=100,
                     max_seq_len=64)  # fmt: skip
USABLE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
several = pytest.mark.skipif(len(USABLE) < 2, reason="one CPU")


def logits(n_threads: int | None, cpus: tuple[int, ...]) -> np.ndarray:
    model = quantized_model(CONFIG, random_weights(CONFIG), "q4", 32)
    backend = CpuBackend(model, n_threads=n_threads, cpus=cpus)
    return backend.forward(Batch.of_sequence(list(range(20))), backend.new_cache(1, 64))


def affinities() -> dict[int, set[int]]:
    """The CPUs that each thread of this process may use, by its number."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[int(task.name)] = os.sched_getaffinity(int(task.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", (0,)), ("0-0", (0,)), (" 0 ", (0,)), ("0,1", (0, 1)), ("1,0", (1, 0)), ("0-1", (0, 1))],
)
def test_lists_and_ranges(text: str, cpus: tuple[int, ...]) -> None:
    if not set(cpus) <= set(USABLE):
        pytest.skip("these CPUs are not here")
    assert cpus_of(text) == cpus_of(list(cpus)) == cpus


@pytest.mark.parametrize("text", ["", ",", "0,", "a", "0-", "-1", "1-0", "0,0", "0-0,0", "٠", "0x1", "0 1", "cores,0"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="cpu_affinity must name CPUs once each, or be cores, not "):
        cpus_of(text)


@pytest.mark.parametrize("value", [[], (), [0, 0]])
def test_lists_that_name_nothing_or_one_twice(value: list[int]) -> None:
    with pytest.raises(ValueError, match="once each"):
        cpus_of(value)


@pytest.mark.parametrize("value", [0, 1.5, None, True, [True], ["0"], [0.0], b"0", {0}])
def test_wrong_types(value: object) -> None:
    with pytest.raises(TypeError, match=r"^cpu_affinity must be "):
        cpus_of(value)  # type: ignore[arg-type]


def test_a_cpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"cpu_affinity names CPU 9999, and this process may use \d"):
        cpus_of("9999")


def test_cores_are_one_cpu_of_each() -> None:
    cpus = cpus_of("cores")
    assert set(cpus) <= set(USABLE) and len(set(cpus)) == len(cpus) >= 1


@pytest.mark.parametrize(
    ("cpus", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 8, 10, 11), "0-2,8,10-11"), ((1, 0), "1,0")]
)
def test_how_cpus_are_shown(cpus: tuple[int, ...], text: str) -> None:
    assert shown_cpus(cpus) == text


def test_threads_follow_from_the_cpus() -> None:
    assert team_of(None, (4, 5, 6)) == 3 and team_of(2, (4, 5, 6)) == 2
    with pytest.raises(ValueError, match="cpu_affinity has 1 CPUs, and n_threads is 2"):
        team_of(2, (0,))


@several
def test_threads_run_where_they_were_told_and_the_caller_is_free_again() -> None:
    before = os.sched_getaffinity(0)
    bound: dict[int, set[int]] = {}

    def run() -> None:  # a thread of its own has a team of its own
        others = set(affinities())
        logits(None, (USABLE[1], USABLE[0]))
        assert os.sched_getaffinity(0) == before
        bound.update({task: cpus for task, cpus in affinities().items() if task not in others})

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert {frozenset(cpus) for cpus in bound.values()} == {frozenset({USABLE[0]})}


@several
def test_a_model_without_places_frees_the_team() -> None:
    seen: list[set[int]] = []

    def run() -> None:
        others = set(affinities())
        logits(None, tuple(USABLE[:2]))
        logits(2, ())
        seen.extend(cpus for task, cpus in affinities().items() if task not in others)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen and all(cpus == set(USABLE) for cpus in seen)


@several
def test_results_are_the_same() -> None:
    free = logits(2, ())
    for cpus in (tuple(USABLE[:2]), (USABLE[1], USABLE[0]), (USABLE[1],)):
        np.testing.assert_array_equal(logits(None, cpus), free)


def test_llama_takes_and_tells_it() -> None:
    with Llama("demo", device="cpu", cpu_affinity=[USABLE[0]]) as llm:
        facts = llm.describe()
        text = llm.generate("Once", max_tokens=5, temperature=0).text
    assert facts["cpu_affinity"] == str(USABLE[0]) and facts["n_threads"] == 1
    with Llama("demo", device="cpu") as llm:
        assert "cpu_affinity" not in llm.describe()
        assert llm.generate("Once", max_tokens=5, temperature=0).text == text


@pytest.mark.subprocess
@several
def test_openmp_places_are_respected() -> None:
    """Without cpu_affinity nothing moves the threads that OMP_PLACES has placed."""
    program = (
        "import os\nfrom pathlib import Path\nfrom pyllama2 import Llama\n"
        "llm = Llama('demo', device='cpu', n_threads=2)\nllm.generate('Once', max_tokens=3)\n"
        "tasks = [int(task.name) for task in Path('/proc/self/task').iterdir()]\n"
        "print(sorted(sorted(os.sched_getaffinity(task)) for task in tasks))"
    )
    places = ",".join(f"{{{cpu}}}" for cpu in USABLE[:2])
    environment = {**os.environ, "OMP_PLACES": places, "OMP_PROC_BIND": "true", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [[cpu] for cpu in USABLE[:2]]
