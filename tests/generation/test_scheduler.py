"""Texts that are decoded together: who waits for whom, and who fails with whom."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scheduling import LONG, Watched, alone, in_threads, wait_until
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, PROMPTS, same, write_tiny
from numpy.typing import NDArray

from pyllama2 import ClosedError, Completion, Llama
from pyllama2._cpu import CpuBackend
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.errors import NumericalError
from pyllama2.generation import prefix_cache
from pyllama2.generation.generation import Update
from pyllama2.generation.job import AHEAD
from pyllama2.sampling import sample as sampling_loops
from pyllama2.sampling.sampler import Draw

pytestmark = pytest.mark.usefixtures("one_thread")


class TestTogether:
    def test_streams_of_one_thread_share_steps(self, fresh: Llama, long_path: Path) -> None:
        expected = [alone(long_path, prompt, seed=1, ignore_eos=True, max_tokens=20).text for prompt in PROMPTS]
        watched = Watched(fresh)
        streams = [fresh.stream(prompt, seed=1, ignore_eos=True, max_tokens=20) for prompt in PROMPTS]
        for _ in zip(*streams, strict=True):
            pass
        assert [stream.completion.text for stream in streams] == expected
        assert len(watched.batches) < 20 + 2 * len(PROMPTS) and max(watched.sizes[6:]) == len(PROMPTS)

    def test_a_text_runs_only_a_few_chunks_ahead(self, one_thread: None, long_path: Path) -> None:
        with Llama(long_path, prompt_lookup=False) as fresh:  # a guess that came true would save a step
            watched = Watched(fresh)
            idle = fresh.stream([1, 5], seed=1, ignore_eos=True, max_tokens=100)
            next(idle)
            before = len(watched.batches)
            busy = fresh.stream([1, 6], ignore_eos=True, max_tokens=100)
            for _ in busy:
                pass
            rows = [len(np.unique(batch.rows)) for batch in watched.batches[before:]]
            assert rows == [2] * AHEAD + [1] * (100 - AHEAD)
            assert idle.completion.usage.completion_tokens == 1  # what has not been taken has not come
            for _ in idle:
                pass
            assert same(idle.completion, alone(long_path, [1, 5], seed=1, ignore_eos=True, max_tokens=100))

    def test_a_lone_stream_does_not_run_ahead(self, fresh: Llama) -> None:
        watched = Watched(fresh)
        stream = fresh.stream([1, 5], ignore_eos=True)
        assert watched.batches == []
        for n in (1, 2, 3):
            next(stream)
            assert len(watched.batches) == n

    def test_threads_share_steps(self, fresh: Llama, long_path: Path) -> None:
        def all_are_there(batch: Batch) -> None:
            if not watched.batches:
                wait_until(lambda: len(fresh._scheduler._waiters) == 3)

        watched = Watched(fresh, all_are_there)
        sampling = {"max_tokens": 30, "ignore_eos": True, "temperature": 1.0}
        found = in_threads(*(lambda i=i: fresh.generate([1, 5 + i], seed=i, **sampling) for i in range(4)))
        assert all(same(found[i], alone(long_path, [1, 5 + i], seed=i, **sampling)) for i in range(4))
        assert watched.sizes == [2, *[4] * 29, 3]  # one began, three joined it, and it was the first to end

    def test_long_prompts_beside_others(self, fresh: Llama, long_path: Path) -> None:
        watched = Watched(fresh)
        prompt = [1, *[i % 300 + 3 for i in range(700)]]
        expected = alone(long_path, prompt, temperature=0, max_tokens=8)
        assert same(fresh.generate(prompt, temperature=0, max_tokens=8), expected)
        assert watched.sizes[:3] == [512, 189, 1]
        fresh._scheduler._rows.close()
        talking = fresh.stream([1, 5], ignore_eos=True, max_tokens=100)
        for _ in range(3):
            next(talking)
        watched.batches.clear()
        list(zip(stream := fresh.stream(prompt, temperature=0, max_tokens=8), talking, strict=False))
        assert same(stream.completion, expected)
        assert watched.sizes[:4] == [128 + 1] * 4  # then the other one is far enough ahead

    def test_rows_are_given_in_order_of_arrival(self, long_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefix_cache, "MAX_ROWS", 2)
        monkeypatch.setattr(prefix_cache, "_KEPT_ROWS", 1)
        order: list[int] = []

        def note(ids: list[int], logits: NDArray[np.float32]) -> None:
            if ids[1] not in order:
                order.append(ids[1])

        with Llama(long_path) as llm:
            llm.generate([[1, 5 + i] for i in range(9)], logits_processors=[note], max_tokens=5)
            assert llm._scheduler._rows.cache is not None and llm._scheduler._rows.cache.n_rows == 2
        assert order == list(range(5, 14))

    def test_paused_streams_give_way(self, long_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefix_cache, "MAX_ROWS", 2)
        sampling = {"seed": 4, "ignore_eos": True, "max_tokens": 30}
        prompts = [[1, 5 + i, 9] for i in range(5)]
        with Llama(long_path) as llm:
            streams = [llm.stream(prompt, **sampling) for prompt in prompts]
            for _ in zip(*streams, strict=True):
                pass
            found = [stream.completion for stream in streams]
        assert all(same(c, alone(long_path, p, **sampling)) for c, p in zip(found, prompts, strict=True))


class TestChoosingDevices:
    """A backend that samples tokens itself, as one on a GPU does: the same texts, unless they need their logits."""

    @pytest.fixture
    def sampled(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many tokens were sampled in each step, by a CpuBackend that can."""
        found: list[int] = []

        def sample(
            self: CpuBackend, batch: Batch, cache: KVCache, draws: Sequence[Draw], following: Sequence[Draw] | None
        ) -> NDArray[np.int32] | None:
            assert following is None  # it does not go ahead
            if len(batch.tokens) > 20:
                return None
            logits = self.forward(batch, cache)
            assert len(draws) == len(logits)
            found.append(len(draws))
            tokens = [
                row.argmax() if c.temperature == 0
                else sampling_loops.sample(row, row.max(), c.temperature, c.top_k, c.top_p, c.min_p, c.uniform)
                for row, c in zip(logits, draws, strict=True)
            ]  # fmt: skip
            return np.where(np.isfinite(logits).all(1), tokens, -1).astype(np.int32)

        monkeypatch.setattr(CpuBackend, "sample", sample)
        return found

    def test_texts_are_the_same(self, long_path: Path, sampled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        circle = [1, *[*range(3, 13)] * 3]  # prompt lookup has guesses
        settings: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.02}, {"temperature": 1.0, "top_p": 1.0},
                                          {"temperature": 0.9, "top_k": 20, "min_p": 0.01}]  # fmt: skip

        def ask() -> list[Completion]:
            with Llama(long_path) as llm:
                alone = [llm.generate(circle, max_tokens=60, seed=5, **more) for more in settings]
                together = llm.generate([circle, [1, 5], circle[:20]], max_tokens=30, seed=5)
                return [*alone, *together]

        found = ask()
        assert max(sampled) > 3, "no guesses"
        monkeypatch.undo()
        assert all(same(a, b) for a, b in zip(found, ask(), strict=True))

    def test_texts_that_need_logits(self, long_path: Path, sampled: list[int]) -> None:
        with Llama(long_path) as llm:
            settings: list[dict[str, Any]] = [
                {"logprobs": 1}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1},
                {"logit_bias": {3: 1}}, {"logits_processors": [lambda ids, logits: None]},
            ]  # fmt: skip
            for more in settings:
                llm.generate([1, 5], max_tokens=3, **more)
            assert not sampled
            llm.generate([1, 5], max_tokens=3, ignore_eos=True)
            assert sampled == [1, 1, 1]

    def test_nan(self, tmp_path: Path, sampled: list[int]) -> None:
        weights = random_weights(CONFIG)
        weights["norm.weight"][3] = np.nan
        with Llama(write_tiny(tmp_path / "nan.bin", weights=weights)) as llm:
            for temperature in (0, 1):
                with pytest.raises(NumericalError, match="at position 2"):
                    llm.generate([1, 5, 6], temperature=temperature)
        assert sampled


