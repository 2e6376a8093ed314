"""The models that can be used here without the network: for lists, completion and suggestions."""

from __future__ import annotations

import contextlib
import difflib
import os
from dataclasses import dataclass

from ..errors import CheckpointError
from .cached import cached_repos, files_in, snapshot_of, snapshots_of
from .choice import choose
from .hub_name import MODEL_SUFFIXES, HubName
from .packaged import demo_path, smollm2_path

_MOST_FILES = 10_000


@dataclass(frozen=True)
class Place:
    """A model that is here.

    Attributes:
        name: what find_model() takes.
        kind: "here" for the current folder, "hub" for the hub's cache, "package" for smollm2, "bundled" for demo.
        path: the file or folder.
    """

    name: str
    kind: str
    path: str


def known_places() -> list[Place]:
    """All models that are here, or look like models by their names."""
    places = [Place(name, "here", name) for name in local_models()]
    for repo in cached_repos():
        places += _of_repo(repo)
    with contextlib.suppress(CheckpointError):  # it is not installed
        places.append(Place("smollm2", "package", smollm2_path()))
    return [*places, Place("demo", "bundled", demo_path())]


def _of_repo(repo: str) -> list[Place]:
    """The models of a repository in the cache: a folder, or each of its GGUF files, of the branch main or a commit."""
    places = []
    main = snapshot_of(HubName(repo))
    for snapshot in snapshots_of(repo):
        revision = "main" if snapshot == main else snapshot.name
        files = files_in(snapshot)
        ggufs = [HubName(repo, revision, path) for path in sorted(files) if path.endswith(".gguf")]
        for name in [HubName(repo, revision), *ggufs]:
            try:
                model = choose(name, files).model
            except CheckpointError:
                continue
            if model == name.file:  # not the file that is one of several parts, or that the folder's name stands for
                places.append(Place(str(name), "hub", str(snapshot / model)))
    return places


def local_models(folder: str = os.curdir) -> list[str]:
    """Files and directories in a folder that look like models by their names and what is in them."""
    try:
        names = sorted(os.listdir(folder))[:_MOST_FILES]
    except OSError:
        return []
    return [name for name in names if _looks_like_model(os.path.join(folder, name))]


def _looks_like_model(path: str) -> bool:
    if os.path.isdir(path):
        return any(os.path.isfile(os.path.join(path, name)) for name in ("config.json", "params.json"))
    return path.endswith(MODEL_SUFFIXES) and os.path.isfile(path)


def suggestion(text: str) -> str:
    """The end of a message, "; did you mean ...?", with a name that is like text; empty when there is none."""
    names = [*(place.name for place in known_places()), *cached_repos(), "smollm2"]
    folder, base = os.path.split(text)
    if folder and os.path.isdir(folder):
        names += [os.path.join(folder, name) for name in local_models(folder)]
    by_key = {name.lower(): name for name in names}
    for name in names:  # the name without its organization, as people say it
        by_key.setdefault(name.rpartition("/")[2].lower(), name)
    found = difflib.get_close_matches(text.lower(), by_key, n=1, cutoff=0.7)
    if not found and base != text:
        found = difflib.get_close_matches(base.lower(), by_key, n=1, cutoff=0.85)
    return f"; did you mean {by_key[found[0]]}?" if found else ""
