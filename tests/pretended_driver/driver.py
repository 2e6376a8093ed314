"""Builds the library of the pretended driver, and puts it under CuPy."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuda_emulator import missing_compiler
from cuda_emulator.compiling import cache_folder

from . import kernels, patching
from .kernels import Kernels
from .machine import Machine, Settings
from .runtime import Runtime

SOURCE = Path(__file__).with_name("libcuda.c")
# The order of the hooks in libcuda.c, which calls the first ones by their numbers.
OF_THE_DRIVER = ("cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction")


def missing() -> str | None:
    """Return None where the real CuPy can run on the pretended driver, else a sentence that says what is missing."""
    if reason := patching.unsupported_machine() or missing_compiler():
        return reason
    if importlib.util.find_spec("cupy") is None:
        return "the package cupy-cuda12x is not installed"
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    return None


class Driver:
    """CuPy, and the machine under it.

    Attributes:
        cupy: the module.
        pretended: the machine; without devices except within machine().
    """

    def __init__(self) -> None:
        self.pretended = Machine()
        self._library = ctypes.CDLL(str(_built_library()), mode=ctypes.RTLD_GLOBAL)  # before CuPy looks for it
        # CuPy would keep what is compiled in a folder of the user's.
        self._cache = tempfile.mkdtemp(prefix="pyllama2-pretended-driver-")
        atexit.register(shutil.rmtree, self._cache, ignore_errors=True)
        os.environ["CUPY_CACHE_DIR"] = self._cache
        self.cupy: Any = importlib.import_module("cupy")
        runtime = Runtime(self.pretended, Kernels(self.pretended, self._library), self._library)
        self._callbacks = self._connect(runtime)
        compiler = importlib.import_module("cupy.cuda.compiler")
        compiler._NVRTCProgram = kernels.program_class(
            compiler.CompileException, lambda: self.pretended.settings.capability
        )
        self._library.pretended_start()
        atexit.register(self._library.pretended_stop)

    def _connect(self, runtime: Runtime) -> list[Any]:
        """Lead every function to its hook. Returns what C calls, which must be kept."""
        names = [*OF_THE_DRIVER, *(name for name in runtime.functions if name not in OF_THE_DRIVER)]
        callbacks = [runtime.callback(name) for name in names]
        for i, callback in enumerate(callbacks):
            self._library.pretended_set_hook(i, callback)
        extension = importlib.import_module("cupy_backends.cuda.api.runtime")
        where = patching.addresses(Path(extension.__file__ or ""), [n for n in names if n not in OF_THE_DRIVER])
        for name, address in where.items():
            entry = getattr(self._library, f"pretended_{names.index(name)}")
            target = ctypes.cast(entry, ctypes.c_void_p).value
            assert target is not None
            patching.lead(address, target)
        pointer, sizes = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)
        launch = ctypes.CFUNCTYPE(ctypes.c_int, pointer, sizes, pointer, ctypes.POINTER(pointer))
        callbacks.append(launch(runtime.guarded("cuLaunchKernel", runtime.kernels.launch)))
        self._library.pretended_set_launch(callbacks[-1])
        return callbacks

    @contextmanager
    def machine(self, **settings: Any) -> Iterator[Machine]:
        """Pretend devices with these Settings. What CuPy keeps of freed memory is given back before and after."""
        with self.pretended.pretending(Settings(**settings)) as machine, _interrupts_in_calls_are_not_lost():
            self.give_back()
            try:
                yield machine
            finally:
                self.give_back()

    def give_back(self) -> None:
        """Free what nobody uses: of the pools of all devices."""
        gc.collect()
        for device in range(self.pretended.settings.n_devices):
            with self.cupy.cuda.Device(device):
                self.cupy.get_default_memory_pool().free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()


@contextmanager
def _interrupts_in_calls_are_not_lost() -> Iterator[None]:
    """Do not tell of KeyboardInterrupts that come to C: libcuda.c raises the signal again."""
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@functools.cache
def install() -> Driver:
    """Return the driver of this process. missing() must be None."""
    return Driver()


def installed() -> Driver | None:
    """Return the driver of this process, if there is one."""
    return install() if install.cache_info().currsize else None


def _built_library() -> Path:
    """libcuda.so.1, compiled once for each content of its source."""
    text = SOURCE.read_bytes()
    folder = cache_folder() / f"pretended-driver-{hash_of(text)}"
    target = folder / "libcuda.so.1"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            command = ["gcc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, env=env)
            made.replace(target)
    return target


def hash_of(text: bytes) -> str:
    """Return a short name of a content."""
    return hashlib.sha256(text).hexdigest()[:16]
