"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} with a status."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ConstraintError, ContextLengthError, NumericalError
from ..shown import one_line, shown_value

log = logging.getLogger("pyllama2.server")


class ApiError(Exception):
    """A request that is refused or has failed.

    Args:
        status: of HTTP.
        message: one sentence.
        code: a word for programs.
        param: the field that is at fault.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGoneError(ApiError):
    """The client has closed its connection, so nobody reads the answer. In logs its status is 499, as nginx has it."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection", code="client_closed")


def closing_error() -> ApiError:
    """The error of requests that come, or still run, while the server ends."""
    return ApiError(503, "the server is ending", code="shutting_down", headers={"Retry-After": "5"})


def internal_error() -> ApiError:
    """The error of a request that met a bug."""
    return ApiError(500, "the server has failed; its log says why", code="internal_error")


def timeout_error(seconds: float) -> ApiError:
    """The error of a request that took too long. Clients are told not to try again by themselves."""
    message = f"the request took longer than the {seconds:g} seconds that this server allows"
    return ApiError(504, message, code="timeout", headers={"x-should-retry": "false"})


def refused_by_library(error: Exception, fields: Collection[str]) -> ApiError:
    """The error for arguments that Llama refuses: TypeError, ValueError or ContextLengthError.

    Args:
        error: what was raised.
        fields: names of the fields that the request has. If the message begins with one, that is the param. Otherwise
            it is about the text.
    """
    message = str(error)
    first = re.match(r"\w*", message)
    param = first[0] if first and first[0] in fields else None
    param = param or next((name for name in ("messages", "prompt", "tokens") if name in fields), None)
    if isinstance(error, ContextLengthError):
        return ApiError(400, message, code="context_length_exceeded", param=param)
    return ApiError(400, message, code="invalid_value", param=param)


def refused_constraint(error: ConstraintError, field: str | None) -> ApiError:
    """The error for a text that cannot be, or cannot go on, as the field of that name says."""
    return ApiError(400, str(error) if field is None else f"{field}: {error}", code="invalid_value", param=field)


def failed_in_model(error: BaseException) -> ApiError:
    """The error for what a model raised while it generated. What it says may name files, so it goes to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConstraintError):
        return refused_constraint(error, None)
    if isinstance(error, NumericalError) and "logit_bias" in str(error):
        return ApiError(400, "logit_bias forbids every token", code="invalid_value", param="logit_bias")
    log.error("generation failed: %s", one_line(f"{type(error).__name__}: {error}"))
    return ApiError(500, "the model could not go on; the server's log says why", code="generation_failed")


def refused_by_fields(errors: Sequence[Mapping[str, Any]], fields: Collection[str]) -> ApiError:
    """The error for a body that does not fit its description.

    Args:
        errors: those of pydantic's ValidationError, of which the first is told.
        fields: the fields that the request may have.
    """
    error = errors[0]
    place = [str(part) for part in error["loc"] if part != "body" and not _is_branch(part)]
    param = ".".join(place) or None
    kind, message = error["type"], str(error["msg"])
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", message)
        return ApiError(400, f"the body is not JSON: {reason}", code="invalid_json")
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(place[-1], fields, 1) if len(place) == 1 else []
        hint = f"; did you mean {close[0]}?" if close else ""
        return ApiError(400, f"unknown field {shown_value(param)}{hint}", code="unknown_field", param=param)
    if kind == "missing":
        return ApiError(400, f"{param or 'the body'} is missing", code="missing_field", param=param)
    if kind == "unsupported":
        return ApiError(400, f"{param}: {message}", code="unsupported_field", param=param)
    message = message[:1].lower() + message[1:]
    return ApiError(400, f"{param or 'the body'}: {message}", code="invalid_value", param=param)


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's loc names the branch of a union rather than a place in the body."""
    return isinstance(part, str) and not re.fullmatch(r"[\w-]{1,64}", part)
