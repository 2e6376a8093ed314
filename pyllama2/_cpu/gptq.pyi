import numpy as np
from numpy.typing import NDArray

BLOCK: int

def quantize_block(
    weights: NDArray[np.float32],
    first: int,
    width: int,
    factor: NDArray[np.float32],
    importance: NDArray[np.float32],
    group_size: int,
    type: str,
    codes: NDArray[np.int8],
    scales: NDArray[np.uint16],
    errors: NDArray[np.float32],
    n_threads: int,
) -> None: ...
def inverse_of_factor(matrix: NDArray[np.float32]) -> NDArray[np.float32] | None: ...
