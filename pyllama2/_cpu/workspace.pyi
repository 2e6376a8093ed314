from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from ..config import ModelConfig
from ..storage.weights import Quantization

class Workspace:
    chunk_size: int
    def __init__(
        self,
        config: ModelConfig,
        quantization: Quantization,
        n_threads: int,
        isa: str = "",
        counts_only: bool = False,
        cpus: Sequence[int] = (),
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def arrays(self) -> list[NDArray[Any]]: ...
    def most_bytes(self, n_positions: int) -> int: ...
    def record_events(self, most: int) -> None: ...
    def events(self) -> list[NDArray[Any]]: ...
