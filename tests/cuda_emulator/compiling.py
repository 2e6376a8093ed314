"""Compiles rewritten CUDA source and the runtime with g++, and keeps the results in a temporary folder by content."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import rewriting

HERE = Path(__file__).parent
_WARNINGS = ["-w", "-fmax-errors=10"]
_COMMON = ["-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-fno-exceptions", "-fno-rtti", "-fno-math-errno",
           "-fno-threadsafe-statics"]  # fmt: skip
_DEVICE = [
    *_COMMON,
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-g1",
    "-gdwarf-4",
    *_WARNINGS,
]
_TABLE = 'extern "C" EMULATOR_EXPORT const emulator::Kernel emulator_kernels[]'
_WITHOUT_EFFECT = {"--fmad=false", "--fmad=true", "-fmad=false", "-fmad=true", "-lineinfo", "-default-device",
                   "--use_fast_math", "-use_fast_math", "--extra-device-vectorization"}  # fmt: skip
_CHECKED = [
    "-O1",
    "-DEMULATOR_CHECKED",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=thread,alignment,bounds,shift-exponent,integer-divide-by-zero",
]
_CHECKED += ["--param", "tsan-distinguish-volatile=1", "--param", "tsan-instrument-func-entry-exit=0"]


class CompileError(RuntimeError):
    """The source does not compile, with what the compiler says."""


def missing_compiler() -> str | None:
    """None where the emulator can be used; else a sentence that says what is missing."""
    if shutil.which("g++") is None:
        return "the CUDA emulator needs g++, which is not installed"
    return None


@functools.cache
def cache_folder() -> Path:
    """Where compiled modules are kept; it may be deleted at any time."""
    if chosen := os.environ.get("PYLLAMA2_EMULATOR_CACHE"):
        return Path(chosen)
    folder = Path(tempfile.gettempdir()) / f"pyllama2-cuda-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user's: what lies there is not loaded
        return Path(tempfile.mkdtemp())
    return folder


@functools.cache
def _version() -> str:
    return subprocess.run(["g++", "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True).stdout


def library(code: str, options: Sequence[str], names: Sequence[str], *, checked: bool, arch: int) -> Path:
    """The shared library of a module's kernels.

    Args:
        code: CUDA source.
        options: as NVRTC gets them; -D and --std are passed on, others that change nothing here are allowed.
        names: name expressions of templates to instantiate.
        checked: with hooks at every access, for the modes check and count.
        arch: __CUDA_ARCH__ of the device that is emulated, such as 800.

    Raises:
        CompileError: the source does not compile.
    """
    flags = [f"-D__CUDA_ARCH__={arch}", *_passed_on(options), *_DEVICE, *_instructions()]
    flags += _CHECKED if checked else ["-O2"]
    run_time = runtime()
    key = _key(
        code, _version(), *names, *flags, run_time.name, _text_of(HERE / "include"), (HERE / "rewriting.py").read_text()
    )
    target = cache_folder() / f"module-{key}.so"
    if not target.exists():
        source = rewriting.rewrite(code)
        plain = rewriting.extern_c_kernels(_preprocessed(code, flags))
        table = [f"EMULATOR_KERNEL({_quoted(name)}, {name})" for name in [*plain, *names]]
        source = f'#line 1 "module.cu"\n{source}\n{_TABLE} = {{\n' + "".join(f"{entry},\n" for entry in table)
        source += "{nullptr, nullptr, nullptr, 0}};\n"
        include = ["-I", str(HERE / "include"), "-include", str(HERE / "include" / "emulator" / "device.h")]
        link = ["-shared", "-Wl,-z,max-page-size=4096", str(run_time), f"-Wl,-rpath,{run_time.parent}"]
        _compile([*flags, *include], {"module.cpp": source}, target, link)
    return target


@functools.cache
def runtime() -> Path:
    """The shared library that runs blocks and checks accesses."""
    sources = {path.name: path for path in sorted((HERE / "runtime").glob("*.cpp"))}
    flags = ["-std=gnu++20", "-O2", "-g1", *_COMMON, *_WARNINGS]
    key = _key(_version(), *flags, _text_of(HERE / "runtime"), _text_of(HERE / "include" / "emulator"))
    target = cache_folder() / f"runtime-{key}.so"
    if not target.exists():
        unit = "".join(f'#include "{path}"\n' for path in sources.values())
        _compile(flags, {"runtime.cpp": unit}, target, ["-shared", f"-Wl,-soname,{target.name}"])
    return target


def _passed_on(options: Sequence[str]) -> list[str]:
    standard, flags = "17", []
    for option in options:
        if option.startswith("-D"):
            flags.append(option)
        elif match := re.fullmatch(r"--?std=c\+\+(\d\d)", option):
            standard = match.group(1)
        elif option not in _WITHOUT_EFFECT:
            raise CompileError(f"the emulator does not know the compiler option {option}")
    return [f"-std=gnu++{standard}", *flags]


@functools.cache
def _instructions() -> list[str]:
    """Conversions to and from half take one instruction where the machine has it."""
    if platform.machine() != "x86_64":
        return []
    try:
        has = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return [f"-m{name}" for name in ("f16c", "fma", "avx2") if f" {name} " in has]


def _preprocessed(code: str, flags: Sequence[str]) -> str:
    """The source after macros, so that kernels that macros define are seen; headers are left out."""
    kept = [flag for flag in flags if flag.startswith(("-D", "-std"))]
    command = ["g++", "-E", "-P", "-w", "-x", "c++", *kept, "-DPYLLAMA2_EMULATED=1", "-"]
    result = subprocess.run(command, input=re.sub(r"#\s*include[^\n]*", "", code), text=True, capture_output=True)
    if result.returncode:
        raise CompileError(result.stderr[-4000:])
    return result.stdout


def _compile(flags: Sequence[str], sources: dict[str, str], target: Path, link: Sequence[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizers in the compiler
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        paths = []
        for name, text in sources.items():
            paths.append(Path(folder) / name)
            paths[-1].write_text(text)
        objects = [path.with_suffix(".o") for path in paths]
        commands = [["g++", *flags, "-c", str(p), "-o", str(o)] for p, o in zip(paths, objects, strict=True)]
        commands.append(["g++", *map(str, objects), *link, "-o", str(Path(folder) / "library.so")])
        for command in commands:
            result = subprocess.run(command, capture_output=True, text=True, env=env)
            if result.returncode:
                raise CompileError(result.stderr[-6000:])
        (Path(folder) / "library.so").replace(target)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '\\"') + '"'


def _text_of(folder: Path) -> str:
    return "\0".join(path.read_text() for path in sorted(folder.rglob("*.[ch]*")))


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
