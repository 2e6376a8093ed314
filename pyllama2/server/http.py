"""The answer to one request over HTTP, whole or as server-sent events, for a client that may leave at any moment."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import to_json
from .errors import ClientGoneError
from .requests import ChatRequest, CompletionRequest
from .service import Service
from .work import Figures, Work

_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class Answer(Response):
    """Works on a request while it is sent.

    A stream begins with its first event, so that what goes wrong earlier has a status.

    Args:
        service: does the work.
        request: what is asked for.
    """

    def __init__(self, service: Service, request: ChatRequest | CompletionRequest) -> None:
        super().__init__()
        self._service = service
        self._request = request
        self._work: Work | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. Raises ApiError before the first byte; a client that left gets nothing."""
        figures: Figures = scope.setdefault("pyllama2.figures", Figures())
        figures.stream = bool(self._request.stream)
        watcher = asyncio.ensure_future(self._watch(receive, figures))
        try:
            await self._send(send, figures)
        except ClientGoneError:
            figures.gone = True
        finally:
            watcher.cancel()
            if self._work is not None:
                self._service.leave(self._work, self._request)

    async def _send(self, send: Send, figures: Figures) -> None:
        service, request = self._service, self._request
        self._work, form = await service.open(request, live=figures.stream, figures=figures)
        if figures.gone:
            raise ClientGoneError
        if not figures.stream:
            body = to_json(await service.whole(self._work, form, request))
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        begun = False
        async with aclosing(service.events(self._work, form, request)) as events:
            async for data in events:
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _watch(self, receive: Receive, figures: Figures) -> None:
        """Wait until the client leaves. The texts then end at the next step of the model."""
        while (await receive())["type"] != "http.disconnect":
            pass
        figures.gone = True
        if self._work is not None:
            self._work.fail(ClientGoneError())
