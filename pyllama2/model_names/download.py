"""Downloads the files of a model from the Hugging Face hub into its local cache, with the package huggingface_hub.

The package reads HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE, shows progress, and goes on where a connection
broke. It compares sizes; the hashes are compared here. Large files go on where an earlier download was cancelled
(large_file.py). The branch's entry in the cache is written last: a download that was interrupted is never taken for a
complete model, and its finished files are not downloaded again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..bounded_json import parse_json
from ..errors import CheckpointError
from ..families import refused
from ..shown import shown, shown_value
from .cached import COMMIT, cache_folder, repo_folder
from .choice import choose
from .hub_name import HubName
from .large_file import DamagedFileError, digest_of, download_large_file, incomplete_file

log = logging.getLogger("pyllama2")

_MOST_FILES = 100_000
_MOST_CONFIG_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # that a download leaves free on the disk


@dataclass(frozen=True)
class _RemoteFile:
    """A file on the hub: its bytes, and the SHA-256 of large files or git's SHA-1 of small ones, if it is known."""

    size: int
    sha256: str = ""
    git_sha1: str = ""


def is_offline() -> bool:
    """Whether the environment forbids to use the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def download(name: HubName, suggestion: str = "", *, adapter: bool = False, quiet: bool = False) -> str:
    """Download the files of a model that are not in the cache yet.

    Args:
        name: the model.
        suggestion: what the message says at its end when there is no such model.
        adapter: it is a LoRA adapter.
        quiet: show no progress.

    Returns:
        The path of the file or folder to open.

    Raises:
        CheckpointError: the model is not there, cannot be read, is not allowed, or did not arrive; or there is no
            network, or not enough room. The message says what to do.
    """
    if is_offline():
        raise CheckpointError(
            f"{name} is not in the cache ({cache_folder()}), and HF_HUB_OFFLINE forbids to download it{suggestion}"
        )
    _check_endpoint()
    with _errors_as_sentences(name, suggestion), _without_bars() if quiet else nullcontext():
        name, commit, remote = _listing(name)
        choice = choose(name, {path: file.size for path, file in remote.items()}, adapter=adapter)
        if choice.remark:
            log.warning("%s", choice.remark)
        snapshot = repo_folder(name.repo) / "snapshots" / commit
        missing = [path for path in choice.files if not (snapshot / path).exists()]
        if missing:
            _announce(name, missing, remote)
        for path in choice.files:
            if path in missing:
                _fetch(name, path, commit, remote[path])
            if path == "config.json":
                _refuse(name, snapshot / path)  # before the weights, which come last
        _fetch(name, choice.files[0], name.revision, None)  # it is there: this writes the branch's entry alone
        return str(snapshot / choice.model)


def _check_endpoint() -> None:
    """Raise CheckpointError unless HF_ENDPOINT is the address of a web server."""
    from huggingface_hub import constants

    try:
        parts = urlsplit(constants.ENDPOINT)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CheckpointError(
            f"HF_ENDPOINT must be the address of a hub, such as https://huggingface.co, not "
            f"{shown_value(constants.ENDPOINT)}"
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let huggingface_hub show no progress."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils  # which does not name them as its own
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _listing(name: HubName) -> tuple[HubName, str, dict[str, _RemoteFile]]:
    """The name in the hub's own spelling, the commit that its revision stands for now, and the files."""
    from huggingface_hub import HfApi, constants

    api = HfApi(library_name="pyllama2")
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=timeout)
    except (JSONDecodeError, KeyError, TypeError, AttributeError) as error:  # the answer is something else
        raise CheckpointError(
            f"{_host()} does not answer as a hub does; is HF_ENDPOINT right, or does the network ask for a login first?"
        ) from error
    if info.id.isascii() and info.id.lower() == name.repo.lower():  # not the new name of a model that was renamed
        name = replace(name, repo=info.id)
    if info.sha is None or not COMMIT.fullmatch(info.sha):  # it becomes a part of a path
        raise CheckpointError(f"{_host()} does not say which commit {name} is")
    files = {}
    for entry in (info.siblings or [])[:_MOST_FILES]:
        if {"", ".", ".."} & set(entry.rfilename.split("/")):
            continue  # no path inside of the repository
        lfs: Any = entry.lfs
        size = entry.size if entry.size is not None else 0
        sha256 = "" if lfs is None else str(lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256)
        files[entry.rfilename] = _RemoteFile(size, sha256, "" if sha256 else entry.blob_id or "")
    return name, info.sha, files


def _announce(name: HubName, missing: list[str], remote: dict[str, _RemoteFile]) -> None:
    """Say what will be downloaded. Raises CheckpointError if the disk has no room for it."""
    needed = sum(remote[path].size - _present(name, remote[path]) for path in missing)
    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{name} needs {_bytes(needed)} on the disk of {folder}, which has {_bytes(free)} left; "
            f"free some, or set {_cache_variable()} to a folder on another disk"
        )
    what = missing[0] if len(missing) == 1 else f"{len(missing)} files"
    log.warning("downloading %s of %s (%s) to %s", shown(what), name.repo, _bytes(needed), shown(folder))


