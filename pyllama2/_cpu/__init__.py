"""The CPU backend: Cython and OpenMP. Start at backend.py. The inner loops are in kernels/."""

from .threads import default_threads
from .wait_policy import short_spins

with short_spins():  # the compiled modules load libgomp
    from .backend import CpuBackend
    from .quantize import quantize_matrix

__all__ = ["CpuBackend", "default_threads", "quantize_matrix"]
