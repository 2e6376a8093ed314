"""From a request to its answer, whatever brings it: HTTP, a batch, or Ray.

    service = Service(llm, settings)
    await service.answer(service.parse("/v1/chat/completions", body))    # OpenAI's JSON as a dict; raises ApiError

open() makes the Work of a request; answer() waits for all of it, events() is its stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError

from .. import __version__
from ..errors import ConstraintError, ContextLengthError, Pyllama2Error
from ..generation.generation import Request
from ..generation.prompt import naming_prompt
from ..generation.stream import Stream
from ..llama import Llama
from ..sampling.params import SamplingParams
from ..shown import shown_value
from .answers import DONE, PING, ChatForm, CompletionForm, Form, Part, PromptStart, event, usage_of
from .desk import Desk
from .errors import (
    ApiError,
    ClientGoneError,
    closing_error,
    failed_in_model,
    refused_by_fields,
    refused_by_library,
    refused_constraint,
    timeout_error,
)
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .settings import Settings
from .work import Choice, Figures, Work

_BODIES: dict[str, type[CompletionRequest | ChatRequest]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}
_MORE_THREADS = 4  # besides those for requests that compute log-probabilities of prompts

T = TypeVar("T")


class Service:
    """Answers requests for one Llama. It is used in one event loop, which its first request chooses.

    Args:
        llm: the model.
        settings: limits.
    """

    def __init__(self, llm: Llama, settings: Settings) -> None:
        self.llm = llm
        self.settings = settings
        self.created = int(time.time())
        self.fingerprint = llm.fingerprint(__version__)
        self.closing = False
        self._desk: Desk | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def desk(self) -> Desk:
        """What runs the texts."""
        if self._desk is None:
            self._desk = Desk(self.llm, self.settings.max_concurrent, self.settings.max_queue)
            self._executor = ThreadPoolExecutor(self.settings.max_concurrent + _MORE_THREADS, "pyllama2-server")
        return self._desk

    @property
    def counts(self) -> tuple[int, int]:
        """Texts that are generated now, and requests that wait."""
        return (0, 0) if self._desk is None else (self._desk.n_running, self._desk.n_waiting)

    @property
    def idle(self) -> bool:
        """Whether there is no request."""
        return self._desk is None or self._desk.idle

    def close(self) -> None:
        """Take no more requests."""
        self.closing = True
        if self._desk is not None:
            self._desk.close()

    def end(self) -> None:
        """End the requests under way with an error, and give threads back."""
        self.close()
        if self._desk is not None:
            self._desk.end(closing_error())
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    @staticmethod
    def parse(path: str, body: Any) -> CompletionRequest | ChatRequest:
        """Check the body of a request.

        Args:
            path: /v1/completions or /v1/chat/completions.
            body: JSON as text or bytes, or what it stands for.

        Raises:
            ApiError: there is no such path, or the body does not fit.
        """
        kind = _BODIES.get(path)
        if kind is None:
            raise ApiError(404, f"there is no {shown_value(path)}", code="not_found")
        try:
            return kind.model_validate_json(body) if isinstance(body, (str, bytes)) else kind.model_validate(body)
        except ValidationError as error:
            raise refused_by_fields(error.errors(include_url=False), kind.model_fields) from None

    def check_model(self, name: str | None) -> str:
        """Return the name for the answer. Raises ApiError if the model has another name."""
        if name is not None and name not in self.settings.names:
            there = " and ".join(self.settings.names)
            message = f"there is no model {shown_value(name)}; there is {there}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return name or self.settings.names[0]

    async def open(
        self, request: CompletionRequest | ChatRequest, *, live: bool, figures: Figures | None = None
    ) -> tuple[Work, Form]:
        """Put a request into the queue. The caller must give its work to desk.leave() in the end.

        Args:
            request: what is asked for.
            live: whether its parts are wanted as they come.
            figures: what is counted of it.

        Raises:
            ApiError: it is refused.
        """
        model = self.check_model(request.model)
        self._check_limits(request)
        desk = self.desk
        desk.enter()
        figures = figures or Figures()
        try:
            streams, starts = await self.in_thread(self._prepare, request, figures)
            if figures.gone:
                raise ClientGoneError
        except BaseException:
            desk.leave_early()
            raise
        work = Work(streams, live=live, figures=figures, ping_s=self.settings.ping_s if live else None)
        for choice in work.choices:
            choice.prompt_logprobs = starts[choice.index // request.n_choices] if starts else []
        options: dict[str, Any] = {"shows_usage": request.wants_usage}
        if isinstance(request, CompletionRequest):
            form: Form = CompletionForm(model, self.fingerprint, self.llm.tokenizer, echo=bool(request.echo), **options)
        else:
            form = ChatForm(model, self.fingerprint, self.llm.tokenizer, **options)
        desk.start(work)
        left = self.settings.timeout_s - (time.monotonic() - figures.arrived)
        error = timeout_error(self.settings.timeout_s)
        work.timer = asyncio.get_running_loop().call_later(max(0.0, left), work.fail, error)
        return work, form

    def leave(self, work: Work, request: CompletionRequest | ChatRequest) -> None:
        """Let go of a request's work, whatever became of it."""
        if work.timer is not None:
            work.timer.cancel()
        self.desk.leave(work)
        work.figures.usage = self._usage(work, request)
        if work.error is not None:
            work.figures.error = work.error.code

    async def answer(self, request: CompletionRequest | ChatRequest, figures: Figures | None = None) -> dict[str, Any]:
        """Return the answer to a request as a whole. Raises ApiError. Cancellation ends its texts."""
        work, form = await self.open(request, live=False, figures=figures)
        try:
            return await self.whole(work, form, request)
        finally:
            self.leave(work, request)

    async def whole(self, work: Work, form: Form, request: CompletionRequest | ChatRequest) -> dict[str, Any]:
        """The answer of opened work. Raises ApiError."""
        collected: dict[int, Part] = {}
        async for parts in work.parts(self._taking_whole(work)):
            for part in parts:
                collected[part.index] = part
                work.figures.finish_reasons.append(part.finish_reason or "")
        ordered = [collected[i] for i in range(len(work.choices))]
        return form.whole(ordered, self._usage(work, request))

    async def events(
        self, work: Work, form: Form, request: CompletionRequest | ChatRequest
    ) -> AsyncGenerator[bytes, None]:
        """The stream of opened work. An error after the first event is the last event, without [DONE].

        Raises:
            ApiError: before the first event.
        """
        begun = False
        seen: set[int] = set()
        try:
            async for parts in work.parts(self.desk.take):
                data = b"" if parts else PING
                for part in parts:
                    if part.index not in seen:
                        seen.add(part.index)
                        data += form.first_event(part.index)
                    data += form.events(part)
                    if part.finish_reason is not None:
                        work.figures.finish_reasons.append(part.finish_reason)
                if data:
                    begun = True
                    yield data
            yield form.last_event(self._usage(work, request)) + DONE
        except ApiError as error:
            if not begun:
                raise
            work.fail(error)
            yield event(error.body())

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """The answer of /tokenize."""
        self.check_model(request.model)

        def work() -> list[int]:
            if request.messages is not None:
                return self.llm.chat_tokens([message.for_template() for message in request.messages])
            assert request.prompt is not None
            return self.llm.tokenize(request.prompt, bos=request.add_special_tokens is not False)

        ids = await self.in_thread(self._checking, request, work)
        pieces = [self.llm.tokenizer.piece(i) for i in ids] if request.return_token_strs else None
        return {"count": len(ids), "max_model_len": self.llm.n_ctx, "tokens": ids, "token_strs": pieces}

    async def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """The answer of /detokenize."""
        self.check_model(request.model)
        text = await self.in_thread(self._checking, request, lambda: self.llm.detokenize(request.tokens))
        return {"prompt": text}

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that takes a while, such as rendering a template, beside the event loop."""
        if self.closing:
            raise closing_error()
        self.desk  # noqa: B018 (makes the executor)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _check_limits(self, request: CompletionRequest | ChatRequest) -> None:
        settings, n = self.settings, request.n_choices
        n_prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
        for param, value, limit, what in (
            ("n", n, settings.max_choices, "n"),
            ("prompt", n_prompts, settings.max_prompts, "prompts"),
            ("n", n * n_prompts, settings.max_texts, "prompts times n"),
        ):
            if value > limit:
                raise ApiError(400, f"{what} may be at most {limit}, not {value}", code="invalid_value", param=param)

    def _prepare(
        self, request: CompletionRequest | ChatRequest, figures: Figures
    ) -> tuple[list[Stream], list[list[Any]]]:
        """The streams of a request, and the log-probabilities of each prompt if they are wanted. In a thread."""
        return self._checking(request, lambda: self._streams(request, request.params(self.settings), figures))

    def _streams(
        self, request: CompletionRequest | ChatRequest, params: SamplingParams, figures: Figures
    ) -> tuple[list[Stream], list[list[Any]]]:
        if isinstance(request, ChatRequest):
            messages = [message.for_template() for message in request.messages]
            return self.llm.streams(self.llm.chat_request(messages, params), request.n_choices), []
        made: list[Request] = []
        for i, prompt in enumerate(request.prompts):
            if len(request.prompts) == 1:
                made.append(self.llm.prompt_request(prompt, params))
            else:
                with naming_prompt(i):
                    made.append(self.llm.prompt_request(prompt, params))
        streams = [stream for one in made for stream in self.llm.streams(one, request.n_choices)]
        wanted = request.echo and request.logprobs is not None
        return streams, [self._prompt_logprobs(one, figures) for one in made] if wanted else []

    def _prompt_logprobs(self, request: Request, figures: Figures) -> list[Any]:
        ids, top = request.prompt_ids, request.params.logprobs or 0
        first = PromptStart(ids[0], self.llm.tokenizer.piece(ids[0]))
        entries: list[Any] = [first]
        for piece in self.llm.prompt_logprobs(ids, top):
            entries += piece
            if figures.gone:
                raise ClientGoneError
            if self.closing:
                raise closing_error()
        return entries

    def _checking(self, request: Any, work: Callable[[], T]) -> T:
        """work(), whose errors become ApiError."""
        try:
            return work()
        except ConstraintError as error:
            raise refused_constraint(error, request.constraint_field) from None
        except (ValueError, TypeError, ContextLengthError) as error:
            raise refused_by_library(error, request.model_fields_set) from None
        except (Pyllama2Error, MemoryError, OSError) as error:
            raise failed_in_model(error) from error

    def _taking_whole(self, work: Work) -> Callable[[Choice], list[Part]]:
        def take(choice: Choice) -> list[Part]:
            return self.desk.take(choice) if choice.stream.job.ended else []

        return take

    def _usage(self, work: Work, request: CompletionRequest | ChatRequest) -> dict[str, Any]:
        return usage_of([choice.completion().usage for choice in work.choices], request.n_choices)
