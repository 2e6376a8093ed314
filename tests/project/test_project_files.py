"""Files about the project agree with each other: pinned versions, sessions of nox, workflows, the changelog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
pytestmark = pytest.mark.skipif(not WORKFLOWS.exists(), reason="the sdist has no .github")
# Repositories of hooks, and the package whose version their tag is.
PACKAGES = {
    "ruff-pre-commit": "ruff", "mirrors-mypy": "mypy", "cython-lint": "cython-lint",
    "mirrors-clang-format": "clang-format", "check-jsonschema": "check-jsonschema",
}  # fmt: skip


def read_yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text())


def newest_locked() -> dict[str, str]:
    """Package -> its newest version in .ci/requirements.txt; older ones are for old versions of Python."""
    found: dict[str, str] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / ".ci" / "requirements.txt").read_text(), re.MULTILINE
    ):
        found[name] = max(version, found.get(name, version), key=Version)
    return found


def sessions() -> set[str]:
    return set(re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE))


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def test_hooks_have_the_versions_that_ci_installs() -> None:
    locked = newest_locked()
    pinned = {repo["repo"].rpartition("/")[2]: repo for repo in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert set(pinned) == {*PACKAGES, "pre-commit-hooks", "local"}
    for repository, package in PACKAGES.items():
        assert pinned[repository]["rev"].removeprefix("v") == locked[package], repository
    (mypy,) = pinned["mirrors-mypy"]["hooks"]
    for requirement in mypy["additional_dependencies"]:
        name, _, version = requirement.partition("==")
        assert f"\n{name}=={version} " in (ROOT / ".ci" / "requirements.txt").read_text()


def test_ci_runs_the_sessions() -> None:
    """But for the tests, which it runs by the README's own command."""
    named = set(" ".join(re.findall(r"^ *nox -s ([a-z ]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)).split())
    assert named | {"tests"} == sessions()


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.stem)
def test_workflows(path: Path) -> None:
    """They may only read, other people's code in them is pinned, and what they call is there."""
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
        for names in re.findall(r"nox -s ([a-z ]+)", step.get("run", "")):
            assert set(names.split()) <= sessions()


def test_the_image_gets_what_the_wheel_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    files = re.findall(r"^(?:readme|license-files) = (.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert kept >= {"pyllama2", "setup.py", "pyproject.toml", *re.findall(r'"([^"]+)"', " ".join(files))}
    assert all((ROOT / name).exists() for name in kept)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^(##+) (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("##", "[Unreleased]")
    for level, text in headings[1:]:
        if level == "##":
            assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", text)
        else:
            assert text in {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
