"""How many threads to use if nobody says, and on which CPUs. Import it before the compiled modules.

With OMP_PROC_BIND or OMP_PLACES libgomp binds the thread that loads it to one CPU. The affinity from before that says
which CPUs the process may use.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .. import arguments
from ..shown import shown_value

_MAX_THREADS = 1024
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)  # of CPUs

# Settings that make libgomp bind threads, unless they say "false".
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def _affinity() -> set[int]:
    """The CPUs that the calling thread may run on. Empty if the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


_AFFINITY_WHEN_LOADED = _affinity()


def team_of(n_threads: int | None, cpus: Sequence[int] = ()) -> int:
    """Return how many threads to use.

    Args:
        n_threads: what was asked for. None: one for each of cpus; without them, default_threads().
        cpus: to which the threads are to be bound.

    Raises:
        ValueError: it is not between 1 and 1024, or there are fewer cpus.
    """
    if n_threads is None:
        n_threads = len(cpus) or default_threads()
    if cpus and n_threads > len(cpus):
        raise ValueError(f"cpu_affinity has {len(cpus)} CPUs, and n_threads is {n_threads}")
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


def cpus_of(cpu_affinity: str | Sequence[int]) -> tuple[int, ...]:
    """Return the CPUs to which threads are to be bound, one after the other.

    Args:
        cpu_affinity: numbers of CPUs, or a string of numbers and ranges such as "0-3,8". "cores": one CPU of each
            physical core that the process may use.

    Raises:
        TypeError: it is neither a string nor integers.
        ValueError: it is not such a list, names a CPU twice or one that the process may not use, or the system cannot
            bind threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system cannot bind threads to CPUs: leave out cpu_affinity")
    if cpu_affinity == "cores":
        return tuple(sorted(min(cpus) for cpus in _cores().values()))
    if isinstance(cpu_affinity, str):
        cpus = _listed(cpu_affinity)
    elif isinstance(cpu_affinity, Sequence) and not isinstance(cpu_affinity, bytes):
        cpus = tuple(arguments.integer("cpu_affinity", cpu, 0) for cpu in cpu_affinity)
    else:
        arguments.refuse("cpu_affinity", "a string or integers", cpu_affinity)
    if not cpus or len(set(cpus)) < len(cpus):
        raise ValueError(f"cpu_affinity must name CPUs once each, or be cores, not {shown_value(cpu_affinity)}")
    if lacking := sorted(set(cpus) - _usable()):
        usable = shown_cpus(sorted(_usable()))
        raise ValueError(f"cpu_affinity names CPU {lacking[0]}, and this process may use {usable}")
    return cpus


def shown_cpus(cpus: Sequence[int]) -> str:
    """Return numbers of CPUs as cpus_of() takes them: "0-3,8"."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


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
    return len(_cores()) or _cpu_count(logical=False)


def _cores() -> dict[str, list[int]]:
    """The CPUs that the process may use, by the core that they belong to."""
    cores: dict[str, list[int]] = defaultdict(list)
    for cpu in _usable():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores[siblings.read_text()].append(cpu)
        except OSError:
            cores[str(cpu)].append(cpu)
    return cores


def _listed(text: str) -> tuple[int, ...]:
    """The numbers of a list such as "0-3,8"; empty if it is none."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return ()
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    return tuple(found)


def _cgroup_limit() -> int:
    """The number of CPUs that a container's quota amounts to, rounded up. Without a quota, all CPUs."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return os.cpu_count() or 1
