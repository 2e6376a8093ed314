"""A hub like Hugging Face's on this machine, for tests of downloads: repositories of a few files, and its failures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34
_LARGE = 1 << 12  # files of so many bytes have a SHA-256, as those in Git LFS


@dataclass
class Repo:
    """A repository with one commit.

    Attributes:
        files: their contents by path.
        commit: its hash.
        revisions: names of that commit.
        error: an X-Error-Code that every request for a file gets, such as GatedRepo.
        token: a token that every request must bring.
        false: contents that are sent instead of the files that the hub announced.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    error: str = ""
    token: str = ""
    false: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """The hub.

    Attributes:
        repos: by their names.
        requests: method, path and Range header of what was asked for.
        cut_after: bytes after which the next answers with a file break off, one for each.
        hold_after: bytes after which the next answer with a file waits until the client gives up.
        no_ranges: whether a Range header is ignored.
        stall_s: seconds that each answer is late.
        status: what every request is answered with, 0 for none.
        page: what every request is answered with instead, as the login page of a network does; empty for none.
        moved: names of repositories that have another name now, with that.
    """

    url: str
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    hold_after: list[int] = field(default_factory=list)
    no_ranges: bool = False
    stall_s: float = 0
    status: int = 0
    page: bytes = b""
    moved: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, folder: Path, **more: Any) -> Repo:
        """Publish the files of a folder."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.repos[name] = Repo(files, **more)
        return self.repos[name]

    def downloads(self) -> list[str]:
        """The names of the files that were sent, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        time.sleep(self.hub.stall_s)
        with contextlib.suppress(OSError):  # the client has given up
            self._answer(path)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, path: str) -> None:
        if self.hub.status:
            return self._send(self.hub.status)
        if self.hub.page:
            return self._send(200, {"Content-Type": "text/html"}, self.hub.page)
        for old, new in self.hub.moved.items():
            if f"/{old}/re" in path:
                return self._send(307, {"Location": self.path.replace(old, new, 1)})
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/(?:revision|resolve)/([^/]+)/?(.*)", path)
        repo = self.hub.repos.get(found[1]) if found else None
        if found is None or repo is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if found[2] not in (repo.commit, *repo.revisions):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/"):
            siblings = [_sibling(*item) for item in repo.files.items()]
            listing = {"id": found[1], "sha": repo.commit, "siblings": siblings}
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        if repo.error:
            return self._send(403, {"X-Error-Code": repo.error})
        if found[3] not in repo.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        return self._send_file(repo, found[3])

    def _send_file(self, repo: Repo, path: str) -> None:
        data = repo.files[path]
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        data = repo.false.get(path, data)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None or self.hub.no_ranges:
            return self._send(200, headers, data)
        headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
        return self._send(206, headers, data[int(start[1]) :])

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            if self.hub.cut_after and "X-Repo-Commit" in (headers or {}) and len(body) > self.hub.cut_after[0]:
                body = body[: self.hub.cut_after.pop(0)]
                self.close_connection = True
            if self.hub.hold_after and "X-Repo-Commit" in (headers or {}) and len(body) > self.hub.hold_after[0]:
                self.wfile.write(body[: self.hub.hold_after.pop(0)])
                self.connection.recv(1)  # nothing comes until the client has gone
                return
            self.wfile.write(body)


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(data)}
    entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if len(data) >= _LARGE:
        entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return entry


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(hub_url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub use a hub and an empty cache, in this process and in those that it starts."""
    from huggingface_hub import constants

    values: dict[str, Any] = {"ENDPOINT": hub_url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}
    template = hub_url + "/{repo_id}/resolve/{revision}/{filename}"
    values |= {"HF_HUB_DOWNLOAD_TIMEOUT": 5, "HF_HUB_ETAG_TIMEOUT": 5, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    for name, value in values.items():
        patch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HOME"):
        patch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        patch.delenv(name, raising=False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
    patch.setenv("HF_ENDPOINT", hub_url)
    patch.setenv("HF_HUB_CACHE", str(cache))
