"""What a process gives up before it works on what a stranger wrote. None of it exists on Windows.

A process that is started with confined.py imports this file without the rest of pyllama2.
"""

from __future__ import annotations

import sys
from contextlib import suppress

if sys.platform != "win32":
    import resource
    import signal

_PR_SET_NO_NEW_PRIVS = 38


def confine(memory: int | None) -> None:
    """Give up new files, sockets, processes, privileges and a core dump, and limit memory. This cannot be undone.

    Args:
        memory: most bytes of address space, what is mapped now included; None: no limit.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # the C library has no prctl()
            ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if sys.platform != "win32":
        limits = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_NPROC: 0,
            resource.RLIMIT_NOFILE: 1,  # fewer than are open; with 0, poll() would refuse its one file
        }
        if memory is not None:
            limits[resource.RLIMIT_AS] = memory
        for kind, amount in limits.items():
            hard = resource.getrlimit(kind)[1]
            amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            with suppress(ValueError, OSError):  # macOS refuses a limit below the memory that is mapped
                resource.setrlimit(kind, (amount, amount))


def limit_processor_time(seconds: int) -> None:
    """Let the system end this process when it has used so much more processor time."""
    if sys.platform != "win32":
        # The parent may ignore or block the signal, and this process inherits that.
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        amount = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
