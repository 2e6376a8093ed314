from typing import Any

import numpy as np
from numpy.typing import NDArray

def quantize_matrix(
    matrix: NDArray[Any],
    type: str,
    group_size: int,
    n_threads: int,
    isa: str = "",
    importance: NDArray[np.float32] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float16]]: ...
