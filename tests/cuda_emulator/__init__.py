"""Runs the project's CUDA source without a GPU: g++ compiles the same text; accesses can be checked and counted.

    cupy = StandIn(mode="check")                     # stands in for the module cupy
    module = cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=("scale<4>",))
    x = cupy.asarray(numpy.arange(8, dtype=numpy.float32))
    module.get_function("scale<4>")((1,), (32,), (x, numpy.float32(2)))
    x.get()

README.md says what it finds and what it cannot.
"""

from .compiling import CompileError, missing_compiler
from .counting import LaunchCounts, Site
from .device import CUDARuntimeError, Device, OutOfMemoryError, Settings
from .findings import EmulationError, Finding
from .stand_in import StandIn

__all__ = [
    "CUDARuntimeError",
    "CompileError",
    "Device",
    "EmulationError",
    "Finding",
    "LaunchCounts",
    "OutOfMemoryError",
    "Settings",
    "Site",
    "StandIn",
    "missing_compiler",
]
