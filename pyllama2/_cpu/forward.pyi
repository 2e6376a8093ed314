from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..storage.model_file import StoredModel
from .cache import CpuKVCache
from .workspace import Workspace

STEPS: dict[str, tuple[str, ...]]

class Forward:
    tokens: list[int]
    passes: list[int]
    workspace: Workspace
    def __init__(self, model: StoredModel, n_threads: int, isa: str, cpus: Sequence[int] = ()) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def step_seconds(self) -> NDArray[np.float64]: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        rows: NDArray[np.int32],
        positions: NDArray[np.int32],
        outputs: NDArray[np.int32],
        cache: CpuKVCache,
        hidden: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]: ...
