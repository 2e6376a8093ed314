"""What tests on a Ray cluster share."""

from __future__ import annotations

import os

import psutil
import pytest

# They take minutes, and kill processes by their names, so only one session of tests may run them at a time.
on_cluster = pytest.mark.skipif(not os.environ.get("PYLLAMA2_RAY_TESTS"), reason="takes minutes; nox -s ray runs it")


def ray_processes(name: str) -> list[psutil.Process]:
    """The processes of actors of this name on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and f"ray::{name}" in " ".join(process.info["cmdline"]):
            found.append(process)
    return found
