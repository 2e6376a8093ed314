"""What is said of the project's dependencies: the versions that CI installs, and their licences."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
BUILD: list[str] = PROJECT["build-system"]["requires"]
RUN: list[str] = PROJECT["project"]["dependencies"]
# What classifiers and older fields call the licences.
SPELLINGS = {
    "MIT": "MIT", "Apache": "Apache-2.0", "BSD": "BSD-3-Clause", "Python Software Foundation": "PSF-2.0",
    "Public Domain": "LicenseRef-Public-Domain", "NVIDIA Proprietary": "LicenseRef-NVIDIA-Proprietary",
}  # fmt: skip


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def licences() -> dict[str, str]:
    """The table in the list of licences: package -> licence."""
    text = (ROOT / "THIRD_PARTY_LICENSES.md").read_text()
    return dict(re.findall(r"^\| ([a-z0-9-]+) \| (?!wanted by)[^|]+ \| ([^|]+) \|$", text, re.MULTILINE))


def test_every_dependency_has_its_licence_listed() -> None:
    wanted = names([*RUN, *BUILD, *(line for extra in EXTRAS.values() for line in extra)])
    assert set(licences()) == wanted


@pytest.mark.parametrize("name", licences())
def test_the_licence_is_the_one_that_the_package_states(name: str) -> None:
    try:
        stated = metadata(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    found = set(re.findall(r"[\w.-]+", stated["License-Expression"] or "")) - {"AND", "OR", "WITH"}
    for text in [stated["License"] or "", *(stated.get_all("Classifier") or [])]:
        if text == stated["License"] or text.startswith("License ::"):
            found |= {licence for spelling, licence in SPELLINGS.items() if spelling in text}
    if not found:
        pytest.skip(f"{name} states no licence in its metadata")
    assert found & set(re.findall(r"[\w.-]+", licences()[name]))


def locked() -> dict[str, list[tuple[str, str]]]:
    """.ci/requirements.txt: package -> its (version and marker, hashes)."""
    path = ROOT / ".ci" / "requirements.txt"
    if not path.exists():
        pytest.skip("the sdist has no .ci")
    entries = re.findall(r"^([a-z0-9.-]+)==([^\\]+) \\\n((?:    --hash=.*\n)+)", path.read_text(), re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^ #\n]", path.read_text(), re.MULTILINE))  # nothing without a hash
    found: dict[str, list[tuple[str, str]]] = {}
    for name, version, hashes in entries:
        found.setdefault(name, []).append((version, hashes))
    return found


def test_ci_installs_exact_versions_of_all_but_torch() -> None:
    wanted = [*RUN, *BUILD, *EXTRAS["test"], *EXTRAS["dev"], *EXTRAS["docs"], *EXTRAS["fuzz"], *EXTRAS["ray"]]
    lock = locked()
    for requirement in map(Requirement, wanted):
        if requirement.name == "torch":  # which build it is depends on the machine
            assert "torch" not in lock
            continue
        assert requirement.name in lock, f"run .ci/lock: {requirement.name} is not in .ci/requirements.txt"
        for version, _ in lock[requirement.name]:
            assert requirement.specifier.contains(version.partition(" ")[0]), f"run .ci/lock: {requirement}"


def test_the_lock_names_no_place_to_install_from() -> None:
    locked()
    assert not re.search(r"://|^-", (ROOT / ".ci" / "requirements.txt").read_text(), re.MULTILINE)
