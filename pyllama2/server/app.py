"""The ASGI app: routes, and errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from .. import __version__
from ..llama import Llama
from ..shown import shown_value
from .description import description_page, style_sheet
from .errors import ApiError, internal_error, refused_by_fields
from .guard import PROTECTION, Guard
from .http import Answer
from .metrics import CONTENT_TYPE, Metrics
from .observe import Observe
from .page_files import PageFiles
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .schemas import ChatAnswer, CompletionAnswer, Health, ModelCard, ModelList, Text, Tokens, answers
from .service import Service
from .settings import Settings

_USUAL = (400, 401, 404, 413, 415, 429, 500, 503, 504)
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


class App:
    """The app with what it serves, for programs that run it.

    Args:
        llm: the model. It is not closed with the app.
        settings: names, keys and limits.

    Attributes:
        service: answers requests.
    """

    def __init__(self, llm: Llama, settings: Settings) -> None:
        self.service = Service(llm, settings)
        metrics = Metrics(self.service)
        api = make_api(self.service, metrics)
        paths = frozenset(path for route in api.routes if (path := getattr(route, "path", None)) and "{" not in path)
        self._asgi: ASGIApp = Observe(Guard(api, settings), metrics, paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        await self._asgi(scope, receive, send)


def make_api(service: Service, metrics: Metrics) -> FastAPI:
    """The routes, without what guards and observes them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.end()

    api = FastAPI(
        title="pyllama2",
        version=__version__,
        summary="OpenAI's interface to one model.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_error_handlers(api)
    files = PageFiles()

    @api.get("/v1/models", responses=answers(ModelList, 401), tags=["OpenAI"])
    async def list_models() -> dict[str, Any]:
        """The names of the model."""
        return {"object": "list", "data": [_card(service, name) for name in service.settings.names]}

    @api.get("/v1/models/{model:path}", responses=answers(ModelCard, 401, 404), tags=["OpenAI"])
    async def get_model(model: str) -> dict[str, Any]:
        """One name of the model."""
        return _card(service, service.check_model(model))

    @api.post("/v1/completions", response_class=Response, responses=answers(CompletionAnswer, *_USUAL), tags=["OpenAI"])
    async def complete(body: CompletionRequest) -> Response:
        """Continue one or several prompts."""
        return Answer(service, body)

    @api.post("/v1/chat/completions", response_class=Response, responses=answers(ChatAnswer, *_USUAL), tags=["OpenAI"])
    async def chat(body: ChatRequest) -> Response:
        """Answer the messages of a chat."""
        return Answer(service, body)

    @api.post("/tokenize", responses=answers(Tokens, *_USUAL), tags=["Tokens"])
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text, or of a chat as the model reads it."""
        return await service.tokenize(body)

    @api.post("/detokenize", responses=answers(Text, *_USUAL), tags=["Tokens"])
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of tokens."""
        return await service.detokenize(body)

    @api.get("/health/live", responses=answers(Health), tags=["Operation"])
    async def live() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @api.get("/health", responses=answers(Health, 503), tags=["Operation"])
    @api.get("/health/ready", responses=answers(Health, 503), tags=["Operation"])
    async def ready() -> Response:
        """Whether requests are taken: 503 while the server ends."""
        if service.closing:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ok"})

    @api.get("/metrics", response_class=Response, tags=["Operation"])
    async def show_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    @api.get("/docs", include_in_schema=False)
    async def show_description() -> Response:
        return HTMLResponse(description_page(api.openapi()), headers=PROTECTION)

    @api.get("/docs.css", include_in_schema=False)
    async def show_style() -> Response:
        return Response(style_sheet(), media_type="text/css", headers=PROTECTION)

    @api.get("/", include_in_schema=False)
    async def show_page(request: Request) -> Response:
        return files.answer("index.html", request)

    @api.get("/static/{name:path}", include_in_schema=False)
    async def show_file(name: str, request: Request) -> Response:
        return files.answer(name, request)

    return api


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "pyllama2",
        "max_model_len": service.llm.n_ctx,
    }


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @api.exception_handler(Exception)  # Observe logs it
    async def of_bug(request: Request, error: Exception) -> Response:
        return await of_api(request, internal_error())

    @api.exception_handler(RequestValidationError)
    async def of_fields(request: Request, error: RequestValidationError) -> Response:
        return await of_api(request, refused_by_fields(error.errors(), _fields_of(request)))

    @api.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # raised while FastAPI read the body
            return await of_api(request, error.__cause__)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {shown_value(request.url.path)}"
        elif error.status_code == 405:
            message = f"{shown_value(request.url.path)} does not take {shown_value(request.method)}"
        code = _STATUS_CODES.get(error.status_code)
        return await of_api(request, ApiError(error.status_code, message, code=code, headers=error.headers))


def _fields_of(request: Request) -> Sequence[str]:
    """The fields that the body of a request may have."""
    body = getattr(request.scope.get("route"), "body_field", None)
    annotation = getattr(getattr(body, "field_info", None), "annotation", None)
    return list(getattr(annotation, "model_fields", ()))
