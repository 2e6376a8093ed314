"""What a change must pass, by name: `nox -s lint`, or `nox` for lint, types and tests.

.ci/run calls these sessions, but for tests, which it runs as the README says.

They run in the environment that nox is installed in, by `pip install -e ".[test,dev,docs]"`. An environment for each
of them would compile the package and install torch once more.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def files(*patterns: str) -> list[str]:
    """Files that git knows."""
    return subprocess.check_output(["git", "ls-files", *patterns], text=True).split()


@nox.session
def lint(session: nox.Session) -> None:
    """Style and common errors of Python, Cython and C, and the form of the files for GitHub and Docker."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("cython-lint", "pyllama2")
    session.run("clang-format", "--dry-run", "--Werror", *files("*.h", "*.c", "*.cpp", "*.cu"), log=False)
    session.run("hadolint", "Dockerfile")
    for schema, pattern in (
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
    ):
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files(pattern))
    session.run("pre-commit", "validate-config")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """pytest; what stands behind -- goes to it."""
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The docs site, in site/; a warning is an error. Its pages load nothing from other servers."""
    session.run("python", "scripts/docs/make_pages.py")
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})
    loaded = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(https?:[^" >]+)')
    for page in sorted(Path("site").rglob("*.html")):
        if found := loaded.findall(page.read_text(encoding="utf-8")):
            session.error(f"{page} loads {', '.join(found)}")


@nox.session
def cuda(session: nox.Session) -> None:
    """The CUDA kernels, compiled for GPUs from sm_61 to sm_90 with NVRTC; no GPU is needed."""
    session.run("python", "scripts/cuda/check_cuda.py", *(session.posargs or ["--quick"]))


@nox.session
def arm(session: nox.Session) -> None:
    """The NEON kernels against the scalar ones, on emulated 64-bit ARM CPUs with and without dot products."""
    for cpu in ("max", "cortex-a57"):
        session.run("scripts/check_kernels.sh", "aarch64", cpu)


@nox.session
def ray(session: nox.Session) -> None:
    """Batches and the server on a Ray cluster of three nodes, all on this machine. Needs the extra ray."""
    session.run("python", "-c", "import ray", log=False)
    settings = {"PYLLAMA2_RAY_TESTS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    its_own = ("-W", "ignore::DeprecationWarning")  # warnings of Ray about itself
    tests = session.posargs or ["tests/batches", "-k", "ray"]
    session.run("python", "-m", "pytest", *its_own, *tests, env=settings)
