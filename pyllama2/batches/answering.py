"""A batch at work: so many requests at a time that the model always has the next one, each written when it is there.

The scheduler decodes as many texts together as memory holds, and prompts that begin alike share what is computed.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import NumericalError, Pyllama2Error
from ..generation.prefix_cache import MAX_ROWS
from ..llama import Llama
from ..process.event_loop import run_async
from .inputs import Item
from .results import Results

if TYPE_CHECKING:
    from ..server.errors import ApiError
    from ..server.service import Service

# Requests that are open: those whose texts are decoded together, and as many that come next.
AT_ONCE = 2 * MAX_ROWS
_FOREVER_S = 1e9
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass
class Tally:
    """What a batch has done.

    Attributes:
        answered: requests with an answer.
        failed: requests with an error as their result.
        prompt_tokens: of the answers.
        cached_tokens: of those, the ones that were computed for an earlier request.
        completion_tokens: generated tokens.
        started: when it began, by time.monotonic().
    """

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    started: float = 0.0

    def add(self, result: dict[str, Any]) -> None:
        """Count a result."""
        response = result["response"]
        if response is None or response["status_code"] != 200:
            self.failed += 1
            return
        self.answered += 1
        usage = response["body"]["usage"]
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        self.completion_tokens += usage["completion_tokens"]

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all texts for each second."""
        return self.completion_tokens / max(self.seconds, 1e-9)


def make_service(llm: Llama, name: str) -> Service:
    """What answers the requests of a batch: the server's own, without its limits of time and of a queue."""
    from ..server.service import Service
    from ..server.settings import Settings

    return Service(llm, Settings(names=(name,), max_concurrent=MAX_ROWS, max_queue=1 << 30, timeout_s=_FOREVER_S))


async def result_of(service: Service, item: Item, result_id: str) -> dict[str, Any]:
    """The result of an item, in the form of OpenAI's batches.

    Args:
        service: answers it.
        item: the request.
        result_id: what the result is called.

    Raises:
        Pyllama2Error: no request can be answered any more, such as when the model's file has changed.
    """
    from ..server.errors import ApiError

    head = {"id": result_id, "custom_id": item.custom_id}
    if item.body is None:
        error = {"code": item.code, "message": item.message, "line": item.number}
        return {**head, "response": None, "error": error}
    try:
        body, status = await service.answer(service.parse(item.path, item.body)), 200
    except ApiError as error:
        _raise_if_fatal(error)
        body, status = error.body(), error.status
    response = {"status_code": status, "request_id": f"req-{uuid.uuid4().hex}", "body": body}
    return {**head, "response": response, "error": None}


def _raise_if_fatal(error: ApiError) -> None:
    """Raise what concerns the model rather than the request: otherwise all that is left would fail by it."""
    cause = error.__cause__
    refused = error.status < 500  # by what the request asks for, such as a schema that cannot be followed
    if cause is not None and not (refused or isinstance(cause, NumericalError) or type(cause) is Pyllama2Error):
        raise cause


def to_line(result: dict[str, Any]) -> bytes:
    """A result as a line of JSON, in ASCII."""
    return _ENCODER.encode(result).encode() + b"\n"


def run_batch(
    llm: Llama, items: Iterable[Item], results: Results, *, name: str, told: Callable[[Tally], None] | None = None
) -> Tally:
    """Answer the items whose results are not there yet. It may be interrupted at any moment.

    Args:
        llm: the model.
        items: the requests; each is read when its turn comes.
        results: where the results go, in the order in which they are ready.
        name: of the model, for the answers.
        told: called after each result.

    Raises:
        CheckpointError: the results are not of this batch, or the model's file has changed.
        OSError: a file cannot be read or written.
    """
    return run_async(_run_batch(llm, items, results, name, told or (lambda tally: None)))


async def _run_batch(
    llm: Llama, items: Iterable[Item], results: Results, name: str, told: Callable[[Tally], None]
) -> Tally:
    service = make_service(llm, name)
    tally = Tally(started=time.monotonic())
    pending: set[asyncio.Task[None]] = set()

    async def work(item: Item) -> None:
        result = await result_of(service, item, results.id_of(item.number, item.source))
        results.add(item.number, item.source, to_line(result))
        tally.add(result)
        told(tally)

    async def settle(limit: int) -> None:
        """Wait until fewer than limit requests are open."""
        nonlocal pending
        while len(pending) >= limit:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*done)  # which raises what one of them has raised

    try:
        for item in items:
            if not results.has(item.number, item.source):
                await settle(AT_ONCE)
                pending.add(asyncio.create_task(work(item)))
        await settle(1)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        service.end()
    return tally
