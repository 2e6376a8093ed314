"""Whether CuPy and a GPU can be used here. If not, one sentence says what is missing and what to install.

Only this module imports cupy. All others get it as an argument.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from .source import compile_module

LEAST_CUPY = (14, 2)  # earlier ones compile kernels that are templates again in each process
LEAST_CAPABILITY = 61  # compute capability 6.1 has dp4a, products of four bytes
_INSTALL = 'pip install "pyllama2[gpu]"'
_NO_DRIVER = "there is no NVIDIA driver, or it is too old for CUDA 12 (version 525 or later is needed)"


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: as its driver says.
        compute_capability: such as "8.0".
        total_bytes: of its memory.
        free_bytes: of its memory, now.
        peak_gb_per_s: what its memory gives at most, from its clock and width, in 10^9 bytes/s; None where the driver
            does not say.
    """

    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    peak_gb_per_s: float | None


@dataclass(frozen=True)
class CudaVersions:
    """Versions of what the CUDA backend needs. None: not there, or it does not say."""

    cupy: str | None = None
    driver: str | None = None
    compiler: str | None = None


def import_cupy() -> Any:
    """Return the module cupy. Raises ImportError without the driver's library: CuPy takes a while to find that out."""
    if "cupy" not in sys.modules:
        if sys.platform == "linux":
            try:
                ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                raise ImportError(str(error)) from error
        _provide_cache_folder()
    import cupy

    return cupy


def _provide_cache_folder() -> None:
    """Name another folder for compiled kernels if CuPy's cannot be written: without one, CuPy cannot be imported."""
    folder = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")
    try:
        os.makedirs(folder, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        folder = tempfile.mkdtemp(prefix="pyllama2-kernels-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["CUPY_CACHE_DIR"] = folder


def unavailable_reason(device: int | None = None) -> str | None:
    """Return None when kernels can be compiled and run here, else one sentence that says why not.

    Args:
        device: which GPU. None: CUDA's current one.
    """
    try:
        if importlib.util.find_spec("cupy") is None:
            return f"the package cupy is not installed ({_INSTALL})"
        cupy = import_cupy()
    except Exception as error:  # an installation that is broken may raise anything
        if "libcuda." in str(error):
            return _NO_DRIVER
        return f"the package cupy cannot be imported ({_first_line(error)}); install it anew: {_INSTALL}"
    return _too_old(cupy) or _no_device(cupy, device) or _no_compiler(cupy)


def cuda_versions() -> CudaVersions:
    """Return the versions of CuPy, of the CUDA that the driver has, and of NVRTC."""
    try:
        cupy = import_cupy()
    except Exception:  # an installation that is broken may raise anything
        return CudaVersions()

    def version(read: Any) -> str | None:
        try:
            found = read()
        except Exception:  # of a library that cannot be loaded
            return None
        major, minor = found if isinstance(found, tuple) else (found // 1000, found % 1000 // 10)
        return f"{major}.{minor}" if major else None

    driver = version(cupy.cuda.runtime.driverGetVersion)
    return CudaVersions(cupy.__version__, driver, version(cupy.cuda.nvrtc.getVersion))


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs, in the order of CUDA. unavailable_reason() must be None."""
    cupy = import_cupy()
    found = []
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        facts = cupy.cuda.runtime.getDeviceProperties(device)
        with cupy.cuda.Device(device):
            free, total = cupy.cuda.runtime.memGetInfo()
        clock, width = facts.get("memoryClockRate", 0), facts.get("memoryBusWidth", 0)  # kHz, bits
        peak = 2e3 * clock * width / 8 / 1e9 if clock and width else None  # two transfers a clock
        capability = f"{facts['major']}.{facts['minor']}"
        name = facts["name"].decode("utf-8", "replace") if isinstance(facts["name"], bytes) else str(facts["name"])
        found.append(Gpu(name, capability, int(total), int(free), peak))
    return tuple(found)


def compute_capability(cupy: Any, device: int | None = None) -> int:
    """Return the compute capability of a device, or of the current one: 80 for 8.0."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice() if device is None else device)
    return int(properties["major"]) * 10 + int(properties["minor"])


@dataclass(frozen=True)
class Processor:
    """What kernels are chosen by.

    Attributes:
        compute_capability: 80 for 8.0.
        n_multiprocessors: of the device.
        l2_bytes: of its L2 cache.
    """

    compute_capability: int
    n_multiprocessors: int
    l2_bytes: int

    @classmethod
    def of(cls, cupy: Any, device: int) -> Processor:
        """Return that of a device."""
        properties = cupy.cuda.runtime.getDeviceProperties(device)
        return cls(compute_capability(cupy, device), int(properties["multiProcessorCount"]),
                   int(properties["l2CacheSize"]))  # fmt: skip


def _too_old(cupy: Any) -> str | None:
    version = tuple(int(number) for number in re.findall(r"\d+", cupy.__version__)[:2])
    if version < LEAST_CUPY:
        needed = ".".join(map(str, LEAST_CUPY))
        return f"CuPy {cupy.__version__} is installed, and {needed} or later is needed ({_INSTALL})"
    return None


def _no_device(cupy: Any, device: int | None) -> str | None:
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
        capability = compute_capability(cupy, device) if (device or 0) < n_devices else 0
    except Exception as error:  # of the driver, or of a library that CuPy loads at the first call
        text = _first_line(error)
        if "InsufficientDriver" in text or "libcuda" in text:
            return _NO_DRIVER
        if "NoDevice" in text:
            return "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"
        return f"CUDA does not start ({text})"
    if not n_devices:
        return "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"
    if device is not None and device >= n_devices:
        others = "cuda:0" if n_devices == 1 else f"cuda:0 to cuda:{n_devices - 1}"
        return f"there is no GPU cuda:{device}; there {'is' if n_devices == 1 else 'are'} {others}"
    if capability < LEAST_CAPABILITY:
        needed = f"{LEAST_CAPABILITY // 10}.{LEAST_CAPABILITY % 10}"
        return f"the GPU has compute capability {capability // 10}.{capability % 10}, and {needed} or later is needed"
    return None


def _no_compiler(cupy: Any) -> str | None:
    """CuPy compiles kernels with NVRTC, which needs the headers of the CUDA runtime, and keeps the result on disk."""
    try:
        compile_module(cupy, ["upload"], []).get_function("arrange_codes")
    except Exception as error:  # CompileException, or of a library that cannot be loaded
        text = str(error)
        if (".h" in text and "open source file" in text) or "CUDA headers" in text:
            return f"the headers of the CUDA runtime are missing (pip install nvidia-cuda-runtime-cu12, or {_INSTALL})"
        if "libnvrtc" in text or ("nvrtc" in text.lower() and "load" in text):
            return f"CUDA's compiler NVRTC is missing (pip install nvidia-cuda-nvrtc-cu12, or {_INSTALL})"
        return f"the CUDA kernels cannot be compiled ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" *\t=-")]
    return lines[0].rstrip(".") if lines else type(error).__name__
