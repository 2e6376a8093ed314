"""How many threads to use if nobody says. Import it before the compiled modules.

With OMP_PROC_BIND or OMP_PLACES libgomp binds the thread that loads it to one CPU. The affinity from before that says
which CPUs the process may use.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..shown import shown_value

_MAX_THREADS = 1024

# Settings that make libgomp bind threads, unless they say "false".
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def _affinity() -> set[int]:
    """The CPUs that the calling thread may run on. Empty if the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


_AFFINITY_WHEN_LOADED = _affinity()


def team_of(n_threads: int | None) -> int:
    """Return n_threads, or default_threads() for None. Raises ValueError unless it is between 1 and 1024."""
    n_threads = default_threads() if n_threads is None else n_threads
    if not 1 <= n_threads <= _MAX_THREADS:
        raise ValueError(f"n_threads must be between 1 and {_MAX_THREADS}, not {shown_value(n_threads)}")
    return n_threads


def default_threads() -> int:
    """Return PYLLAMA2_NUM_THREADS, else OMP_NUM_THREADS, else the number of physical cores of this process.

    It is at most OMP_THREAD_LIMIT, unless PYLLAMA2_NUM_THREADS says more.

    Raises:
        ValueError: one of the first two is set to anything but a positive integer.
    """
    if value := os.environ.get("PYLLAMA2_NUM_THREADS"):
        return _positive("PYLLAMA2_NUM_THREADS", value)
    if value := os.environ.get("OMP_NUM_THREADS"):
        n_threads = _positive("OMP_NUM_THREADS", value.split(",")[0])  # a list has one entry per nesting level
    else:
        n_threads = max(1, min(_physical_cores(), _cgroup_limit()))
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return max(1, min(n_threads, int(limit))) if limit.isdecimal() else n_threads


def n_processors() -> int:
    """Return the number of processors that this process may use. Hyper-threads count each."""
    return len(_usable()) or _cpu_count(logical=True)


def _positive(variable: str, value: str) -> int:
    value = value.strip()
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{variable} must be a positive integer, not {shown_value(value)}")
    return int(value)


def _usable() -> set[int]:
    """The CPUs that the process may use. Empty if the system does not say."""
    bound = any(os.environ.get(name, "false").strip().lower() != "false" for name in _BINDING)
    return _AFFINITY_WHEN_LOADED if bound else _affinity()


def _cpu_count(*, logical: bool) -> int:
    """The number of processors of this machine, or of cores, for systems without affinity."""
    import psutil

    return psutil.cpu_count(logical=logical) or os.cpu_count() or 1


def _physical_cores() -> int:
    """The number of cores that the process may use. Hyper-threads of one core count once."""
    cores = set()
    for cpu in _usable():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores) or _cpu_count(logical=False)


def _cgroup_limit() -> int:
    """The number of CPUs that a container's quota amounts to, rounded up. Without a quota, all CPUs."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return os.cpu_count() or 1
