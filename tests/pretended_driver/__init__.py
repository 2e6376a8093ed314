"""The real CuPy without a GPU: its wheel, on a driver that is pretended, with kernels that the emulator runs.

    reason = missing()                                   # None, or why it cannot be had here
    driver = install()
    with driver.machine(n_devices=2, total_bytes=1 << 30) as machine:
        import cupy
        ...
        assert machine.take_findings() == []

README.md says what it finds and what it cannot.
"""

from .driver import Driver, install, installed, missing
from .machine import Machine, Settings

__all__ = ["Driver", "Machine", "Settings", "install", "installed", "missing"]
