"""Builds the Cython extensions; all else stands in pyproject.toml.

No -march: the kernels choose their instruction set at run time, so that one wheel serves every CPU.
"""

import os
import shlex
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -ffp-contract=off: results must not depend on what the compiler chooses to fuse.
# -Wno-psabi: vectors are passed to inlined functions only.
COMPILE = [
    "-O3",
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
    "-Wno-unused-function",
]
LINK = []
OPENMP = LINK_OPENMP = ["-fopenmp"]
if sys.platform == "darwin":  # Apple's Clang takes OpenMP only so, and has no run time of it: brew install libomp
    LIBOMP = os.environ.get("LIBOMP", "/opt/homebrew/opt/libomp")
    OPENMP = ["-Xpreprocessor", "-fopenmp", f"-I{LIBOMP}/include"]
    LINK_OPENMP = [f"-L{LIBOMP}/lib", "-lomp"]
elif sys.platform == "win32":
    raise SystemExit("pyllama2 is built with GCC or Clang: on Windows install it in WSL (see README.md).")

if sanitize := os.environ.get("PYLLAMA2_SANITIZE"):  # e.g. "address,undefined"; see CONTRIBUTING.md
    COMPILE += ["-O1", "-g", f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    LINK += [f"-fsanitize={sanitize}"]

MODULES = {
    # Without OpenMP, which is not to be loaded before _cpu/wait_policy.py says how.
    "process": ("interrupts", "locks"),
    "storage": ("mapping",),
    "sampling": ("sample",),
    "_cpu": (
        "dispatch",
        "matrix",
        "attention",
        "workspace",
        "forward",
        "layer_steps",
        "quantizer",
        "gptq",
        "bandwidth",
    ),
}


class BuildExtensions(build_ext):
    """Leaves out of the compiler's command what says how this Python was built rather than how to build for it.

    That may be a search path of the machine it was built on (-Wl,-rpath, -R), which would become the RUNPATH of every
    extension, and -g, which would write the names of the builder's folders into them. What CFLAGS and LDFLAGS of the
    environment ask for stays.
    """

    def build_extensions(self):
        """Build all of them."""
        asked_for = {word for name in ("CFLAGS", "LDFLAGS") for word in shlex.split(os.environ.get(name, ""))}
        for name in ("compiler", "compiler_so", "linker_so"):
            command = getattr(self.compiler, name)
            self.compiler.set_executable(name, list(without_builders_paths(command, asked_for)))
        super().build_extensions()


def without_builders_paths(command, asked_for):
    """The words of a command but those that have to do with search paths at run time, or with debugging."""
    words = iter(command)
    for word in words:
        if word in asked_for:
            yield word
        elif word in ("-R", "-Wl,-rpath", "-Wl,--rpath", "-Wl,-R"):
            next(words, None)  # the path is a word of its own
        elif not word.startswith(("-R", "-Wl,-rpath", "-Wl,--rpath", "-Wl,-R", "-g")):
            yield word


setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=cythonize(
        [
            Extension(
                ".".join([*Path("pyllama2", package).parts, module]),
                [Path("pyllama2", package, f"{module}.pyx").as_posix()],
                depends=["setup.py", *(header.as_posix() for header in Path("pyllama2", package).rglob("*.h"))],
                include_dirs=[f"pyllama2/{package}"],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
                extra_compile_args=COMPILE + (OPENMP if package == "_cpu" else []),
                extra_link_args=LINK + (LINK_OPENMP if package == "_cpu" else []),
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
    ),
)
