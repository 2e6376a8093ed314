"""Types of the fields of requests: strict, with limits, and with one sentence for what does not fit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024


class Fields(BaseModel):
    """A JSON object whose fields are known. null is the same as an absent field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def refuse(message: str) -> PydanticCustomError:
    """The error of a value that is wrong. message is a template without { and }."""
    return PydanticCustomError("wrong", message)


def unsupported(*harmless: Any, empty: bool = True) -> Any:
    """The type of a field of OpenAI's that would change the answer, and that this server does not have.

    Args:
        harmless: values that ask for nothing, besides null.
        empty: whether false and empty values ask for nothing, either.
    """

    def check(value: Any) -> Any:
        if value is None or value in harmless or (empty and value in ("", [], {}, False)):
            return None
        raise PydanticCustomError("unsupported", "this server does not support it")

    return Annotated[Any, AfterValidator(check), Field(default=None, description="Not supported.")]


# A field of OpenAI's that changes nothing here.
Ignored = Annotated[Any, Field(default=None, description="Taken and ignored.")]


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise refuse("it must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise refuse(f"at most {MAX_STOPS} strings are allowed")
    if not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise refuse(f"each string must have 1 to {MAX_STOP_CHARS} characters")
    return stops


_STRINGS = {"type": "array", "items": {"type": "string"}}
Stop = Annotated[
    list[str],
    BeforeValidator(_stops),
    WithJsonSchema({"anyOf": [{"type": "string"}, {**_STRINGS, "maxItems": MAX_STOPS}]}),
]


def _biases(value: Any) -> Any:
    if not isinstance(value, dict):
        raise refuse("it must be an object of token ids and numbers")
    if len(value) > MAX_BIASES:
        raise refuse(f"at most {MAX_BIASES} tokens are allowed")
    biases = {}
    for name, bias in value.items():
        if not (isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10):
            raise refuse("its names must be token ids")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise refuse("its values must be numbers from -100 to 100")
        biases[int(name)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_biases),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]


def _prompt(value: Any) -> Any:
    if isinstance(value, str) or _is_list_of(str, value) or _is_list_of(int, value):
        return value
    if isinstance(value, list) and value and all(_is_list_of(int, item) for item in value):
        return value
    raise refuse("it must be a string, a list of strings, a list of token ids, or a list of such lists, none empty")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


_IDS = {"type": "array", "items": {"type": "integer"}}
Prompts = Annotated[
    Any,
    BeforeValidator(_prompt),
    WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS}]}),
]


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise refuse("it must be a string or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" and isinstance(kind, str) and kind in ("image_url", "input_audio", "file", "refusal"):
            raise PydanticCustomError("unsupported", f"{kind} parts are not supported")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise refuse("each part must have the type text, and a text")
        texts.append(part["text"])
    return "\n".join(texts)


_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}),
]
