"""What is computed once only, and how large the cache is."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from helpers.scheduling import LONG, Watched, alone
from helpers.tiny_llama import same

from pyllama2 import Llama, Pyllama2Error, memory
from pyllama2.backend.base import Batch
from pyllama2.generation import prefix_cache
from pyllama2.generation.prefix_cache import common_prefix

pytestmark = pytest.mark.usefixtures("one_thread")


class TestReuse:
    def test_the_same_prompt_again(self, fresh: Llama) -> None:
        first = fresh.generate(LONG, seed=1)
        watched = Watched(fresh)
        again = fresh.generate(LONG, seed=1)
        assert same(first, again) and first.usage.cached_tokens == 0
        assert again.usage.cached_tokens == len(LONG) - 1 and watched.sizes[0] == 1

    def test_turns_of_chats(self, fresh: Llama, long_path: Path) -> None:
        chats = [[1, *range(start, start + 40)] for start in (3, 100, 200)]
        for turn in range(4):
            for chat in chats:  # in turns
                completion = fresh.generate(chat, seed=turn, max_tokens=10, ignore_eos=True)
                assert same(completion, alone(long_path, chat, seed=turn, max_tokens=10, ignore_eos=True))
                # All of the last turn but the token that was generated last.
                assert completion.usage.cached_tokens == (0 if turn == 0 else len(chat) - 6)
                chat += [*completion.token_ids, *range(250, 255)]

    def test_what_a_running_text_has(self, fresh: Llama, long_path: Path) -> None:
        running = fresh.stream(LONG, seed=1, ignore_eos=True)
        next(running)
        prompt = [*LONG[:150], 7, 8, 9]
        found = fresh.generate(prompt, seed=1)
        assert found.usage.cached_tokens == 150 and same(found, alone(long_path, prompt, seed=1))
        for _ in running:
            pass
        assert same(running.completion, alone(long_path, LONG, seed=1, ignore_eos=True))

    def test_a_common_beginning_does_not_cost_the_longer_sequence(self, fresh: Llama) -> None:
        first = [*LONG, *reversed(LONG)]
        fresh.generate(first, max_tokens=1)
        assert fresh.generate([*LONG[:100], 9], max_tokens=1).usage.cached_tokens == 100
        assert fresh.generate([*first, 5], max_tokens=1).usage.cached_tokens == len(first)

    def test_the_oldest_goes_first(self, fresh: Llama) -> None:
        prompts = [[1, *range(3 + i, 33 + i)] for i in range(5)]  # one more than rows are kept
        for prompt in prompts[:4]:
            fresh.generate(prompt, max_tokens=1)
        fresh.generate(prompts[0], max_tokens=1)
        fresh.generate(prompts[4], max_tokens=1)
        cached = [fresh.generate(prompts[i], max_tokens=1).usage.cached_tokens for i in (0, 2, 3, 4)]
        assert cached == [30] * 4
        assert fresh.generate(prompts[1], max_tokens=1).usage.cached_tokens == 0

    def test_a_list_computes_what_its_prompts_share_once(self, fresh: Llama, long_path: Path) -> None:
        prompts = [[*LONG, 5 + i, 6] for i in range(6)]
        watched = Watched(fresh)
        found = fresh.generate(prompts, seed=1, max_tokens=5, ignore_eos=True)
        assert sum(watched.sizes) <= len(LONG) + 2 * 6 + 6 * 5
        assert [c.usage.cached_tokens for c in found] == [0] + [len(LONG)] * 5
        expected = [alone(long_path, prompt, seed=1, max_tokens=5, ignore_eos=True) for prompt in prompts]
        assert all(map(same, found, expected))

    def test_only_what_was_computed_counts(self, fresh: Llama, long_path: Path) -> None:
        prompt = [1, *[i % 300 + 3 for i in range(700)]]

        def fail(batch: Batch) -> None:
            if batch.positions[0] == 512:
                signal.raise_signal(signal.SIGINT)

        backend = fresh._scheduler._backend
        forward = backend.forward
        Watched(fresh, fail)
        with pytest.raises(KeyboardInterrupt):
            fresh.generate(prompt)
        backend.forward = forward  # type: ignore[method-assign]
        again = fresh.generate(prompt, seed=1)
        assert again.usage.cached_tokens == 512 and same(again, alone(long_path, prompt, seed=1))

    def test_a_short_common_beginning_is_not_counted(self, fresh: Llama) -> None:
        fresh.generate(LONG, max_tokens=1)
        assert fresh.generate([1, 3, 4, *range(200, 240)], max_tokens=1).usage.cached_tokens == 0
        assert fresh.generate([1, 3, 4, 5], max_tokens=1).usage.cached_tokens == 3

    def test_common_prefix(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(300):
            a, b = rng.integers(0, 2, (2, 12)).tolist()
            a, b, limit = a[: rng.integers(13)], b[: rng.integers(13)], int(rng.integers(13))
            expected = 0
            while expected < min(len(a), len(b), limit) and a[expected] == b[expected]:
                expected += 1
            assert common_prefix(a, b, limit) == expected


class TestSize:
    @pytest.mark.slow
    def test_the_cache_grows_and_keeps_what_it_has(self, fresh: Llama, long_path: Path) -> None:
        rows = fresh._scheduler._rows
        fresh.generate(LONG, max_tokens=1)
        assert rows.cache is not None and rows.cache.max_seq_len == 256
        running = fresh.stream(LONG[:50], seed=1, ignore_eos=True, max_tokens=40)
        next(running)
        longer = fresh.generate([*LONG, 5, 6], seed=1, max_tokens=200)
        assert rows.cache.max_seq_len == 512 and longer.usage.cached_tokens == len(LONG)
        assert same(longer, alone(long_path, [*LONG, 5, 6], seed=1, max_tokens=200))
        found = fresh.generate([[1, 5 + i] for i in range(9)], seed=1)
        assert rows.cache.n_rows == 13
        assert all(same(found[i], alone(long_path, [1, 5 + i], seed=1)) for i in range(9))
        assert fresh.generate([*LONG, 5, 6], max_tokens=1).usage.cached_tokens == len(LONG) + 1
        for _ in running:
            pass
        assert same(running.completion, alone(long_path, LONG[:50], seed=1, ignore_eos=True, max_tokens=40))

    def test_what_is_kept_has_a_limit(self, fresh: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
        assert fresh._backend is not None
        row = fresh._backend.kv_cache_bytes(1, 256)
        monkeypatch.setattr(prefix_cache, "_KEPT_BYTES", 2 * row)
        fresh.generate([[1, 5 + i, *range(20)] for i in range(9)], max_tokens=5)
        rows = fresh._scheduler._rows
        assert rows.cache is not None and rows.cache.n_rows == len(rows.rows) == 2
        assert fresh.generate([1, 13, *range(20)], max_tokens=5).usage.cached_tokens == 21
        monkeypatch.setattr(prefix_cache, "_KEPT_BYTES", 1)
        fresh.generate([[1, 5], [1, 6]], max_tokens=5)
        assert rows.cache.n_rows == 1

    @pytest.mark.slow
    def test_texts_wait_when_memory_is_short(
        self, fresh: Llama, long_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = [[1, 5 + i] for i in range(4)]
        expected = [alone(long_path, prompt, seed=1) for prompt in prompts]
        shorter = alone(long_path, prompts[0], max_tokens=100, seed=1)
        assert fresh._backend is not None
        monkeypatch.setattr(fresh._backend, "pending_bytes", lambda: 0)
        row = fresh._backend.kv_cache_bytes(1, 512) + memory.logits_bytes(fresh.config, 1)
        step = memory._step_bytes(fresh.config)
        monkeypatch.setattr(memory, "available_bytes", lambda: step + row * 2)
        found = fresh.generate(prompts, seed=1)
        rows = fresh._scheduler._rows
        assert rows.cache is not None and rows.cache.n_rows == 2 and all(map(same, found, expected))
        monkeypatch.setattr(memory, "available_bytes", lambda: step + row // 4)
        with pytest.raises(Pyllama2Error, match="keys and values of 900 tokens"):
            fresh.generate(LONG, max_tokens=700)
        assert same(fresh.generate(prompts[0], max_tokens=100, seed=1), shorter)
