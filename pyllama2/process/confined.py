"""How to start a process that works on what a stranger wrote, so that it can only harm itself.

    subprocess.Popen(command(program("chat_formats", "template_worker"), folder_of("jinja2")), **options())

The process has nothing of the user's environment, and only the modules that it needs. What else it gives up, it does
itself (limits.py).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

# The environment variables that the process gets: where a shared libpython lies, the time zone, and what Windows needs
# to start Python.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "SYSTEMROOT")
# Imports a module without running the __init__ of its folder and of the package, which load far more.
_PROGRAM = """
import sys, types
for name, folder in (("pyllama2", ""), ("pyllama2.FOLDER", "/FOLDER")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + folder]
sys.path += sys.argv[2:]
from pyllama2.FOLDER.MODULE import main
main()
"""


def program(folder: str, module: str) -> str:
    """Return the source of a program that calls main() of a module in a folder of this package."""
    return _PROGRAM.replace("FOLDER", folder).replace("MODULE", module)


def command(source: str, *folders: str) -> list[str]:
    """Return the command that runs what program() returns.

    Args:
        source: the program.
        folders: where it imports what is not Python's own.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable, "-I", "-S", "-c", source, package, *folders]


def options() -> dict[str, Any]:
    """Return the arguments for subprocess. Ctrl-C in the terminal does not reach the process."""
    return {
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
        "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # no Ctrl-C, on Windows
        "env": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def folder_of(package: str) -> str | None:
    """Return the folder that a package is imported from, or None if it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))
