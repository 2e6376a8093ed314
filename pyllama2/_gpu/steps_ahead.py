"""Decoding steps that sample, of which the GPU is given the next one before the host has the tokens of the last.

    host    launch t | launch t+1, wait for t: its tokens, texts | launch t+2, wait for t+1 | ...
    GPU              | t            | t+1                        | t+2

The sample kernel makes the inputs of the next step, so that only its draws come from the host. Tokens are copied to
pinned memory behind each step, and an event says when they are there. The next call takes the step that was begun if it
wants those very tokens, at those positions, with those draws. Else it is waited for and dropped: it has written nothing
that a row of the cache is known to have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Batch
from ..sampling.sampler import Draw
from .cache import CudaKVCache
from .workspace import Workspace

_GREEDY = Draw(0.0)


@dataclass(eq=False)
class SampledStep:
    """A step of 1 to 8 tokens, each of which has a draw.

    Attributes:
        cache: where its keys and values go.
        rows: (n,) int32, as in Batch.
        positions: (n,) int32.
        outputs: (m,) int32, as in Batch.
        draws: how it samples, by token; a token that is no output is sampled in vain.
        tokens: (n,) int32 that it feeds. Those of a step that was begun ahead come with the results of the one before:
            -1, which no batch has, where logits were not finite.
        slot: what Workspace.begin_fetch() gave.
    """

    cache: CudaKVCache
    rows: NDArray[np.int32]
    positions: NDArray[np.int32]
    outputs: NDArray[np.int32]
    draws: list[Draw]
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    slot: int = 0

    @classmethod
    def of(cls, batch: Batch, cache: CudaKVCache, draws: Sequence[Draw]) -> SampledStep:
        """Make the step of a batch, of whose outputs draws are."""
        return cls(cache, batch.rows, batch.positions, batch.outputs, _by_token(batch.outputs, len(batch.rows), draws),
                   batch.tokens)  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def last(self) -> int:
        """The largest position."""
        return int(self.positions.max())

    def places(self, wanted: SampledStep) -> list[int] | None:
        """Return where the tokens of another step are in this one; None if they are not all here."""
        own = list(self._inputs())
        if wanted.cache is not self.cache or not all(one in own for one in wanted._inputs()):
            return None
        return [own.index(one) for one in wanted._inputs()]

    def _inputs(self) -> zip[tuple[int, int, int, Draw]]:
        return zip(self.rows.tolist(), self.positions.tolist(), self.tokens.tolist(), self.draws, strict=True)

    def follower(self, draws: Sequence[Draw]) -> SampledStep | None:
        """Return the step that feeds what this one samples; None if there cannot be one. draws are of its outputs."""
        n = len(self)
        if not n == self.outputs.size == np.unique(self.rows).size or self.last + 1 >= self.cache.max_seq_len:
            return None
        rows, outputs = self.rows.copy(), self.outputs.copy()  # the caller may change those of its batch
        return SampledStep(self.cache, rows, self.positions + 1, outputs, _by_token(outputs, n, draws))


class StepsAhead:
    """Runs the steps that sample. Calls take turns. stream is where they are launched."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._begun: SampledStep | None = None  # ahead

    def sample(
        self,
        wanted: SampledStep,
        following: Sequence[Draw] | None,
        launch: Callable[[SampledStep], None],
        work: Workspace,
    ) -> NDArray[np.int32]:
        """Run a step, or take it if it was begun ahead.

        Args:
            wanted: the step.
            following: draws of the step after it, which is begun then, if that is possible. None: it is not begun.
            launch: launches the kernels of wanted, or of the step that follows it.
            work: scratch memory of the kernels.

        Returns:
            The tokens (m,) of wanted.outputs, -1 where logits are not finite.
        """
        step, places = wanted, None if self._begun is None else self._begun.places(wanted)
        if self._begun is None or places is None:
            self.drop()
            launch(wanted)
            wanted.slot = work.begin_fetch(len(wanted))
        else:
            step = self._begun
        follower = None
        if following is not None and places in (None, list(range(len(step)))):
            follower = wanted.follower(following)
        if follower is not None:
            launch(follower)
            follower.slot = work.begin_fetch(len(follower))
        sampled = work.fetch_sampled(step.slot, len(step))
        if follower is None:
            work.confirm_inputs(sampled, step.positions)
        else:
            follower.tokens = sampled
        self._begun = follower
        return (sampled if places is None else sampled[places])[wanted.outputs]

    def drop(self) -> None:
        """Wait for the step that was begun ahead, and forget it."""
        if self._begun is not None:
            self._stream.synchronize()
            self._begun = None

    def forget(self) -> None:
        """Forget the step that was begun ahead: the stream was waited for, or will be."""
        self._begun = None


def _by_token(outputs: NDArray[np.int32], n: int, draws: Sequence[Draw]) -> list[Draw]:
    """The draws of n tokens, of which outputs have those that are given."""
    found = [_GREEDY] * n
    for output, draw in zip(outputs.tolist(), draws, strict=True):
        found[output] = draw
    return found
