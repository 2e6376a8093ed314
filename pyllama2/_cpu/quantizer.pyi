from typing import Any

import numpy as np
from numpy.typing import NDArray

def quantize_matrix(
    matrix: NDArray[Any], type: str, group_size: int, n_threads: int, isa: str = ""
) -> tuple[NDArray[Any], NDArray[np.float16]]: ...
