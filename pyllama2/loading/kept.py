"""Converted models that are kept for the next start, in a folder with a limit of size.

The folder is PYLLAMA2_CACHE, else $XDG_CACHE_HOME/pyllama2, else ~/.cache/pyllama2. Its files are our model files. A
file's name is a hash of what it was made from: the checkpoint's files with their sizes and times, the storage types,
and adapters with their scales. When the files take more than PYLLAMA2_CACHE_GB, 20 without it, those that were used
longest ago are removed. A program that has one of them mapped keeps it until it ends. Files with other names are the
user's own, and are left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

from ..checkpoint.base import Checkpoint
from ..convert import Progress, write_converted
from ..errors import CheckpointError
from ..memory import weight_bytes
from ..shown import shown, shown_value
from ..storage.model_file import VERSION, StoredModel
from ..storage.weights import Quantization

log = logging.getLogger("pyllama2")

_DEFAULT_GB = 20.0
_SPARE_BYTES = 64 << 20  # that stay free on the disk
_NAME = re.compile(r"[0-9a-f]{32}\.bin")  # as _path_of() makes them
_NO_ROOM = "the converted model is not kept: it has %.3g GB, more than the %s"


def kept_folder() -> Path:
    """The folder of converted models."""
    if folder := os.environ.get("PYLLAMA2_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyllama2"


def kept_models() -> list[Path]:
    """The files of all kept models."""
    return sorted(path for path in kept_folder().glob("*.bin") if _NAME.fullmatch(path.name))


def find_kept(checkpoint: Checkpoint, quantization: Quantization) -> StoredModel | None:
    """Open the kept model of a checkpoint; None when there is none, or it cannot be read."""
    path = _path_of(checkpoint, quantization)
    if not path.exists():
        return None
    try:
        model = StoredModel.open(path)
    except CheckpointError as error:
        log.warning("a converted model that was kept is damaged, and is made anew: %s", error)
        return None
    if model.config != checkpoint.config or model.quantization != quantization:
        return None
    _mark_used(path)
    return model


def keep_converted(checkpoint: Checkpoint, quantization: Quantization, progress: Progress | None) -> StoredModel | None:
    """Convert a checkpoint to a file in the folder, and open it.

    Args:
        checkpoint: stays open.
        quantization: the storage types wanted.
        progress: called as progress(weights done, weights in all, name of the tensor just done).

    Returns:
        The model; None when the file is larger than the limit or the disk has no room for it, which is said on the log.

    Raises:
        CheckpointError: a number cannot be converted, or the folder cannot be written to.
        ValueError: PYLLAMA2_CACHE_GB is no number.
    """
    path = _path_of(checkpoint, quantization)
    limit, n_bytes = _limit_bytes(), weight_bytes(checkpoint.config, quantization)
    if n_bytes > limit:
        log.warning(_NO_ROOM, n_bytes / 1e9, f"{limit / 1e9:.3g} GB that PYLLAMA2_CACHE_GB allows")
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = _make_room(limit - n_bytes, n_bytes + _SPARE_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"cannot keep a converted model in {path.parent}: {error.strerror} (PYLLAMA2_CACHE sets another folder)"
        ) from error
    if n_bytes + _SPARE_BYTES > free:
        log.warning(_NO_ROOM, n_bytes / 1e9, f"{free / 1e9:.3g} GB free")
        return None
    write_converted(checkpoint, str(path), quantization, progress)
    log.warning("the converted model is kept as %s", shown(path))
    return StoredModel.open(path)


def _path_of(checkpoint: Checkpoint, quantization: Quantization) -> Path:
    files = []
    for file in checkpoint.files:
        real = os.path.realpath(file)
        status = os.stat(real)
        files.append([real, status.st_size, status.st_mtime_ns])
    config = checkpoint.config.to_json()
    key = json.dumps([VERSION, files, config, quantization.to_json(), checkpoint.source])
    return kept_folder() / (hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".bin")


def _limit_bytes() -> int:
    text = os.environ.get("PYLLAMA2_CACHE_GB", "") or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1
    if not 0 <= gigabytes < 1e9:
        raise ValueError(f"PYLLAMA2_CACHE_GB must be a number of gigabytes, not {shown_value(text)}")
    return int(gigabytes * 1e9)


def _make_room(limit: int, needed: int) -> int:
    """Remove the files that were used longest ago until the others take at most limit bytes.

    Nothing is removed if the disk has fewer than needed bytes even then. Returns the bytes that are free.
    """
    files = [(path.stat(), path) for path in kept_models()]
    excess = sum(status.st_size for status, _ in files) - limit
    free, n_bytes, gone = shutil.disk_usage(kept_folder()).free, 0, []
    for status, path in sorted(files, key=lambda file: file[0].st_atime_ns):
        if n_bytes < excess:
            n_bytes += status.st_size
            gone.append(path)
    if not gone or free + n_bytes < needed:
        return free
    for path in gone:
        path.unlink(missing_ok=True)
    return shutil.disk_usage(kept_folder()).free


def _mark_used(path: Path) -> None:
    """Set the time of the last use. The time of the last change stays: a mapped file that changes is an error."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except OSError:  # a folder that only can be read
        return
