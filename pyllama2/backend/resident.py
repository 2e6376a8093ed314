"""How much of reserved memory is really taken. The system gives a page when it is first written to."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def resident_bytes(arrays: Iterable[NDArray[Any]]) -> int:
    """Bytes of the arrays that are in memory, counted in pages; all of them if the system does not say."""
    return sum(_resident(array) for array in arrays)


def _resident(array: NDArray[Any]) -> int:
    mincore, size = _mincore(), array.nbytes
    if mincore is None or size == 0:
        return size
    first = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    n_pages = -(-(array.ctypes.data + size - first) // mmap.PAGESIZE)
    pages = np.zeros(n_pages, np.uint8)
    if mincore(first, n_pages * mmap.PAGESIZE, pages.ctypes.data) != 0:
        return size
    return min(size, int((pages & 1).sum(dtype=np.int64)) * mmap.PAGESIZE)


@cache
def _mincore() -> Any:
    """mincore() of Linux's C library, None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "mincore", None)
    if function is not None:
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p), ctypes.c_int
    return function
