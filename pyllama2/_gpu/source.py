"""The text of kernels/*.cu, put together for the compiler, and the compiler's options.

The first lines of a kernel file name the files that it needs: `// Needs: common.cu, ptx.cu`. Their text is put before
its own. They are not #included, so that a cache of compiled modules sees every change. `#line` makes errors name the
file. CuPy is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# No contraction: a product and a sum are rounded separately, as on the CPU, unless the kernel says fmaf.
OPTIONS = ("--std=c++17", "--fmad=false")

KERNELS = Path(__file__).parent / "kernels"
_NEEDS = re.compile(r"^// Needs: (.+)$", re.MULTILINE)


def source(*names: str) -> str:
    """Return the text of kernel files, each once, after those that it needs.

    Args:
        names: "norm" or "norm.cu".

    Raises:
        ValueError: a file does not exist.
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
    """Return a RawModule of kernel files.

    Args:
        cupy: the module, or a stand-in.
        names: the files, as for source().
        expressions: templates to instantiate, such as "append<64, __half>".
    """
    return cupy.RawModule(code=source(*names), options=OPTIONS, name_expressions=tuple(expressions) or None)
