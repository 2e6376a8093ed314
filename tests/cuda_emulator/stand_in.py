"""The names of cupy that a backend uses, on an emulated device: a StandIn is passed in place of the module cupy."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import arrays, kernels, streams
from .arrays import Array
from .device import CUDARuntimeError, Device, OutOfMemoryError, Settings, poison


class StandIn(types.ModuleType):
    """What `import cupy` gives, as far as a backend needs it.

    Args:
        settings: as keywords, see Settings: mode, order, arch, total_bytes ...

    `stand_in.device` is the emulator's side: findings, counts, launches, bytes allocated.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__("cupy", "An emulated cupy: no GPU is involved.")
        self.device = Device(Settings(**settings))
        self.__version__ = "14.2.0"
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None, is_package=True)
        self.__path__: list[str] = []
        for name in (
            "float16",
            "float32",
            "float64",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
        ):
            setattr(self, name, getattr(np, name))
        self.newaxis, self.dtype, self.bool_ = None, np.dtype, np.bool_
        self.ndarray = Array
        self.RawModule = type("RawModule", (kernels.RawModule,), {"device": self.device})
        self.RawKernel = kernels.RawKernel
        self.cuda = _Cuda(self.device)
        self._pool = _MemoryPool(self.device)
        self._pinned_pool = types.SimpleNamespace(free_all_blocks=lambda: None, n_free_blocks=lambda: 0)

    # ---- arrays

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> Array:
        """An array whose elements are not written: NaN in floats, absurd in integers."""
        return arrays.empty(self.device, shape, dtype)

    def zeros(self, shape: Any, dtype: Any = float, order: str = "C") -> Array:
        """An array of zeros."""
        return self.full(shape, 0, dtype)

    def ones(self, shape: Any, dtype: Any = float) -> Array:
        """An array of ones."""
        return self.full(shape, 1, dtype)

    def full(self, shape: Any, fill_value: Any, dtype: Any = float) -> Array:
        """An array of one value."""
        result = arrays.empty(self.device, shape, dtype)
        result.fill(fill_value)
        return result

    def empty_like(self, prototype: Array) -> Array:
        """An array of the same shape and type, not written."""
        return self.empty(prototype.shape, prototype.dtype)

    def zeros_like(self, prototype: Array) -> Array:
        """Zeros of the same shape and type."""
        return self.zeros(prototype.shape, prototype.dtype)

    def asarray(self, a: Any, dtype: Any = None, order: str = "C", *, blocking: bool = False) -> Array:
        """The array itself when it is on the device already, or a copy of a host array."""
        if isinstance(a, Array) and (dtype is None or a.dtype == dtype):
            return a
        return self.array(a, dtype)

    def array(self, obj: Any, dtype: Any = None, copy: bool = True) -> Array:
        """A copy on the device."""
        if isinstance(obj, Array):
            if dtype is not None and obj.dtype != dtype:
                raise NotImplementedError("the stand-in does not convert types on the device")
            return obj.copy()
        host = np.ascontiguousarray(np.asarray(obj, dtype)).reshape(np.shape(obj))
        result = arrays.empty(self.device, host.shape, host.dtype)
        result.set(host)
        return result

    ascontiguousarray = asarray

    def asnumpy(
        self, a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
    ) -> np.ndarray:
        """A copy on the host."""
        return a.get(stream, order, out, blocking) if isinstance(a, Array) else np.asarray(a)

    def copyto(self, dst: Array, src: Any) -> None:
        """Copies between arrays of the device."""
        dst[...] = src

    def matmul(self, x1: Array, x2: Array, out: Array | None = None) -> Array:
        """A matrix product by cuBLAS: halves are multiplied with float sums and rounded once at the end."""
        self.device.refuse_while_capturing("a cuBLAS product")
        if x1.dtype != x2.dtype or x1.dtype not in (np.float16, np.float32):
            raise TypeError(f"the stand-in multiplies halves or floats of one type, not {x1.dtype} and {x2.dtype}")
        for factor in (x1, x2):
            factor.used(write=False)
        product = np.matmul(x1.host.astype(np.float32), x2.host.astype(np.float32))
        if out is None:
            out = self.empty(product.shape, x1.dtype)
        elif out.shape != product.shape:
            raise ValueError(f"out has shape {out.shape} where {product.shape} is needed")
        out.used(write=True)
        with np.errstate(over="ignore"):
            out.host[...] = product.astype(out.dtype)
        out.mark_written()
        return out

    def get_default_memory_pool(self) -> _MemoryPool:
        """The pool that all arrays come from."""
        return self._pool

    def get_default_pinned_memory_pool(self) -> Any:
        """The pool of pinned host memory."""
        return self._pinned_pool

    # ---- as an importable module

    @contextmanager
    def installed(self) -> Iterator[StandIn]:
        """`import cupy` gives this while the context is open."""
        names = {"cupy": self, "cupy.cuda": self.cuda, "cupy.cuda.runtime": self.cuda.runtime}
        names["cupyx"] = cupyx = types.ModuleType("cupyx")
        cupyx.__spec__ = importlib.machinery.ModuleSpec("cupyx", None)
        cupyx.empty_pinned, cupyx.zeros_pinned = _empty_pinned, _zeros_pinned  # type: ignore[attr-defined]
        saved = {name: sys.modules.get(name) for name in names}
        sys.modules.update(names)
        try:
            yield self
        finally:
            for name, module in saved.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