class TestLeaving:
    @pytest.mark.slow
    def test_closed_and_dropped_streams_are_not_computed(self, fresh: Llama) -> None:
        watched = Watched(fresh)
        closed, dropped, stays = (fresh.stream([1, 5 + i], ignore_eos=True) for i in range(3))
        for stream in (closed, dropped, stays):
            next(stream)
        closed.close()
        watched.batches.clear()
        next(stays)
        assert watched.sizes == [2]
        del dropped, stream
        gc.collect()
        next(stays)
        assert watched.sizes == [2, 1]
        assert sum(row.in_use for row in fresh._scheduler._rows.rows) == 1

    def test_a_processor_fails_its_own_text_only(self, fresh: Llama, long_path: Path) -> None:
        def broken(ids: list[int], logits: NDArray[np.float32]) -> None:
            if len(ids) == 4:
                raise KeyError("mine")

        failing = fresh.stream([1, 5], ignore_eos=True, logits_processors=[broken])
        next(failing)  # its next logits are computed with the text below, and wait for the caller
        driver = fresh.generate([1, 6], seed=1)
        assert same(driver, alone(long_path, [1, 6], seed=1))
        assert len(next(failing).token_ids) == 1
        with pytest.raises(KeyError, match="mine"):
            next(failing)
        assert list(failing) == [] and failing.completion.usage.completion_tokens == 2
        with pytest.raises(KeyError, match="mine"):
            fresh.generate([[1, 6], [1, 5]], ignore_eos=True, logits_processors=[broken])

    @pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt(), RuntimeError("lost")])
    def test_a_failing_step_is_its_drivers(self, fresh: Llama, long_path: Path, error: BaseException) -> None:
        armed = False

        def fail(batch: Batch) -> None:
            if armed:
                raise error

        Watched(fresh, fail)
        other = fresh.stream([1, 5], seed=1, ignore_eos=True)
        begun = fresh.stream([1, 6], ignore_eos=True)
        next(other), next(begun)
        armed = True
        with pytest.raises(type(error)):
            list(begun)
        with pytest.raises(type(error)):
            fresh.generate(LONG)
        armed = False
        assert list(begun) == [] and begun.completion.finish_reason == "cancelled"
        for _ in other:
            pass
        assert same(other.completion, alone(long_path, [1, 5], seed=1, ignore_eos=True))
        assert same(fresh.generate(LONG, seed=1), alone(long_path, LONG, seed=1))

    def test_closing_the_llama_ends_all(self, long_path: Path) -> None:
        llm = Llama(long_path)
        stream = llm.stream([1, 5], ignore_eos=True)
        next(stream)

        def wait_for_closing(batch: Batch) -> None:
            if len(watched.batches) == 5:
                wait_until(lambda: len(llm._scheduler._waiters) == 1)
                closing.set()
                wait_until(lambda: llm._scheduler._closed)

        watched = Watched(llm, wait_for_closing)
        closing = threading.Event()
        calls = [lambda i=i: llm.generate([1, 6 + i], max_tokens=None, ignore_eos=True) for i in range(2)]

        def close() -> None:
            closing.wait(30)
            llm.close()

        *found, none = in_threads(*calls, close)
        assert none is None and all(isinstance(e, ClosedError) and "this Llama is closed" in str(e) for e in found)
        for call in (lambda: next(stream), lambda: llm.generate("a"), lambda: llm.stream("a")):
            with pytest.raises(ClosedError, match="this Llama is closed"):
                call()
        llm.close()

    def test_closing_from_a_logits_processor(self, long_path: Path) -> None:
        llm = Llama(long_path)
        with pytest.raises(ClosedError, match="this Llama is closed"):
            llm.generate([1, 5], logits_processors=[lambda ids, logits: llm.close()], ignore_eos=True)
        assert llm._scheduler._rows.cache is None

    def test_generating_in_a_logits_processor(self, fresh: Llama, long_path: Path) -> None:
        inner: list[Completion] = []

        def asks(ids: list[int], logits: NDArray[np.float32]) -> None:
            inner.append(fresh.generate([1, 9], seed=2, max_tokens=5))
            stream = fresh.stream([1, 9], seed=2, max_tokens=5)
            assert "".join(chunk.text for chunk in stream) == inner[0].text

        outer = fresh.generate([1, 5], seed=1, max_tokens=3, ignore_eos=True, logits_processors=[asks])
        assert same(outer, alone(long_path, [1, 5], seed=1, max_tokens=3, ignore_eos=True))
        assert len(inner) == 3 and same(inner[2], alone(long_path, [1, 9], seed=2, max_tokens=5))


