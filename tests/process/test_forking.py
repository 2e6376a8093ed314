"""A forked child generates what its parent does, whatever the parent's threads were doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
from helpers.tiny_llama import PROMPT, PROMPTS, write_tiny

from pyllama2 import Llama, Pyllama2Error
from pyllama2._gpu.backend import CudaBackend
from pyllama2.backend.base import Batch
from pyllama2.process import forking
from pyllama2.process.interrupts import Interrupts

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin")


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    """With a team of two threads that has worked."""
    with Llama(path, n_threads=2) as llm:
        llm.generate(PROMPT, max_tokens=2)
        yield llm


def greedy(llm: Llama, prompt: str = PROMPT) -> str:
    return llm.generate(prompt, max_tokens=20, temperature=0, ignore_eos=True).text


def in_child(work: Callable[[], bool]) -> int:
    """The exit code of a child in which work is done: 0 when it was true, 1 when not, -9 when it never ended."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return exit_code(child)


def exit_code(child: int) -> int:
    """Wait for a child, for half a minute at most."""
    for _ in range(3000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_both(work: Callable[[], bool], children: list[int], amid: str | None = None) -> None:
    """Do work, again and again until a signal's handler has forked in it: its result is true in parent and child.

    children gets the child's id, 0 in the child. amid is the name of the Python function that must be interrupted.
    """

    def fork(number: int, frame: FrameType | None) -> None:
        if amid is None or (frame is not None and frame.f_code.co_name == amid):
            children.append(os.fork())
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    done = False
    before = signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 0.02)  # once: a signal that came while it forks would fork again
    try:
        while not children:
            done = work()
    finally:
        if children == [0]:
            os._exit(0 if done else 1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done and exit_code(children[0]) == 0


@contextmanager
def held_elsewhere(holds: Callable[[], AbstractContextManager[object]], children: list[int]) -> Iterator[None]:
    """Another thread is in the block of holds() until children is not empty."""

    def hold() -> None:
        with holds():
            taken.set()
            while not children:
                time.sleep(0.001)

    taken = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(30)
    yield
    holder.join(30)


@contextmanager
def busy(llm: Llama, n_threads: int = 3) -> Iterator[None]:
    """While threads generate."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            llm.generate(PROMPTS, max_tokens=30, seed=1, ignore_eos=True)

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_child_of_a_thread_that_has_generated(llm: Llama) -> None:
    expected = greedy(llm)
    assert in_child(lambda: greedy(llm) == expected) == 0
    assert greedy(llm) == expected


def test_grandchild(llm: Llama) -> None:
    expected = greedy(llm)
    assert in_child(lambda: greedy(llm) == expected and in_child(lambda: greedy(llm) == expected) == 0) == 0


def test_child_of_a_model_made_elsewhere(path: Path, llm: Llama) -> None:
    def work() -> bool:
        with Llama(path, n_threads=2) as another:
            return greedy(another) == expected

    expected = greedy(llm)
    assert in_child(work) == 0


@pytest.mark.subprocess
def test_while_other_threads_are_in_a_step(llm: Llama) -> None:
    expected = greedy(llm)
    scores = llm.score(PROMPT).tolist()
    with busy(llm):
        for i in range(12):
            time.sleep(0.001 * i)
            assert in_child(lambda: greedy(llm) == expected and llm.score(PROMPT).tolist() == scores) == 0
    assert greedy(llm) == expected


@pytest.mark.slow
def test_a_stream_goes_on_in_both(llm: Llama) -> None:
    expected = greedy(llm)
    with busy(llm):
        stream = llm.stream(PROMPT, max_tokens=20, temperature=0, ignore_eos=True)
        begun = next(stream).text + next(stream).text

        def rest() -> bool:
            try:
                return begun + "".join(chunk.text for chunk in stream) == expected
            except Pyllama2Error as error:  # it was just taking a token
                return "forked" in str(error)

        assert in_child(rest) == 0
        assert rest()


def test_fork_inside_a_logits_processor(llm: Llama) -> None:
    """The child is in the middle of taking a token, and goes on with it."""
    children: list[int] = []

    def processor(ids: list[int], logits: object) -> None:
        if not children:
            children.append(os.fork())

    expected = greedy(llm)
    text = llm.generate(PROMPT, max_tokens=20, temperature=0, ignore_eos=True, logits_processors=[processor]).text
    if children == [0]:
        os._exit(0 if text == expected and greedy(llm) == expected else 1)
    assert text == expected
    assert os.waitpid(children[0], 0)[1] == 0


def test_while_another_thread_is_in_a_logits_processor(llm: Llama) -> None:
    """Its text ends in the child, and nobody waits for it there."""
    inside, leave = threading.Event(), threading.Event()

    def processor(ids: list[int], logits: object) -> None:
        inside.set()
        leave.wait(30)

    def ends() -> bool:
        with pytest.raises(Pyllama2Error, match="forked"):
            next(stream)
        return list(stream) == [] and greedy(llm) == expected

    expected = greedy(llm)
    stream = llm.stream(PROMPT, max_tokens=20, temperature=0, ignore_eos=True, logits_processors=[processor])
    thread = threading.Thread(target=lambda: next(stream))
    thread.start()
    inside.wait(30)
    assert in_child(ends) == 0
    leave.set()
    thread.join(30)
    assert stream.completion.text + "".join(chunk.text for chunk in stream) == expected


@pytest.mark.slow
def test_locks_that_another_thread_holds(llm: Llama) -> None:
    """The backend's, the chat formats' and the scheduler's, held at the moment of the fork."""
    expected = greedy(llm)
    assert llm._backend is not None
    for lock in (llm._backend._lock, llm._requests._lock, llm._scheduler._lock):  # type: ignore[attr-defined]
        taken, end = threading.Event(), threading.Event()

        def hold(lock: threading.Lock = lock, taken: threading.Event = taken, end: threading.Event = end) -> None:
            with lock:
                taken.set()
                end.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait()
        assert in_child(lambda: greedy(llm) == expected and bool(llm.chat_tokens(MESSAGES, template="llama2"))) == 0
        end.set()
        holder.join()


def test_signals_of_a_child_that_another_thread_forked(llm: Llama) -> None:
    """The main thread is generating, and holds signals back; in the child nobody would give them on."""
    codes: list[int] = []

    def is_default() -> bool:
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def fork() -> None:
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.0001)
        codes.append(in_child(is_default))

    forker = threading.Thread(target=fork)
    forker.start()
    while forker.is_alive():
        llm.generate(PROMPT, max_tokens=30, ignore_eos=True)
    assert codes == [0] and is_default()


