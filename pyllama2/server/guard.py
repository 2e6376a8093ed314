"""Who may use the server, decided from the headers before any body is read. Pure ASGI, which leaves streams alone.

Host      localhost, the bound address, or an allowed host: a page that rebinds its own name to 127.0.0.1 sends its
          own name here
Origin    none, the server's own, or an allowed one: browsers name the page that asks
key       Authorization: Bearer ..., compared in constant time, for all but the page and /health
body      POST is application/json, and not longer than allowed
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from hashlib import sha256
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..shown import shown_value
from .answers import to_json
from .errors import ApiError
from .settings import Settings

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Paths that need no key: they tell nothing, and a page is loaded before its user can give one.
_OPEN_PREFIXES = ("/health", "/static/")
_OPEN_PATHS = ("/", "/docs", "/docs.css", "/openapi.json", "/favicon.ico")
PROTECTION = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
CORS_METHODS = ("GET", "POST")
CORS_HEADERS = ("authorization", "content-type", "x-request-id")
CORS_EXPOSED = ("x-request-id", "retry-after")


class Guard:
    """Refuses requests that may not be answered, in OpenAI's form of errors.

    Args:
        app: what is guarded.
        settings: what is allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = {name.lower() for name in (*_LOOPBACK, settings.host, *settings.allowed_hosts)}
        self._any_address = _is_unspecified(settings.host)
        self._keys = [sha256(key.encode()).digest() for key in settings.keys]
        self._rest: ASGIApp = self._check_rest
        if settings.cors_origins:
            self._rest = CORSMiddleware(
                self._check_rest,
                allow_origins=settings.cors_origins,
                allow_methods=CORS_METHODS,
                allow_headers=CORS_HEADERS,
                expose_headers=CORS_EXPOSED,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = _Headers(scope)
            self._check_size(headers)
            self._check_place(headers)
            await self._rest(scope, receive, send)
        except ApiError as error:
            await send_error(error, send)

    def admits(self, scope: Scope) -> bool:
        """Whether the headers of a request are such that its body would be read."""
        try:
            headers = _Headers(scope)
            self._check_size(headers)
            self._check_place(headers)
            self._check_key(scope["path"], headers)
            self._check_body(headers)
        except ApiError:
            return False
        return True

    async def _check_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What comes after CORS, so that pages of allowed origins may read errors, too."""
        body = Body(receive, self._settings)
        try:
            headers = _Headers(scope)
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                self._check_body(headers)
            await self._app(scope, body.receive, send)
        except ApiError as error:
            await send_error(error, send)

    def _check_size(self, headers: _Headers) -> None:
        limit = self._settings.max_header_bytes
        if headers.n_bytes > limit:
            raise ApiError(431, f"the headers have more than {limit} bytes", code="headers_too_large")

    def _check_place(self, headers: _Headers) -> None:
        host = headers.one("host")
        if not self._is_allowed_host(host):
            raise ApiError(
                403,
                f"the host {shown_value(host or '')} is not this server's; its owner can allow it (--allowed-host)",
                code="host_not_allowed",
            )
        origin = headers.one("origin")
        if origin is not None and not self._is_allowed_origin(origin, host or ""):
            raise ApiError(
                403,
                f"pages of {shown_value(origin)} may not use this server; its owner can allow them (--cors-origin)",
                code="origin_not_allowed",
            )

    def _is_allowed_host(self, host: str | None) -> bool:
        name = _without_port(host or "")
        if name is None:
            return False
        if self._any_address and _is_address(name):
            return True  # no name was resolved, so none was rebound
        return name in self._hosts

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        allowed = self._settings.cors_origins
        if origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower()):
            return True
        return origin != "null" and ("*" in allowed or origin in allowed)

    def _check_key(self, path: str, headers: _Headers) -> None:
        if not self._keys or path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES):
            return
        scheme, _, key = (headers.one("authorization") or "").partition(" ")
        digest = sha256(key.strip().encode("latin-1", "replace")).digest()
        found = [hmac.compare_digest(digest, other) for other in self._keys]  # all, whichever is equal
        if scheme.lower() != "bearer" or not any(found):
            message = "this server needs an API key (Authorization: Bearer KEY)" if not key else "the API key is wrong"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_body(self, headers: _Headers) -> None:
        kind = (headers.one("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
        if (headers.one("content-encoding") or "identity").lower() != "identity":
            raise ApiError(415, "the body must not be compressed", code="unsupported_media_type")
        length = headers.one("content-length") or "0"
        if not (length.isascii() and length.isdigit()) or int(length[:19]) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)


class _Headers:
    """The headers of a request."""

    def __init__(self, scope: Scope) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]

    @property
    def n_bytes(self) -> int:
        """Bytes of all headers."""
        return sum(len(name) + len(value) for name, value in self._headers)

    def one(self, name: str) -> str | None:
        """The value of a header that may come once. Raises ApiError if it comes again."""
        values = [value for key, value in self._headers if key == name.encode()]
        if len(values) > 1:
            raise ApiError(400, f"the header {name} comes {len(values)} times", code="invalid_header")
        return values[0].decode("latin-1") if values else None


class Body:
    """Counts the bytes of a body as it is read, since its length need not be told before. It does not wait for ever."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._settings = settings
        self._n_bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        """The next message. Raises ApiError after too many bytes (413), or when nothing comes (408)."""
        if self._complete:  # what comes now is the client's leave, at any time
            return await self._receive()
        seconds = self._settings.body_timeout_s
        try:
            message = await asyncio.wait_for(self._receive(), seconds)
        except asyncio.TimeoutError:
            words = f"nothing of the body came in {seconds:g} seconds"
            raise ApiError(408, words, code="timeout", headers={"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._n_bytes > self._settings.max_body_bytes:
                raise too_large(self._settings.max_body_bytes)
        return message


def too_large(limit: int) -> ApiError:
    """The error of a body with too many bytes. The connection ends, since the rest of the body is not read."""
    return ApiError(
        413, f"the body has more than {limit} bytes", code="request_too_large", headers={"Connection": "close"}
    )


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = to_json(error.body())
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str | None:
    """The name or address in a Host header, in lower case; None if it is malformed."""
    name, port = host, ""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or not _is_address(name):
            return None
    elif host.count(":") == 1:
        name, _, port = host.partition(":")
        port = f":{port}"
    number = port.removeprefix(":")
    if port and not (port.startswith(":") and number.isascii() and number.isdigit() and len(number) <= 5):
        return None
    return name.lower().removesuffix(".") or None


def _is_address(name: str) -> bool:
    return _address(name) is not None


def _is_unspecified(name: str) -> bool:
    address = _address(name)
    return address is not None and address.is_unspecified


def _address(name: str) -> Any:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