class TestInterrupts:
    """The main thread gets Ctrl-C; the texts of others do not notice."""

    def test_in_a_step(self, fresh: Llama, long_path: Path) -> None:
        other = fresh.stream([1, 5], seed=1, ignore_eos=True)
        next(other)
        watched = Watched(fresh, lambda batch: signal.raise_signal(signal.SIGINT) if len(batch.tokens) > 2 else None)
        with pytest.raises(KeyboardInterrupt):
            fresh.generate(LONG)
        assert watched.batches == []
        for _ in other:
            pass
        assert same(other.completion, alone(long_path, [1, 5], seed=1, ignore_eos=True))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_while_others_texts_advance(self, fresh: Llama, long_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = fresh.stream([1, 5], seed=1, ignore_eos=True)
        next(other)
        text = other.job.text
        advance = text.advance

        def interrupts(result: NDArray[np.float32] | int) -> Update:
            if len(text.ids) == 4:
                signal.raise_signal(signal.SIGINT)
            return advance(result)

        monkeypatch.setattr(text, "advance", interrupts)
        with pytest.raises(KeyboardInterrupt):
            fresh.generate([1, 6], ignore_eos=True)
        for _ in other:
            pass
        assert same(other.completion, alone(long_path, [1, 5], seed=1, ignore_eos=True))

    def test_while_another_drives(self, fresh: Llama, long_path: Path) -> None:
        main = threading.main_thread().ident
        assert main is not None

        def interrupts(batch: Batch) -> None:
            if len(watched.batches) == 3:
                wait_until(lambda: len(fresh._scheduler._waiters) == 1)
                signal.pthread_kill(main, signal.SIGINT)

        watched = Watched(fresh, interrupts)
        found: list[Completion] = []
        sampling = {"seed": 1, "ignore_eos": True, "max_tokens": 50}
        thread = threading.Thread(target=lambda: found.append(fresh.generate([1, 5], **sampling)))
        thread.start()
        wait_until(lambda: len(watched.batches) > 0)
        with pytest.raises(KeyboardInterrupt):
            fresh.generate([1, 6], max_tokens=None, ignore_eos=True)
        thread.join()
        assert same(found[0], alone(long_path, [1, 5], **sampling))
