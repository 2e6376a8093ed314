"""The CUDA backend: CuPy and the kernels in kernels/*.cu."""

from __future__ import annotations

import importlib.util

from ..backend import Backend


class CudaBackend(Backend):
    """A model on an NVIDIA GPU. This version has its first kernels, and no forward pass yet."""

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why not: cupy, a GPU, or a version with the forward pass is missing."""
        if importlib.util.find_spec("cupy") is None:
            return 'the package cupy is not installed (pip install "pyllama2[gpu]")'
        return "this version of pyllama2 has no CUDA forward pass yet, whatever the GPU; use device='cpu'"
