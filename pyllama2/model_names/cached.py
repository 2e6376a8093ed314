"""Models in the local cache of the Hugging Face hub, which other programs fill, too. Nothing here uses the network.

    CACHE/models--ORG--NAME/refs/REVISION            the commit that a branch or tag had when it was last asked for
    CACHE/models--ORG--NAME/snapshots/COMMIT/FILE    links to files in blobs/

CACHE is HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from .choice import Choice, choose
from .hub_name import HubName

_MOST_FILES = 10_000  # a repository with more is not listed to the end
COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """The folder of the cache."""
    from huggingface_hub import constants  # light: no other part of the package is loaded

    return Path(constants.HF_HUB_CACHE)


def repo_folder(repo: str) -> Path:
    """The folder of a repository in the cache."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def in_cached_spelling(name: HubName) -> HubName:
    """Write the name of a repository as the cache has it, if they differ in capitals alone: the hub knows no others."""
    if repo_folder(name.repo).is_dir():
        return name
    alike = [repo for repo in cached_repos() if repo.lower() == name.repo.lower()]
    return replace(name, repo=alike[0]) if alike else name


def cached_model(name: HubName, *, needs_tokenizer: bool = True, adapter: bool = False) -> str | None:
    """Find a model in the cache.

    Args:
        name: its name.
        needs_tokenizer: take no model whose tokenizer was not downloaded.
        adapter: find a LoRA adapter instead.

    Returns:
        The path of the file or folder to open; None when it is not there, or not complete.
    """
    snapshot = snapshot_of(name)
    if snapshot is None:
        return None
    choice = chosen(name, snapshot, adapter=adapter)
    if choice is None or (needs_tokenizer and not choice.has_tokenizer):
        return None
    return str(snapshot / choice.model)


def chosen(name: HubName, snapshot: Path, *, adapter: bool = False) -> Choice | None:
    """The files of a model in a folder of the cache; None when they are not complete."""
    try:
        return choose(name, files_in(snapshot), adapter=adapter)
    except CheckpointError:
        return None


def snapshot_of(name: HubName) -> Path | None:
    """The folder in the cache with the files of a name's revision; None when there is none."""
    folder = repo_folder(name.repo)
    commit = name.revision
    if not COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / name.revision).read_text().strip()
        except (OSError, ValueError):
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def snapshots_of(repo: str) -> list[Path]:
    """The folders of all commits of a repository in the cache."""
    folder = repo_folder(repo) / "snapshots"
    return sorted(path for path in folder.iterdir() if COMMIT.fullmatch(path.name)) if folder.is_dir() else []


def files_in(snapshot: Path) -> dict[str, int]:
    """The files of a folder and the folders below it, with their bytes. Links that lead nowhere are left out."""
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(snapshot):
        for file in names:
            path = Path(folder, file)
            try:
                sizes[path.relative_to(snapshot).as_posix()] = path.stat().st_size
            except OSError:
                continue
            if len(sizes) == _MOST_FILES:
                return sizes
    return sizes


def cached_repos() -> list[str]:
    """The names, ORG/NAME, of all repositories of models in the cache."""
    try:
        folders = sorted(os.listdir(cache_folder()))
    except OSError:
        return []
    names = [folder.removeprefix("models--").replace("--", "/") for folder in folders if folder.startswith("models--")]
    return [name for name in names if name.count("/") == 1]
