"""The bodies of requests: OpenAI's fields, and those that vLLM has beside them.

A field that would change the answer and is not supported is refused by its name. One that would not is ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..sampling.params import SEED_LIMIT, SamplingParams
from .errors import ApiError
from .fields import MAX_TOP_LOGPROBS, Content, Fields, Ignored, LogitBias, Prompts, Stop, refuse, unsupported
from .formats import Choices, ResponseFormat, Schema, StructuredOutputs, parameters_of
from .settings import Settings

_INT64 = 1 << 63


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="End with an event that has the usage.")
    include_obfuscation: Ignored


class Sampling(Fields):
    """What completions and chats have in common."""

    model: str | None = Field(
        None, max_length=256, description="The model's name. Without one, the model that is there."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="1 is off.")
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Choices for each prompt. Choice i has seed + i.")
    stop: Stop | None = Field(None, description="Strings that end the text before them.")
    seed: Annotated[int, Field(ge=-_INT64, lt=SEED_LIMIT)] | None = Field(None, description="Repeats a text.")
    stream: bool | None = Field(None, description="Send the text as it comes, as server-sent events.")
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = Field(None, description="Added to the logits of tokens, by their ids.")
    response_format: ResponseFormat | None = Field(None, description="text, json_object, or json_schema.")
    structured_outputs: StructuredOutputs | None = Field(None, description="What the text must be.")
    guided_json: Schema | str | None = Field(None, description="The text is JSON by this schema.")
    guided_regex: str | None = Field(None, description="The text matches this regular expression.")
    guided_choice: Choices | None = Field(None, description="The text is one of these.")
    guided_grammar: str | None = Field(None, description="The text is one of this grammar.")
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="Keep so many tokens; 0 or -1 is off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Drop tokens with less than this share of the largest probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool | None = Field(None, description="Go on after the model's own end of the text.")
    user: Ignored
    metadata: Ignored
    store: Ignored
    service_tier: Ignored
    safety_identifier: Ignored
    prompt_cache_key: Ignored
    prompt_cache_options: Ignored
    prompt_cache_retention: Ignored

    @model_validator(mode="after")
    def _check_format(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is for streams only", code="invalid_value", param="stream_options")
        if len(self._constraints()) > 1:
            raise refuse(f"{' and '.join(self._constraints())} cannot be combined")
        return self

    def _constraints(self) -> dict[str, dict[str, Any]]:
        """What SamplingParams gets of each field that says what the text must be."""
        found = {
            "response_format": self.response_format and self.response_format.parameters(),
            "structured_outputs": self.structured_outputs and self.structured_outputs.parameters(),
        }
        none: dict[str, Any] = dict.fromkeys(("json", "regex", "choice", "grammar"))
        for name in none:
            found[f"guided_{name}"] = parameters_of(**{**none, name: getattr(self, f"guided_{name}")})
        return {name: parameters for name, parameters in found.items() if parameters}

    @property
    def constraint_field(self) -> str | None:
        """The name of the field that says what the text must be. None: there is none."""
        return next(iter(self._constraints()), None)

    @property
    def n_choices(self) -> int:
        """Choices for each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, settings: Settings, **own: Any) -> SamplingParams:
        """The parameters for Llama.

        Args:
            settings: has what holds without a field.
            own: parameters whose fields differ between completions and chats.
        """
        top_p = settings.top_p if self.top_p is None else self.top_p
        top_k = max(0, self.top_k or 0)
        if top_p == 0:  # nothing but the most likely token
            top_p, top_k = 1.0, 1
        return SamplingParams(
            temperature=settings.temperature if self.temperature is None else self.temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            stop=self.stop or (),
            ignore_eos=bool(self.ignore_eos),
            seed=None if self.seed is None else self.seed % SEED_LIMIT,
            logit_bias=self.logit_bias,
            **next(iter(self._constraints().values()), {}),
            **own,
        )


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: Prompts = Field(description="One prompt or several.")
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="Most tokens to generate; 16 without it.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="How many of the most likely tokens to give with each."
    )
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    best_of: unsupported(1)  # type: ignore[valid-type]
    suffix: unsupported()  # type: ignore[valid-type]

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else list(self.prompt)

    def params(self, settings: Settings) -> SamplingParams:
        """The parameters for Llama."""
        limit = 16 if self.max_tokens is None else self.max_tokens
        return self.sampling(settings, max_tokens=limit, logprobs=self.logprobs, echo=bool(self.echo))


class ChatMessage(Fields):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[str, Field(max_length=64)] | None = None
    refusal: Ignored
    annotations: Ignored
    reasoning_content: Ignored
    audio: unsupported()  # type: ignore[valid-type]
    tool_calls: unsupported()  # type: ignore[valid-type]
    function_call: unsupported()  # type: ignore[valid-type]

    def for_template(self) -> dict[str, str]:
        """The message as Llama takes it. Templates know a developer as the system."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Most tokens to generate; without it, to the end of the context."
    )
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Give the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="With logprobs: how many of the most likely tokens to give with each."
    )
    parallel_tool_calls: Ignored
    prediction: Ignored
    tools: unsupported()  # type: ignore[valid-type]
    tool_choice: unsupported("none", "auto")  # type: ignore[valid-type]
    functions: unsupported()  # type: ignore[valid-type]
    function_call: unsupported("none", "auto")  # type: ignore[valid-type]
    audio: unsupported()  # type: ignore[valid-type]
    modalities: unsupported(["text"])  # type: ignore[valid-type]
    web_search_options: unsupported(empty=False)  # type: ignore[valid-type]
    moderation: unsupported(empty=False)  # type: ignore[valid-type]
    reasoning_effort: unsupported("none")  # type: ignore[valid-type]
    verbosity: unsupported()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_numbers(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs needs logprobs to be true"
            raise ApiError(400, message, code="invalid_value", param="top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_tokens and max_completion_tokens are two names of one number"
            raise ApiError(400, message, code="invalid_value", param="max_tokens")
        return self

    def params(self, settings: Settings) -> SamplingParams:
        """The parameters for Llama."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.sampling(settings, max_tokens=limit, logprobs=logprobs)


class TokenizeRequest(Fields):
    """The body of /tokenize: a text or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=4096)
    add_special_tokens: bool | None = Field(
        None, description="Begin a text with BOS, if the model's do; true without it."
    )
    return_token_strs: bool | None = Field(None, description="Give the tokens' texts, too.")

    @model_validator(mode="after")
    def _check_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("give either prompt or messages")
        return self


class DetokenizeRequest(Fields):
    """The body of /detokenize."""

    model: str | None = None
    tokens: list[int] = Field(max_length=1 << 20)
