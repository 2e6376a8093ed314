"""The outermost layer: gives each request an id, logs it in one line, counts it, and answers what nobody caught."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..shown import for_json, one_line, shown
from .errors import internal_error
from .guard import send_error
from .metrics import Metrics
from .work import Figures

log = logging.getLogger("pyllama2.server")

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNKNOWN = "other"  # the path of requests that lead nowhere, in metrics


class Observe:
    """Watches each request.

    Args:
        app: what answers.
        metrics: what counts.
        paths: paths that metrics tell apart.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        figures = scope["pyllama2.figures"] = Figures()
        request_id = _request_id(scope)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: an error that nobody expected", request_id)
            figures.error = "internal_error"
            if not status:
                await send_error(internal_error(), send_with_id)
        finally:
            self._report(scope, request_id, 499 if figures.gone else status, figures)

    def _report(self, scope: Scope, request_id: str, status: int, figures: Figures) -> None:
        seconds = time.monotonic() - figures.arrived
        path = scope["path"]
        known = path in self._paths
        self._metrics.count(path if known else _UNKNOWN, status, figures, seconds)
        facts: dict[str, Any] = {
            "id": request_id,
            "method": scope["method"],
            "path": path if known else shown(path, 80),
            "status": status,
            "seconds": round(seconds, 3),
        }
        if figures.usage is not None:
            facts["prompt_tokens"] = figures.usage["prompt_tokens"]
            facts["cached_tokens"] = figures.usage["prompt_tokens_details"]["cached_tokens"]
            facts["tokens"] = figures.usage["completion_tokens"]
            facts["first_token_s"] = figures.first and round(figures.first - figures.arrived, 4)
            rate = figures.seconds_per_token
            facts["tokens_per_s"] = round(1 / rate, 1) if rate else None
            facts["finish"] = ",".join(figures.finish_reasons) or None
        if figures.error is not None:
            facts["error"] = figures.error
        log.info("request", extra={"facts": facts})


class LogFormatter(logging.Formatter):
    """One line for each record, as words or as JSON.

    Args:
        as_json: whether each line is a JSON object.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Format a record. The traceback of an unexpected error follows on lines of its own, or as a field."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        message = one_line(record.getMessage())
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            fields = {"time": moment, "level": level, "message": message, **facts}
            return for_json(json.dumps({**fields, **({"trace": trace} if trace else {})}, ensure_ascii=False))
        words = [f"{name}={value}" for name, value in facts.items() if value is not None]
        line = " ".join([moment, *([] if level == "info" else [level]), message, *words])
        return line if trace is None else f"{line}\n{trace}"


def _request_id(scope: Scope) -> str:
    """The client's own id if it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"req-{uuid.uuid4().hex}"
