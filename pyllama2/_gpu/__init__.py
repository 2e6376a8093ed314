"""The CUDA backend: CuPy, and the kernels in kernels/*.cu. Start at backend.py.

It is imported when CudaBackend is first used. availability.py, which says whether it can be, needs none of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import CudaBackend

__all__ = ["CudaBackend"]

if not TYPE_CHECKING:  # type checkers and editors read the import above instead

    def __getattr__(name: str) -> object:
        """Import CudaBackend when it is first used (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .backend import CudaBackend

        return CudaBackend
