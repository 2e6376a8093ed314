import numpy as np
from numpy.typing import NDArray

from ..weights import Weight

class MatrixProduct:
    def __init__(self, weight: Weight, columns: int, n_threads: int = 1, isa: str = "") -> None: ...
    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
