"""Processes of Ray's actors."""

from __future__ import annotations

import psutil


def ray_processes(name: str) -> list[psutil.Process]:
    """The processes of actors of this name on this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and f"ray::{name}" in " ".join(process.info["cmdline"]):
            found.append(process)
    return found
