"""An app on a socket: uvicorn with signals that end it in good order, and clients that cannot hold connections.

SIGTERM, Ctrl-C   no new requests; those under way have a grace, then end with an error; the exit code is 0
again             they end at once
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import to_json
from .app import App
from .errors import ApiError
from .service import Service

log = logging.getLogger("pyllama2.server")

# A client that takes none of the data that waits for it is disconnected after so many seconds (Linux only).
_STALLED_S = 120
# Bytes that the kernel keeps for a client that reads slowly; it would take megabytes by itself.
_SEND_BUFFER = 1 << 17
_LAST_WORDS_S = 3.0  # for errors to reach clients after the grace
_KEEP_ALIVE_S = 5


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a socket, which does not listen yet, so that a port in use is found before a model is loaded.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(error.errno, error.strerror or "unknown host", host) from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_S * 1000)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror or "unusable", f"{host} port {port}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The http:// address of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: App, bound: socket.socket, grace_s: float) -> None:
    """Serve until a signal comes. It must be called in the main thread.

    Args:
        app: what is served.
        bound: a socket of open_socket().
        grace_s: seconds that requests under way have after the signal.
    """
    _Server(make_config(app, grace_s), app.service, grace_s).run(sockets=[bound])


def make_config(app: App, grace_s: float) -> uvicorn.Config:
    """The configuration of uvicorn for an app and its limits."""
    settings = app.service.settings

    class Protocol(_Protocol):
        header_timeout_s = settings.header_timeout_s

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # Observe reports errors, _Server its end
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s + _LAST_WORDS_S) + 1,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, whose end is that of the service."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals, and do not raise them again: an end that was asked for is a success."""
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for bound in sockets or []:
            url = url_of(bound)
            log.info("serving %s at %s/v1, a page at %s (Ctrl-C ends)", self._service.settings.names[0], url, url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second hurries it."""
        if self.should_exit:
            self._grace_s = 0.0
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order."""
        self._service.close()
        log.info("ending; requests under way have %g seconds", self._grace_s)
        drained = asyncio.ensure_future(self._drain())
        await super().shutdown(sockets)
        await drained

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not self._service.idle and loop.time() < started + self._grace_s:
            await asyncio.sleep(0.05)
        self._service.end()
        ended = loop.time()
        while self.server_state.connections and loop.time() < ended + _LAST_WORDS_S:
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):  # of clients that take nothing
            connection.transport.abort()


class _Protocol(H11Protocol):
    """uvicorn's HTTP, with a time limit for the headers of a request, and with JSON for what is not HTTP."""

    header_timeout_s: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has left."""
        self._stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """A request was answered."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has too long headers, and close the connection."""
        body = to_json(ApiError(400, "this is no HTTP request, or its headers are too long", code="bad_request").body())
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Run the timer while the headers of a request are awaited or incomplete."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()
