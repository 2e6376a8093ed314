from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def extremes(logits: NDArray[np.float32]) -> tuple[float, float]: ...
def penalize(
    logits: NDArray[np.float32],
    token_ids: Sequence[int],
    window_start: int,
    n_prompt: int,
    repetition: float,
    presence: float,
    frequency: float,
) -> None: ...
def forbid(logits: NDArray[np.float32], mask: NDArray[np.uint32]) -> bool: ...
def few_allowed(mask: NDArray[np.uint32], vocab_size: int, most: int) -> list[int] | None: ...
def sample(
    logits: NDArray[np.float32],
    highest: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int: ...
def largest(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]: ...
def log_sum(logits: NDArray[np.float32], highest: float) -> float: ...
def scratch_array() -> NDArray[np.uint8]: ...
