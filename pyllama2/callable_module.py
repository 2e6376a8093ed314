"""Modules that can be called, for names that are both a function and a command line.

pyllama2.export is a function, and python -m pyllama2.export a command line. Importing the module
pyllama2.export puts it in the function's place on the package, where it must do the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module_name: str, function: Callable[..., Any]) -> None:
    """Calling the module called module_name calls function from now on."""

    class CallableModule(ModuleType):
        __doc__ = function.__doc__

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module_name].__class__ = CallableModule
