"""How many threads to use when nobody says."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """PYLLAMA2_NUM_THREADS, else OMP_NUM_THREADS, else the physical cores that this process may use.

    Raises ValueError when a variable is set to anything but a positive integer.
    """
    for variable in ("PYLLAMA2_NUM_THREADS", "OMP_NUM_THREADS"):
        if value := os.environ.get(variable):
            first = value.split(",")[0].strip()  # OpenMP allows a list, one entry per nesting level
            if not first.isdecimal() or int(first) < 1:
                raise ValueError(f"{variable} must be a positive integer, not {value!r}")
            return int(first)
    return max(1, min(_physical_cores(), _cgroup_limit()))


def _physical_cores() -> int:
    """Cores among the CPUs of this process's affinity mask; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def _cgroup_limit() -> int:
    """CPUs that a container's quota amounts to, rounded up; without a quota, all."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return os.cpu_count() or 1