class TestForkInASignalHandler:
    """The child goes on from where the handler was called."""

    @pytest.mark.subprocess
    def test_amid_a_prompt(self, tmp_path: Path) -> None:
        """Between two layers, where handlers run in compiled code: the child lacks the team's other threads."""
        with Llama(write_tiny(tmp_path / "long.bin", max_seq_len=1500), n_threads=2) as llm:
            backend, batch = llm._require_backend(), Batch.of_sequence([5] * 1500)
            cache = backend.new_cache(1, 1500)
            expected = backend.forward(batch, cache).tolist()
            for _ in range(5):
                in_both(lambda: backend.forward(batch, cache).tolist() == expected, [], amid="run")

    def test_while_it_waits_for_another_threads_step(self, llm: Llama) -> None:
        @contextmanager
        def step() -> Iterator[None]:
            with Interrupts() as interrupts, llm._scheduler.rows(interrupts):
                yield

        expected = greedy(llm)
        children: list[int] = []
        with held_elsewhere(step, children):
            in_both(lambda: greedy(llm) == expected, children)

    def test_while_it_waits_for_its_text_to_be_sampled_by_another_thread(self, llm: Llama) -> None:
        def processor(ids: list[int], logits: object) -> None:
            taken.set()
            while not children:
                time.sleep(0.001)

        def ends() -> bool:
            try:
                return len(list(stream)) > 0
            except Pyllama2Error as error:
                return children == [0] and "forked" in str(error)

        children: list[int] = []
        taken = threading.Event()
        stream = llm.stream(PROMPT, max_tokens=20, temperature=0, ignore_eos=True, logits_processors=[processor])
        sampler = threading.Thread(target=lambda: next(stream))
        sampler.start()
        taken.wait(30)
        in_both(ends, children)
        sampler.join(30)

    @pytest.mark.subprocess
    @pytest.mark.parametrize("owner", ["_backend", "_requests"])
    def test_while_it_waits_for_a_lock(self, llm: Llama, owner: str) -> None:
        expected = greedy(llm)
        children: list[int] = []
        with held_elsewhere(lambda: getattr(llm, owner)._lock, children):
            in_both(lambda: bool(llm.chat_tokens(MESSAGES, template="llama2")) and greedy(llm) == expected, children)


def test_random_texts_differ_unless_seeded(path: Path, llm: Llama) -> None:
    def texts_of(llm: Llama) -> tuple[str, str]:
        """The parent's and a child's."""
        read, write = os.pipe()
        sample = partial(llm.generate, PROMPT, max_tokens=20, temperature=2.0, ignore_eos=True)
        assert in_child(lambda: os.write(write, sample().text.encode()) > 0) == 0
        return sample().text, os.read(read, 4096).decode()

    ours, theirs = texts_of(llm)
    assert ours != theirs
    with Llama(path, n_threads=2, seed=1) as seeded:
        ours, theirs = texts_of(seeded)
    assert ours == theirs


def _greedy_in_worker(path: Path) -> str:
    with Llama(path, n_threads=2) as llm:
        return greedy(llm)


@pytest.mark.subprocess
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, path: Path, llm: Llama) -> None:
    expected = greedy(llm)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(_greedy_in_worker, [path, path]).get(60) == [expected, expected]


@pytest.mark.subprocess
def test_data_loader_workers_use_the_parents_model(llm: Llama) -> None:
    data = pytest.importorskip("torch.utils.data")

    class Texts(data.Dataset[str]):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(PROMPTS)

        def __getitem__(self, i: int) -> str:
            return greedy(llm, PROMPTS[i])

    loader = data.DataLoader(Texts(), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    assert list(loader) == [greedy(llm, prompt) for prompt in PROMPTS]


@pytest.mark.subprocess
@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib(backend: str, path: Path, llm: Llama) -> None:
    joblib = pytest.importorskip("joblib")
    expected = greedy(llm)
    work = [joblib.delayed(_greedy_in_worker)(path)] * 2
    assert joblib.Parallel(n_jobs=2, backend=backend, timeout=60)(work) == [expected, expected]


def test_a_gpu_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = object.__new__(CudaBackend)
    backend._process = os.getpid() + 1
    for use in (backend.describe, backend.free_bytes, lambda: backend.new_cache(1, 1)):
        with pytest.raises(Pyllama2Error, match="a model on a GPU cannot be used in a forked process"):
            use()
    backend.close()


def test_things_that_are_gone_are_not_renewed() -> None:
    class Thing:
        renewed = 0

        def renew(self) -> None:
            Thing.renewed += 1

    kept, gone = Thing(), Thing()
    forking.renew_after_fork(kept, Thing.renew)
    forking.renew_after_fork(gone, Thing.renew)
    del gone
    assert in_child(lambda: Thing.renewed == 1) == 0
