"""The CUDA backend: CuPy and the kernels in kernels/*.cu. backend.py is its face."""

from .backend import CudaBackend

__all__ = ["CudaBackend"]