class _MemoryPool:
    """cupy.cuda.MemoryPool: what it holds is only given back by free_all_blocks."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def used_bytes(self) -> int:
        """Bytes of live arrays, each rounded up to 512."""
        return self._device.used_bytes

    def total_bytes(self) -> int:
        """Bytes that the pool has taken from the device."""
        return self._device.pool_bytes

    def free_bytes(self) -> int:
        """Bytes that the pool holds and no array uses."""
        return self._device.pool_bytes - self._device.used_bytes

    def free_all_blocks(self, stream: Any = None) -> None:
        """Gives unused memory back to the device."""
        self._device.pool_bytes = self._device.used_bytes


class _Runtime(types.ModuleType):
    """cupy.cuda.runtime."""

    CUDARuntimeError = CUDARuntimeError
    streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)

    def __init__(self, device: Device) -> None:
        super().__init__("cupy.cuda.runtime")
        self._device = device

    def getDeviceCount(self) -> int:
        """There is one device."""
        return 1

    def getDevice(self) -> int:
        """It is device 0."""
        return 0

    def runtimeGetVersion(self) -> int:
        """CUDA 12.6."""
        return 12060

    driverGetVersion = runtimeGetVersion

    def memGetInfo(self) -> tuple[int, int]:
        """Free and total bytes; what the pool holds is not free."""
        total = self._device.settings.total_bytes
        return total - self._device.pool_bytes, total

    def deviceSynchronize(self) -> None:
        """Waits for all streams."""
        _synchronize_all(self._device)

    def getDeviceProperties(self, device_id: int) -> dict[str, Any]:
        """The few that are asked for."""
        settings = self._device.settings
        return {
            "name": settings.name.encode(),
            "multiProcessorCount": settings.n_multiprocessors,
            "l2CacheSize": settings.l2_bytes,
            "major": settings.arch // 10,
            "minor": settings.arch % 10,
            "totalGlobalMem": settings.total_bytes,
            "sharedMemPerBlockOptin": kernels.MAX_SHARED.get(settings.arch, 48 << 10),
            "warpSize": 32,
        }


class _Cuda(types.ModuleType):
    """cupy.cuda."""

    def __init__(self, device: Device) -> None:
        super().__init__("cupy.cuda")
        self.Stream = type("Stream", (streams.Stream,), {"device": device})
        self.Event = type("Event", (streams.Event,), {"device": device})
        self.Stream.null = self.Stream(null=True)
        device.stream_stack.append(self.Stream.null)
        self.Graph = streams.Graph
        self.runtime = _Runtime(device)
        self.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
        self.MemoryPointer = arrays.MemoryPointer
        self._device = device

    def Device(self, device: int | None = None) -> _DeviceHandle:
        """The device of a number."""
        if device not in (None, 0):
            raise CUDARuntimeError("cudaErrorInvalidDevice", 101, f"there is no device {device}")
        return _DeviceHandle(self._device)

    def get_current_stream(self) -> Any:
        """The stream that launches go to."""
        return self._device.current_stream

    def is_available(self) -> bool:
        """There is a device."""
        return True

    def alloc_pinned_memory(self, size: int) -> memoryview:
        """Pinned host memory: ordinary memory here, poisoned."""
        return memoryview(_empty_pinned(size, np.uint8))

    def get_elapsed_time(self, start_event: Any, end_event: Any) -> float:
        """Milliseconds of this computer; they say nothing about a GPU."""
        return (end_event.seconds - start_event.seconds) * 1000


class _DeviceHandle:
    """cupy.cuda.Device."""

    def __init__(self, device: Device) -> None:
        self._device, self.id = device, 0

    def __enter__(self) -> _DeviceHandle:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __int__(self) -> int:
        return 0

    def use(self) -> _DeviceHandle:
        """It is in use already."""
        return self

    def synchronize(self) -> None:
        """Waits for all streams."""
        _synchronize_all(self._device)

    @property
    def compute_capability(self) -> str:
        """As cupy has it: "80"."""
        return str(self._device.settings.arch)

    @property
    def mem_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        total = self._device.settings.total_bytes
        return total - self._device.pool_bytes, total

    @property
    def attributes(self) -> dict[str, int]:
        """The few that are asked for."""
        settings = self._device.settings
        return {
            "MultiProcessorCount": settings.n_multiprocessors,
            "MaxSharedMemoryPerBlock": 48 << 10,
            "MaxSharedMemoryPerBlockOptin": kernels.MAX_SHARED.get(settings.arch, 48 << 10),
            "MaxThreadsPerBlock": 1024,
            "WarpSize": 32,
            "ComputeCapabilityMajor": settings.arch // 10,
            "ComputeCapabilityMinor": settings.arch % 10,
        }


def _synchronize_all(device: Device) -> None:
    device.refuse_while_capturing("waiting for the device")
    for stream in list(device.streams):
        stream.synchronize()


def _empty_pinned(shape: int | Sequence[int], dtype: Any = float) -> np.ndarray:
    result = np.empty(shape, dtype)
    poison(result.reshape(-1).view(np.uint8))
    return result


def _zeros_pinned(shape: int | Sequence[int], dtype: Any = float) -> np.ndarray:
    return np.zeros(shape, dtype)
