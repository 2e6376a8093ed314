"""Builds the Cython extensions of pyllama2._cpu and pyllama2._sampling; all else stands in pyproject.toml.

No -march: the kernels choose their instruction set at run time, so that one wheel serves every CPU.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# -ffp-contract=off: results must not depend on what the compiler chooses to fuse.
# -Wno-psabi: vectors are passed to inlined functions only.
COMPILE = [
    "-O3",
    "-std=gnu11",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
    "-Wno-unused-function",
]
LINK = ["-fopenmp"]

if sanitize := os.environ.get("PYLLAMA2_SANITIZE"):  # e.g. "address,undefined"; see CONTRIBUTING.md
    COMPILE += ["-O1", "-g", f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    LINK += [f"-fsanitize={sanitize}"]

MODULES = {
    "_cpu": ("tables", "matrix", "attention", "forward", "quantizer", "bandwidth"),
    "_sampling": ("choose",),
}

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"pyllama2.{package}.{module}",
                [f"pyllama2/{package}/{module}.pyx"],
                depends=[header.as_posix() for header in Path("pyllama2", package).rglob("*.h")],
                include_dirs=[f"pyllama2/{package}"],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
                extra_compile_args=COMPILE,
                extra_link_args=LINK,
            )
            for package, modules in MODULES.items()
            for module in modules
        ],
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
)
