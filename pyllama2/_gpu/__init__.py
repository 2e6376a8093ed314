"""The CUDA backend: CuPy, and the kernels in kernels/*.cu. Start at backend.py."""

from .backend import CudaBackend

__all__ = ["CudaBackend"]
