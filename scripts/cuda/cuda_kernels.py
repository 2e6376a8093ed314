"""Lists the kernels to compile: each file of pyllama2/_gpu/kernels with its template arguments.

pyllama2 is not imported, since it needs more packages than numpy. Two of its modules are loaded by path.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (32, 64, 128)
FORMATS = list(product((4, 8), GROUPS))
FLOATS = (16, 32)  # bits of float matrices
FLOAT_GROUP = 128  # of vectors for them
MIXED = [(4, 64), (8, 128)]  # matrices whose products are listed for every type that the next matrix may have
HEAD_DIMS = (64, 80, 128)
CODES = ("__half", "signed char")
ATTENTION = ((1, 32), (1, 64), (1, 128), (2, 64), (3, 64), (4, 64), (8, 64))  # queries of a block, group size
FIRST_MMA = 75  # matmul_mma.cu has no kernel for older GPUs


def load(path: str) -> ModuleType:
    """Load the module at a path in the checkout."""
    name = "check_cuda_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


source = load("pyllama2/_gpu/source.py")
layout = load("pyllama2/_gpu/layout.py")


def expressions(columns: range) -> dict[str, list[str]]:
    """List the name expressions of each file's templates.

    Args:
        columns: numbers of columns of the products.

    Returns:
        File -> expressions. The list is empty for a file whose kernels are no templates.
    """
    products = [f"<{bits}, {group}, {n}>" for (bits, group), n in product(FORMATS, columns)]
    ends = sorted({columns[0], columns[-1]})  # the rest of a kernel does not depend on the next matrix
    mixed = [f"matvec_residual<{bits}, {group}, {n}, {following}>"
             for (bits, group), n, following in product(MIXED, ends, GROUPS) if group != following]  # fmt: skip
    halves = [f"matvec_residual<{bits}, {group}, 1, {following}, 16>"
              for (bits, group), following in product(FORMATS, GROUPS)
              if group == following or (bits, group) in MIXED]  # fmt: skip
    normed = [f"matvec<{bits}, {group}, 1, true>" for bits, group in FORMATS]
    normed += [f"matvec_swiglu<{bits}, {group}, 1, {bits}, {group}, true>" for bits, group in FORMATS]
    mixed += [f"matvec_swiglu<{bits}, {group}, {n}, {next_bits}, {following}>"
              for (bits, group), n, (next_bits, following) in product(MIXED, ends, FORMATS)
              if (bits, group) != (next_bits, following)]  # fmt: skip
    heads = [f"{head_dim}, {code}" for head_dim, code in product(HEAD_DIMS, CODES)]
    tables = [f"embed<{bits}, {group}>" for bits, group in FORMATS]
    tables += [f"embed<{bits}, {group}, {following}>" for (bits, group), following in product(FORMATS, GROUPS)
               if group != following]  # fmt: skip
    tables += [f"embed<{bits}, {FLOAT_GROUP}, {following}>" for bits, following in product(FLOATS, GROUPS)]
    floats = [f"{bits}, {n}" for bits, n in product(FLOATS, columns)]
    following_floats = [*(f"{bits}, {FLOAT_GROUP}" for bits in FLOATS), "4, 64", "8, 32"]
    return {
        "norm": [f"{name}<{group}>" for name in ("rms_norm_quantize", "quantize") for group in GROUPS],
        "embed": tables,
        "float_matmul": [f"float_matmul<{bits}>" for bits in FLOATS],
        "float_matvec": [f"float_matvec<{own}>" for own in floats]
        + [f"float_matvec_residual<{own}, {group}>" for own, group in product(floats, GROUPS)]
        + [f"float_matvec_swiglu<{own}, {following}>" for own, following in product(floats, following_floats)],
        "float_matvec_qkv": [f"float_matvec_qkv<{own}, {rest}>" for own, rest in product(floats, heads)],
        "matvec": [name + rest for name in ("matvec", "matvec_residual", "matvec_swiglu") for rest in products]
        + halves + normed + mixed,
        "matvec_qkv": [f"matvec_qkv<{bits}, {group}, {n}, {rest}>"
                       for (bits, group), n, rest in product(FORMATS, columns, heads)]
        + [f"matvec_qkv<{bits}, {group}, 1, {rest}, true>" for (bits, group), rest in product(FORMATS, heads)],
        "attention": [f"attend<{head_dim}, {queries}, {group}, {code}>"
                      for head_dim, (queries, group), code in product(HEAD_DIMS, ATTENTION, CODES)],
        "attention_prompt": [f"attend_prompt<{head_dim}, {queries}, {code}>"
                             for head_dim, queries, code in product(HEAD_DIMS, (1, 3, 8), CODES)],
        "cache_rows": [f"copy_prefix<{rest}>" for rest in heads],
        "matmul": [f"matmul<{bits}, {group}>" for bits, group in FORMATS],
        "matmul_mma": [f"matmul_mma<{bits}, {group}>" for bits, group in FORMATS],
        "prompt": [f"swiglu_quantize<{group}>" for group in GROUPS],
        "qkv_prompt": [f"finish_qkv<{rest}>" for rest in heads],
        "rope": [],
        "sample": [],
        "upload": [f"arrange_numbers<{number}>" for number in ("unsigned short", "unsigned")],
    }  # fmt: skip


def kernels_of(name: str) -> set[str]:
    """Return the names of the kernels that a file defines."""
    text = re.sub(r"//.*", "", (ROOT / "pyllama2/_gpu/kernels" / f"{name}.cu").read_text(encoding="utf-8"))
    found = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\s*\(", text)
    return set(found)


def unlisted() -> list[str]:
    """Return the kernels that expressions() lacks. There should be none."""
    listed = expressions(range(1, 2))
    missing = []
    for path in sorted((ROOT / "pyllama2/_gpu/kernels").glob("*.cu")):
        text, names = path.read_text(encoding="utf-8"), listed.get(path.stem, [])
        for kernel in sorted(kernels_of(path.stem)):
            plain = re.search(rf'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?{kernel}\(', text)
            if (plain and path.stem not in listed) or (
                not plain and not any(name.startswith(f"{kernel}<") for name in names)
            ):
                missing.append(f"{path.name}: {kernel}")
    return missing
