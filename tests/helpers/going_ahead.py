"""A CPU backend that samples and goes ahead as one on a GPU may, for tests of who asks for what, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllama2._cpu import CpuBackend
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.sampling.sampler import Draw, sampled

MOST = 8  # tokens of a step that it samples


@dataclass
class Begun:
    """A step that was computed before it was asked for: what came of each row, position, token and draw."""

    cache: KVCache
    tokens: dict[tuple[int, int, int, Draw], int]


@dataclass
class GoingAhead:
    """What all backends did, in steps and in the tokens that they feed.

    Attributes:
        steps: tokens of each call of sample(), negative for those that were there already.
        begun: steps that were begun.
        lost: tokens that were fed for nothing.
    """

    steps: list[int] = field(default_factory=list)
    begun: int = 0
    lost: int = 0
    _under_way: Begun | None = None

    @property
    def taken(self) -> int:
        """Steps that were there when they were asked for."""
        return sum(n < 0 for n in self.steps)

    def sample(
        self, backend: CpuBackend, batch: Batch, cache: KVCache, draws: Sequence[Draw],
        following: Sequence[Draw] | None = None,
    ) -> NDArray[np.int32] | None:  # fmt: skip
        """What Backend.sample() is. What is computed for nothing leaves wrong keys and values."""
        n = len(batch.tokens)
        if n > MOST or len(batch.outputs) != len(draws) or not draws:
            return None
        wanted = list(_inputs(batch, draws)) if n == len(draws) else []
        found = self._take(backend, cache, wanted)
        self.steps.append(n if found is None else -n)
        tokens = _computed(backend, batch, cache, draws) if found is None else [found.tokens[one] for one in wanted]
        if following is not None and (found is None or len(found.tokens) == n):
            assert len(following) == len(draws) == n == len(set(batch.rows.tolist()))
            fed = np.maximum(np.array(tokens, np.int32), 0)
            after = Batch(fed, batch.rows, batch.positions + 1, batch.outputs)
            results = _computed(backend, after, cache, following)
            self._under_way = Begun(cache, dict(zip(_inputs(after, following), results, strict=True)))
            self.begun += 1
        return np.array(tokens, np.int32)

    def _take(self, backend: CpuBackend, cache: KVCache, wanted: list[tuple[int, int, int, Draw]]) -> Begun | None:
        begun, self._under_way = self._under_way, None
        if begun is None:
            return None
        fits = begun.cache is cache and bool(wanted) and all(one in begun.tokens for one in wanted)
        lost = [one for one in begun.tokens if not fits or one not in wanted]
        self.lost += len(lost)
        for row, position, token, _ in lost if begun.cache is cache else ():
            wrong = [(token + 1) % backend.config.vocab_size]
            backend.forward(Batch.of_sequence(wrong, row, position, "none"), cache)
        return begun if fits else None


def _inputs(batch: Batch, draws: Sequence[Draw]) -> zip[tuple[int, int, int, Draw]]:
    return zip(batch.rows.tolist(), batch.positions.tolist(), batch.tokens.tolist(), draws, strict=True)


def _computed(backend: CpuBackend, batch: Batch, cache: KVCache, draws: Sequence[Draw]) -> list[int]:
    logits = backend.forward(batch, cache)
    return [sampled(row, draw) for row, draw in zip(logits, draws, strict=True)]
