"""The fields of a request that say what the text must be: OpenAI's response_format, and those of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from .fields import Fields, Ignored, refuse

_MAX_CHOICES = 1024
_MAX_CHOICE_CHARS = 1000


def _choices(value: list[str]) -> list[str]:
    if not all(1 <= len(choice) <= _MAX_CHOICE_CHARS for choice in value):
        raise refuse(f"each must have 1 to {_MAX_CHOICE_CHARS} characters")
    return value


Schema = dict[str, Any] | bool
Choices = Annotated[list[str], Field(min_length=1, max_length=_MAX_CHOICES), AfterValidator(_choices)]


class JsonSchema(Fields):
    """A JSON schema with a name."""

    name: str | None = Field(None, max_length=64)
    description: Ignored
    json_schema: Schema = Field(alias="schema")
    strict: bool | None = Field(None, description="Taken and ignored: every answer keeps to its schema.")


class ResponseFormat(Fields):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise refuse("json_schema goes with the type json_schema")
        return self

    def parameters(self) -> dict[str, Any]:
        """What SamplingParams gets."""
        if self.type == "text":
            return {}
        return {"json_schema": {"type": "object"} if self.json_schema is None else self.json_schema.json_schema}


class StructuredOutputs(Fields):
    """What the text must be, one of these."""

    json_schema: Schema | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = (self.json_schema, self.json_object or None, self.regex, self.choice, self.grammar)
        if sum(value is not None for value in given) > 1:
            raise refuse("at most one of json, json_object, regex, choice and grammar is allowed")
        return self

    def parameters(self) -> dict[str, Any]:
        """What SamplingParams gets."""
        schema = {"type": "object"} if self.json_object else self.json_schema
        return parameters_of(json=schema, regex=self.regex, choice=self.choice, grammar=self.grammar)


def parameters_of(
    *, json: Schema | str | None, regex: str | None, choice: Sequence[str] | None, grammar: str | None
) -> dict[str, Any]:
    """What SamplingParams gets for vLLM's ways to say what the text must be, of which at most one is given."""
    if choice is not None:
        grammar = "start: " + " | ".join(dumps(text, ensure_ascii=False) for text in choice)
    found = {"json_schema": json, "regex": regex, "grammar": grammar}
    return {name: value for name, value in found.items() if value is not None}
