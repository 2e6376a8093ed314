"""cupy.ndarray as a backend uses it: memory that numpy does not see by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .device import Device, poison

GUARD = 4096  # bytes before and behind each buffer that belong to no array


class Buffer:
    """Device memory of one allocation; which bytes of it were written; which stream used it last."""

    def __init__(self, device: Device, n_bytes: int) -> None:
        self.device, self.n_bytes = device, n_bytes
        device.allocate(self)
        raw = np.empty(n_bytes + 2 * GUARD + 512, np.uint8)
        start = -(raw.ctypes.data + GUARD) % 512 + GUARD
        poison(raw[start : start + n_bytes] if device.settings.mode == "fast" else raw)
        self.bytes = raw[start : start + n_bytes]
        self.address: int = self.bytes.ctypes.data if n_bytes else raw.ctypes.data + start
        self.written = np.zeros(n_bytes, np.uint8) if device.settings.checks else None
        self.last_write: tuple[Any, int] | None = None  # stream and its number of the operation
        self.last_reads: dict[int, tuple[Any, int]] = {}


class MemoryPointer:
    """ndarray.data: where an array begins."""

    def __init__(self, address: int) -> None:
        self.ptr = address


class Array:
    """What cupy calls ndarray. There is no implicit conversion to numpy, and no arithmetic."""

    __array_ufunc__ = None

    def __init__(self, buffer: Buffer, host: np.ndarray) -> None:
        self.buffer, self.host = buffer, host  # host: the same memory as numpy sees it; for the emulator only

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    ndim = property(lambda self: self.host.ndim)
    itemsize = property(lambda self: self.host.itemsize)
    strides = property(lambda self: self.host.strides)
    flags = property(lambda self: self.host.flags)

    @property
    def data(self) -> MemoryPointer:
        """Its address is that of the first element."""
        offset = self.host.ctypes.data - self.buffer.bytes.ctypes.data if self.host.size else 0
        return MemoryPointer(self.buffer.address + offset)

    @property
    def T(self) -> Array:
        """The transposed view."""
        return self._view(self.host.T)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array."
        )

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{self.dtype} array {self.shape} on the emulated device>"

    def __getitem__(self, key: Any) -> Array:
        return self._view(self.host[_as_host_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.buffer.device.refuse_while_capturing("an assignment")
        source = value
        if isinstance(value, Array):
            value.used(write=False)
            source = value.host
        elif isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")  # cupy refuses it too
        target = self[key]
        target.used(write=True)
        target.host[...] = source
        target.mark_written()

    def reshape(self, *shape: Any) -> Array:
        """A view of another shape; refused where numpy would copy."""
        result = self.host.reshape(*shape)
        if self.host.size and not np.shares_memory(result, self.host):
            raise NotImplementedError("the stand-in only reshapes where no copy is needed")
        return self._view(result)

    def ravel(self) -> Array:
        """A view of one dimension."""
        return self.reshape(-1)

    def view(self, dtype: Any) -> Array:
        """The same bytes as another type."""
        return self._view(self.host.view(dtype))

    def transpose(self, *axes: Any) -> Array:
        """A view with other axes."""
        return self._view(self.host.transpose(*axes))

    def copy(self) -> Array:
        """A new array of the same contents."""
        result = empty(self.buffer.device, self.shape, self.dtype)
        result[...] = self
        return result

    def fill(self, value: Any) -> None:
        """Sets every element."""
        self.buffer.device.refuse_while_capturing("fill")
        self.used(write=True)
        self.host.fill(value)
        self.mark_written()

    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        """A copy on the host. With blocking=False it arrives only when the stream is synchronized."""
        device = self.buffer.device
        device.refuse_while_capturing("a copy from the device")
        stream = stream or device.current_stream
        device.copies.append(("from", self.nbytes))
        self.used(write=False, stream=stream)
        if out is None:
            out = np.empty(self.shape, self.dtype, order)
        elif out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"out is {out.dtype} {out.shape} where {self.dtype} {self.shape} is needed")
        if blocking:
            stream.synchronize()
            out[...] = self.host
        else:
            poison(out.reshape(-1).view(np.uint8))
            stream.when_synchronized(_copy_later(out, self.host.copy()))
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copies an array of the same type and shape from the host."""
        self.buffer.device.refuse_while_capturing("a copy to the device")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.host.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self.buffer.device.copies.append(("to", self.nbytes))
        self.used(write=True, stream=stream)
        self.host[...] = arr
        self.mark_written()

    def mark_written(self) -> None:
        """The checker takes these bytes for written from now on."""
        if self.buffer.written is not None and self.host.size:
            flags = np.lib.stride_tricks.as_strided(self._flags(), self.shape, self.strides)
            flags.fill(1 if self.itemsize == 1 else _ONES[self.itemsize])

    def used(self, *, write: bool, stream: Any = None) -> None:
        """Checks and notes that a stream uses this memory now."""
        device = self.buffer.device
        stream = stream or device.current_stream
        stream.use_buffer(self.buffer, write=write)

    def _flags(self) -> np.ndarray:
        assert self.buffer.written is not None
        whole = self.buffer.written[self.host.ctypes.data - self.buffer.address :]
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[self.itemsize]
        return whole[: len(whole) // self.itemsize * self.itemsize].view(kind)

    def _view(self, host: np.ndarray) -> Array:
        return Array(self.buffer, host)


_ONES = {2: 0x0101, 4: 0x01010101, 8: 0x0101010101010101}


def empty(device: Device, shape: Any, dtype: Any) -> Array:
    """An array that holds NaN, or absurd numbers, and counts as never written."""
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    kind = np.dtype(dtype)
    buffer = Buffer(device, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
    return Array(buffer, buffer.bytes.view(kind).reshape(shape))


def _copy_later(out: np.ndarray, values: np.ndarray) -> Callable[[], None]:
    def copy() -> None:
        out[...] = values

    return copy


def _as_host_key(key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if not isinstance(part, int | np.integer | slice) and part is not Ellipsis and part is not None:
            raise NotImplementedError(f"the stand-in indexes with numbers and slices, not with {type(part).__name__}")
    return (*parts, Ellipsis) if Ellipsis not in parts else key
