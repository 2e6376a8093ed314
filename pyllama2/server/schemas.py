"""What answers look like, for the description of the interface. answers.py makes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    """Parts of the prompt's tokens."""

    cached_tokens: int


class UsageFields(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """Log-probabilities of the tokens of a completion. null stands for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(BaseModel):
    """The answer of /v1/completions. A stream's events are of the same kind."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageFields


class TopLogprob(BaseModel):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A token of the answer. Its bytes may be a part of a character."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer."""

    content: list[ChatTokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """The answer of /v1/chat/completions. A stream's events have the object chat.completion.chunk, and deltas."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageFields


class ModelCard(BaseModel):
    """A name of the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """All names of the model."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(BaseModel):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(BaseModel):
    """The answer of /detokenize."""

    prompt: str


class Health(BaseModel):
    """Whether the server lives, and takes requests."""

    status: Literal["ok", "ending"]


class ErrorFields(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer to a request that is refused or has failed."""

    error: ErrorFields


def answers(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route for FastAPI: model, and errors with statuses."""
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in statuses}
    return {200: {"model": model}, **errors, "default": {"model": ErrorAnswer, "description": "An error."}}
