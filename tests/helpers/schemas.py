"""JSON schemas of the kinds that people give to language models. Small models end texts of each within some hundred
tokens."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

_WORD = {"type": "string", "maxLength": 12}
_POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": -99, "maximum": 99},
        "y": {"type": "number", "multipleOf": 0.25},
    },
    "required": ["x", "y"],
    "additionalProperties": False,
}


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "person": _object(name=_WORD, age={"type": "integer", "minimum": 0, "maximum": 120}, happy={"type": "boolean"}),
    "optional": _object(["b"], a=_WORD, b={"type": "boolean"}, c={"type": "null"}),
    "enum": {"enum": ["red", "green", 7, None, {"a": [1, 2]}, "rot \"und\" gr\u00fcn"]},
    "const": _object(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0, "maximum": 10}),
    "array": {"type": "array", "items": _WORD, "minItems": 1, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [_WORD, {"type": "boolean"}], "items": False, "minItems": 2},
    "nested": _object(from_=_POINT, to=_POINT, via={"type": "array", "items": _POINT, "maxItems": 2}),
    "anyOf": {"anyOf": [_object(text=_WORD), _object(number={"type": "integer"}), {"type": "null"}]},
    "oneOf": {"oneOf": [_object(kind={"const": "a"}, a=_WORD), _object(kind={"const": "b"}, b={"type": "boolean"})]},
    "allOf": {"allOf": [{"type": "object", "properties": {"a": _WORD}, "required": ["a"]}, _object(a=_WORD, b=_WORD)]},
    "pattern": _object(plate={"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{1,4}$"}),
    "formats": _object(
        day={"type": "string", "format": "date"}, at={"type": "string", "format": "time"},
        id={"type": "string", "format": "uuid"}, ip={"type": "string", "format": "ipv4"},
    ),
    "map": {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0},
            "maxProperties": 3, "minProperties": 1},
    "patternProperties": {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
                          "additionalProperties": False, "maxProperties": 3},
    "tree": {
        "$defs": {"node": _object(value={"type": "integer", "minimum": 0, "maximum": 9},
                                  left={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
        "$ref": "#/$defs/node",
    },
    "numbers": {"type": "array", "maxItems": 3, "minItems": 3,
                "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}},
    "multiples": _object(a={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700}),
    "types": {"type": ["integer", "null", "boolean"]},
    "lengths": _object(code={"type": "string", "minLength": 3, "maxLength": 6}),
    "ref": {"$defs": {"word": _WORD}, "type": "array", "items": {"$ref": "#/$defs/word"}, "maxItems": 3},
}  # fmt: skip


def check(text: str, schema: Any) -> None:
    """Assert that a text is JSON that is valid by a schema, formats included."""
    value = json.loads(text)
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator.check_schema(schema)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
