"""Downloads one large file of the Hugging Face hub, and goes on where an earlier download was cancelled.

    CACHE/models--ORG--NAME/blobs/SHA256               a file of the cache
    CACHE/models--ORG--NAME/blobs/SHA256.incomplete    its first bytes; they stay when a download ends early

huggingface_hub goes on where a connection broke, but removes what it has when a download is cancelled. So its functions
are used here one by one. Files are taken by HTTP, in which a range of bytes can be asked for, not by Xet.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from ..shown import shown
from .cached import cache_folder, repo_folder

log = logging.getLogger("pyllama2")

_MOST_BYTES = 50 * 10**9  # of a file that the hub gives by HTTP


class DamagedFileError(Exception):
    """The file arrived with other bytes than the hub announced. It was removed."""


def incomplete_file(repo: str, sha256: str) -> Path:
    """The path of the first bytes of a file, if there are some."""
    return repo_folder(repo) / "blobs" / f"{sha256}.incomplete"


def download_large_file(repo: str, path: str, commit: str, size: int, sha256: str) -> bool:
    """Download a file into the blobs of the cache, unless it is there.

    Args:
        repo: ORG/NAME.
        path: the file's path in the repository.
        commit: the hash of a commit.
        size: the file's bytes.
        sha256: its SHA-256, in hexadecimal digits.

    Returns:
        Whether it is there. If not, the hub does not give it by HTTP under that hash.

    Raises:
        DamagedFileError: it arrived damaged.
        Exception: what huggingface_hub raises for errors of the hub and the network.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    blob, incomplete = repo_folder(repo) / "blobs" / sha256, incomplete_file(repo, sha256)
    if size > _MOST_BYTES:
        return False
    url = hf_hub_url(repo, path, revision=commit)
    metadata = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, library_name="pyllama2")
    if metadata.etag != sha256:
        return False
    headers = build_hf_headers(library_name="pyllama2")
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    lock = cache_folder() / ".locks" / repo_folder(repo).name / f"{sha256}.lock"  # that of huggingface_hub
    for folder in (lock.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download(metadata.location, headers, path, size, incomplete)
            if digest_of(incomplete, hashlib.sha256()) != sha256:
                incomplete.unlink()
                raise DamagedFileError
            os.replace(incomplete, blob)
    return True


def _download(url: str, headers: dict[str, str], path: str, size: int, to: Path) -> None:
    """Append to a file what it lacks."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    start = to.stat().st_size if to.exists() else 0
    if start > size:
        to.unlink()
        start = 0
    if start:
        log.warning("going on with %s after %.0f %% of it", shown(path), 100 * start / size)
    with open(to, "ab") as file:
        try:
            http_get(
                url, file, resume_size=start, headers=headers, expected_size=size, displayed_filename=shown(path, 80)
            )
        except KeyboardInterrupt:
            log.warning("the next download of %s goes on from here", shown(path))
            raise
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 416:  # there is no such range
                file.truncate(0)
            raise
        except OSError:
            if file.tell() <= size:  # else more has come than was announced, and the hash will say so
                raise


def digest_of(path: Path, digest: hashlib._Hash) -> str:
    """Feed a file to a hash and return its hexadecimal digits."""
    with open(path, "rb") as data:
        while part := data.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
