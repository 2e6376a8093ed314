"""Lists of many prompts: what each costs, and what waits."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.scheduling import Watched, alone
from helpers.tiny_llama import same

from pyllama2 import Llama, SamplingParams
from pyllama2.backend.base import Batch
from pyllama2.errors import ContextLengthError
from pyllama2.generation.generation import Generation
from pyllama2.generation.prefix_cache import MAX_ROWS

pytestmark = pytest.mark.usefixtures("one_thread")


class TestLongLists:
    """Of a list of any length only the texts whose turn comes soon exist."""

    def calls_per_prompt(self, path: Path, n_prompts: int) -> float:
        """Python functions that were called to complete a list of so many prompts, for each of them."""
        n_calls = 0

        def count(frame: object, event: str, what: object) -> None:
            nonlocal n_calls
            n_calls += event == "call"

        with Llama(path) as llm:
            prompts = [[1, i % 300, i // 300] for i in range(n_prompts)]
            sys.setprofile(count)
            try:
                llm.generate(prompts, max_tokens=2, seed=1)
            finally:
                sys.setprofile(None)
        return n_calls / n_prompts

    @pytest.mark.slow
    def test_a_prompt_costs_the_same_in_a_longer_list(self, path: Path) -> None:
        assert self.calls_per_prompt(path, 2000) < 1.1 * self.calls_per_prompt(path, 200)

    @pytest.mark.slow
    def test_what_waits_is_not_made_yet(self, fresh: Llama) -> None:
        def alive() -> int:
            return sum(type(thing) is Generation for thing in gc.get_objects())

        gc.collect()
        before, most = alive(), 0

        def look(batch: Batch) -> None:
            nonlocal most
            most = max(most, alive() - before)

        Watched(fresh, look)
        found = fresh.generate([[1, 5 + i] for i in range(150)], max_tokens=2, ignore_eos=True)
        assert len(found) == 150 and 0 < most <= 2 * MAX_ROWS

    def test_the_order_is_that_of_the_prompts(self, fresh: Llama, long_path: Path) -> None:
        prompts = [[1, *range(5, 6 + i * 7 % 11), 9 + i] for i in range(100)]  # they end in another order
        found = fresh.generate(prompts, max_tokens=3, seed=1, ignore_eos=True)
        with Llama(long_path) as llm:
            expected = [llm.generate(prompt, max_tokens=3, seed=1, ignore_eos=True) for prompt in prompts]
        assert all(map(same, found, expected))

    def test_a_wrong_prompt_is_found_before_any_work(self, fresh: Llama) -> None:
        watched = Watched(fresh)
        with pytest.raises(ContextLengthError, match="prompt 299: "):
            fresh.generate([*[[1, 5]] * 299, [1] * 5000], max_tokens=1)
        assert watched.batches == []

    def test_interrupted_in_the_middle(self, fresh: Llama, long_path: Path) -> None:
        after = [20]  # batches

        def interrupts(batch: Batch) -> None:
            after[0] -= 1
            if after[0] == 0:
                signal.raise_signal(signal.SIGINT)

        Watched(fresh, interrupts)
        with pytest.raises(KeyboardInterrupt):
            fresh.generate([[1, 5 + i] for i in range(300)], max_tokens=3, ignore_eos=True)
        again = fresh.generate([1, 5], seed=1, max_tokens=5)
        assert same(again, alone(long_path, [1, 5], seed=1, max_tokens=5)) and not fresh._scheduler._jobs

    def test_what_a_list_shares_is_prepared_once(self, fresh: Llama) -> None:
        """A large logit_bias is not read for each prompt again."""

        class Counting(dict[int, float]):
            walks = 0

            def __iter__(self) -> Iterator[int]:
                Counting.walks += 1
                return super().__iter__()

        params = SamplingParams(logit_bias={5: 1.0}, max_tokens=1)
        object.__setattr__(params, "logit_bias", Counting(params.logit_bias or {}))
        fresh.generate([[1, 5 + i] for i in range(100)], params)
        assert 0 < Counting.walks < 10
