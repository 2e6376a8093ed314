"""The page at /: files of the folder page, from memory. No path of a request reaches the file system."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from ..shown import shown_value
from .errors import ApiError
from .guard import PROTECTION

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}


class PageFiles:
    """The files of the page by their names, such as vendor/inter.woff2. They are read when they are made."""

    def __init__(self) -> None:
        self._files = {
            path.relative_to(_FOLDER).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(_FOLDER.rglob("*"))
            if path.suffix in _TYPES
        }

    def answer(self, name: str, request: Request) -> Response:
        """Return a file, or 304 if the browser has it. Raises ApiError if there is no such file."""
        if name not in self._files:
            raise ApiError(404, f"there is no {shown_value(request.url.path)}", code="not_found")
        data, kind = self._files[name]
        tag = f'"{sha256(data).hexdigest()[:32]}"'
        headers = {**PROTECTION, "etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers={**headers, "content-type": kind})
