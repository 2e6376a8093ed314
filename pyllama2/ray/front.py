"""HTTP requests on their way to the replica that knows their beginning.

    Ray's proxy  ->  Front: reads the body, for its key  ->  PrefixRouter: chooses  ->  Replica: the server's app

Ray's proxy chooses before it has read a body, so it cannot choose by what a chat says. The front answers nothing by
itself but what cannot reach a replica.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from ..llama import Llama
from .prefix import CHAT, COMPLETION, key_of

if TYPE_CHECKING:
    from ..server.settings import Settings

log = logging.getLogger("pyllama2.server")

# What a replica gets to know of a request.
_SCOPE = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip
_ATTEMPTS = 3


class Replica:
    """A model of its own with the server's app, for fronts.

    Args:
        path: the model's file.
        arguments: of Llama.
        options: of create_app().
    """

    def __init__(self, path: str | None, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._app = make_app(path, arguments, options)
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, key: str, scope: dict[str, Any], body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the app's ASGI messages, as pickled lists of those that are there.

        Args:
            key: what the router has chosen this replica by.
            scope: of ASGI.
            body: of the request, as far as it was read.
        """
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": body, "more_body": False})

        async def run() -> None:
            try:
                await self._app(scope, requests.get, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            ended = False
            while not ended:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                ended = batch[-1] is None
                yield pickle.dumps([message for message in batch if message is not None])
        finally:
            requests.put_nowait({"type": "http.disconnect"})  # which ends the texts of a client that has left

    def __del__(self) -> None:
        """End what is under way. Ray has waited for it."""
        if hasattr(self, "_app"):
            self._app.end()


class Front:
    """The ASGI app that Ray's proxy sends requests to.

    A request whose replica dies is given to another one, if nothing of its answer was sent. Later, a stream ends with
    an error event.

    Args:
        replicas: the handle of the deployment of replicas.
        settings: what requests may have.
    """

    def __init__(self, replicas: Any, settings: Settings) -> None:
        from ..server.guard import Guard

        self._replicas = replicas.options(stream=True)
        self._settings = settings
        self._guard = Guard(self, settings)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        from ..server.errors import ApiError
        from ..server.guard import send_error

        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            try:
                body = await self._read(scope, receive)
                if body is not None:
                    await self._relay(scope, body, send)
            except ApiError as error:
                await send_error(error, send)

    async def _read(self, scope: Any, receive: Any) -> bytes | None:
        """Read the body of a request, but not of one that a replica refuses by its headers. None: the client left.

        Raises:
            ApiError: it is too long, or does not come.
        """
        from ..server.guard import Body

        if scope["method"] != "POST" or not self._guard.admits(scope):
            return b""
        bounded, pieces, more = Body(receive, self._settings), [], True
        while more:
            message = await bounded.receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(pieces)

    async def _relay(self, scope: Any, body: bytes, send: Any) -> None:
        """Send what a replica answers. Raises ApiError before the first byte."""
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import BackPressureError, RayServeException

        from ..server.errors import ApiError, internal_error

        path = scope["path"].removeprefix(scope.get("root_path", ""))
        key = key_of(path, body) if path in (CHAT, COMPLETION) and body else ""
        known = {name: scope[name] for name in _SCOPE if name in scope}
        answer = _Sent(send)
        for attempt in range(1, _ATTEMPTS + 1):
            messages, ended = self._replicas.answer.remote(key, known, body), False
            try:
                async for batch in messages:
                    for message in pickle.loads(batch):  # of our own replica
                        await answer.send(message)
                ended = True
                return
            except BackPressureError as error:
                words = "all replicas are busy, and no more requests may wait"
                raise ApiError(429, words, code="queue_full", headers={"Retry-After": "1"}) from error
            except RayActorError as error:
                log.warning("a replica was lost: %s", type(error).__name__)
                if answer.begun or attempt == _ATTEMPTS:
                    await answer.fail()
                    return
            except (RayError, RayServeException):
                log.exception("a replica has failed")
                if not answer.begun:
                    raise internal_error() from None
                await answer.fail()
                return
            finally:
                if not ended:
                    messages.cancel()


class _Sent:
    """The answer to a request, as far as it was sent."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.begun = False
        self._streams = False

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        await self._send(message)

    async def fail(self) -> None:
        """End the answer of a replica that is gone: with an error event, or as a connection that ends too early."""
        from ..server.answers import event
        from ..server.errors import ApiError

        error = ApiError(503, "the replica that answered was lost", code="replica_lost", headers={"Retry-After": "1"})
        if not self.begun:
            raise error
        if self._streams:
            await self._send({"type": "http.response.body", "body": event(error.body())})


def make_app(path: str | None, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> OwnApp:
    """Load a model, and make the app of a replica.

    Args:
        path: the model's file. None: the bundled one.
        arguments: of Llama.
        options: of create_app().
    """
    from ..serve import create_app

    return OwnApp(create_app(Llama(path, **arguments), **options))


class OwnApp:
    """The server's app behind Ray's proxy, which gives requests their ids by itself.

    Args:
        app: of create_app().
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""

        async def send_without_id(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without_id)

    def end(self) -> None:
        """End the requests under way."""
        self._app.service.end()


async def _live(receive: Any, send: Any) -> None:
    """Answer the messages of ASGI's lifespan, in which nothing is to be done."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