def _refuse(name: HubName, config: Path) -> None:
    """Raise CheckpointError if a config.json says that the model cannot be used. The reader says what is damaged."""
    try:
        if config.stat().st_size > _MOST_CONFIG_BYTES:
            return
        values = parse_json(config.read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(values, dict) and (reason := refused(values)):
        raise CheckpointError(f"{name}: {reason}")


def _present(name: HubName, file: _RemoteFile) -> int:
    """Bytes of a file that an earlier download left."""
    try:
        n_bytes = incomplete_file(name.repo, file.sha256).stat().st_size if file.sha256 else 0
    except OSError:
        return 0
    return n_bytes if n_bytes <= file.size else 0


def _fetch(name: HubName, path: str, revision: str, file: _RemoteFile | None) -> None:
    """Download a file unless it is in the cache. file: what it should be; None: that is not checked.

    Raises CheckpointError if it arrived damaged; it is removed then.
    """
    from huggingface_hub import hf_hub_download

    try:
        checked = file is not None and file.sha256 != "" and _fetch_large(name, path, revision, file)
        place = Path(hf_hub_download(name.repo, path, revision=revision, library_name="pyllama2"))
        if checked or file is None or not _is_damaged(place, file):
            return
        os.unlink(os.path.realpath(place))
        place.unlink(missing_ok=True)
    except DamagedFileError:
        pass
    raise CheckpointError(
        f"{path} of {name.repo} arrived damaged: its hash is not the one that {_host()} announced; "
        "it was removed, so try again"
    )


def _fetch_large(name: HubName, path: str, commit: str, file: _RemoteFile) -> bool:
    """Download a file with a SHA-256 into the cache, and check it. False: huggingface_hub must do it."""
    return re.fullmatch("[0-9a-f]{64}", file.sha256) is not None and download_large_file(
        name.repo, path, commit, file.size, file.sha256
    )


def _is_damaged(path: Path, file: _RemoteFile) -> bool:
    """Whether a file's hash is not the one announced. Git's hash begins with the word blob and the size."""
    wanted = file.sha256 or file.git_sha1
    if not wanted:
        return False
    if file.sha256:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return digest_of(path, digest) != wanted


@contextmanager
def _errors_as_sentences(name: HubName, suggestion: str) -> Iterator[None]:
    """Turn errors of the hub, the network and the disk into CheckpointError. Other errors pass."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        sentence = _sentence(name, error, suggestion)
        if sentence is None:
            raise
        raise CheckpointError(sentence) from error


def _sentence(name: HubName, error: Exception, suggestion: str) -> str | None:
    """What a user can do about an error; None for errors that are no one's but ours."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    host = _host()
    token = "a token (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, errors.GatedRepoError):
        return f"{name.repo} is gated: accept its terms at https://{host}/{name.repo}, and give {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repo} has no branch, tag or commit {name.revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no {name} here, in the cache, or on {host}{suggestion or '; check the spelling'} "
            f"(a private model needs {token})"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{host} refuses {name} (status {status}): give {token} that may read it"
    if status is not None:
        return f"{host} answers with status {status} for {name}: try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        variable = _cache_variable()
        return f"the disk of {cache_folder()} is full: free some room, or set {variable} to a folder on another disk"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"cannot write {shown(error.filename)}: {error.strerror} ({_cache_variable()} sets another folder)"
    if type(error) is OSError and error.errno is None:  # of huggingface_hub, about the size
        return f"a file of {name} did not arrive whole from {host}; try again"
    if "Timeout" in type(error).__name__:
        variables = "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        return f"{host} took too long to answer ({name}); try again, or set {variables} to more seconds"
    if isinstance(error, (OSError, errors.OfflineModeIsEnabled)) or type(error).__module__.startswith("httpx"):
        return (
            f"cannot get {name} from {host} ({shown(error, 120) or type(error).__name__}); "
            "without a network, use a model that `pyllama2 models` lists"
        )
    if isinstance(error, UnicodeEncodeError):  # of a header
        return "HF_TOKEN has a character that no token has"
    if isinstance(error, ValueError):
        return f"{name} cannot be downloaded to {cache_folder()}: {shown(error, 120)}; is a file in it damaged?"
    return None


def _host() -> str:
    """The hub's host, huggingface.co unless HF_ENDPOINT sets another."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc or str(constants.ENDPOINT)


def _cache_variable() -> str:
    """The environment variable that sets the folder of the cache."""
    return "HF_HUB_CACHE" if os.environ.get("HF_HUB_CACHE") else "HF_HOME"


def _bytes(n_bytes: int) -> str:
    """A size for people, with the units that disks and networks have: 1 GB is 10^9 bytes."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 10**6 else f"{n_bytes / 1e3:.1f} kB"
