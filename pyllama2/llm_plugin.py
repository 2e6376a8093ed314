"""A plugin of the command llm (https://llm.datasette.io): its models pyllama2/NAME are those that are here.

    pip install llm pyllama2
    llm -m pyllama2/smollm2 "Why is the sky blue?"
    llm -m pyllama2 -o model llama-7b-q4.bin "Why is the sky blue?"

llm finds this file by the entry point in pyproject.toml. A model stays open until another one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from .model_names.known import known_places

if TYPE_CHECKING:
    from .llama import Llama

Messages = list[dict[str, str]]


class LlmModel(llm.Model):
    """A model of pyllama2 for llm.

    Args:
        model_id: its name for llm.
        name: what Llama() takes. None: the model that it takes by itself.
    """

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """What llm's -o sets."""

        model: str | None = Field(default=None, description="a file or a name, instead of that in the model's name")
        max_tokens: int | None = Field(default=None, description="most tokens to generate", ge=0)
        temperature: float | None = Field(default=None, description="0 is greedy", ge=0)
        top_p: float | None = Field(default=None, description="the likeliest tokens up to this mass", gt=0, le=1)
        top_k: int | None = Field(default=None, description="the likeliest so many tokens; 0 is off", ge=0)
        min_p: float | None = Field(default=None, description="no token below this share of the likeliest", ge=0, le=1)
        repetition_penalty: float | None = Field(default=None, description="1 is off", gt=0)
        seed: int | None = Field(default=None, description="the same seed gives the same text", ge=0)

    def __init__(self, model_id: str, name: str | None) -> None:
        self.model_id = model_id
        self._name = name

    def __str__(self) -> str:
        """The name that llm lists."""
        return f"pyllama2: {self.model_id}"

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Answer a prompt of llm, or go on with it as a text if the model cannot talk."""
        from .errors import Pyllama2Error

        options = prompt.options
        given = {name: value for name, value in options.model_dump().items() if value is not None and name != "model"}
        if prompt.schema:
            given["json_schema"] = prompt.schema
        try:
            model = _open(options.model or self._name)
            if model.has_chat_format:
                chunks = model.stream_chat(_messages(prompt, conversation), **given)
            elif prompt.system:
                raise ValueError("this model continues texts, and takes no system prompt")
            else:
                chunks = model.stream(prompt.prompt or "", **given)
            for chunk in chunks:
                yield chunk.text
        except (Pyllama2Error, ValueError) as error:
            raise llm.ModelError(str(error)) from error
        usage = chunks.completion.usage
        response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens)


def _messages(prompt: Any, conversation: Any) -> Messages:
    """The conversation so far, and the new question."""
    messages: Messages = []
    for earlier in [] if conversation is None else conversation.responses:
        messages += [
            {"role": "user", "content": earlier.prompt.prompt or ""},
            {"role": "assistant", "content": earlier.text_or_raise()},
        ]
    system = prompt.system or next((r.prompt.system for r in getattr(conversation, "responses", ())), None)
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return [*messages, {"role": "user", "content": prompt.prompt or ""}]


@lru_cache(maxsize=1)
def _open(name: str | None) -> Llama:
    from .llama import Llama

    return Llama(name)


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Tell llm of the models that are here."""
    register(LlmModel("pyllama2", None))
    for place in known_places():
        if place.kind != "here":  # what is in the current folder has no lasting name
            register(LlmModel(f"pyllama2/{place.name}", place.name))
