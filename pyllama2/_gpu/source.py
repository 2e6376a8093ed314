"""The text of kernels/*.cu, put together for the compiler, and the options it is compiled with.

A kernel file names the files whose functions it uses in its first lines, `// Needs: common.cu, ptx.cu`. They are put
in front of it rather than #included: a cache of compiled modules then sees every change. `#line` makes errors name
the file. CuPy is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# No contraction: a product and a sum are rounded twice, as on the CPU, unless the kernel says fmaf.
OPTIONS = ("--std=c++17", "--fmad=false")

KERNELS = Path(__file__).parent / "kernels"
_NEEDS = re.compile(r"^// Needs: (.+)$", re.MULTILINE)


def source(*names: str) -> str:
    """The text of the kernel files called names ("norm", or "norm.cu"), each once, after what they need.

    Raises ValueError for a file that does not exist.
    """
    parts: dict[str, str] = {}
    for name in names:
        _collect(name, parts)
    return "".join(parts.values())


def _collect(name: str, parts: dict[str, str]) -> None:
    name = name.removesuffix(".cu") + ".cu"
    if name in parts:
        return
    file = KERNELS / name
    if not file.is_file():
        raise ValueError(f"there is no kernel file {name}")
    text = file.read_text(encoding="utf-8")
    for line in _NEEDS.findall(text):
        for needed in line.split(","):
            _collect(needed.strip(), parts)
    parts[name] = f'#line 1 "{name}"\n{text}\n'


def compile_module(cupy: Any, names: Sequence[str], expressions: Sequence[str]) -> Any:
    """A RawModule of these kernel files, in which the templates that expressions name are instantiated.

    cupy  the module, or what stands in for it
    """
    return cupy.RawModule(code=source(*names), options=OPTIONS, name_expressions=tuple(expressions) or None)
