"""What a text must be, as a user says it, and the checks that need no model and no llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arguments import refuse, string
from ..bounded_json import parse_json
from ..errors import ConstraintError
from ..shown import shown

Kind = Literal["json_schema", "regex", "grammar"]

# Far more than the schemas of most interfaces have.
_MAX_BYTES = 1 << 18
_MAX_DEPTH = 64


@dataclass(frozen=True)
class Constraint:
    """What a text must be.

    Attributes:
        kind: the name of the parameter: json_schema, regex or grammar.
        text: JSON of the schema, the regular expression, or the grammar.
    """

    kind: Kind
    text: str


class TokenMask(Protocol):
    """What says which tokens may come next."""

    def mask(self) -> NDArray[np.uint32]:
        """Return a bit for each token, 1 if it may come next: bit i % 32 of number i // 32 for token i."""
        ...


def checked_schema(value: Any) -> str:
    """Return a JSON schema as JSON, with the order of its properties.

    Args:
        value: a mapping, a boolean, or JSON of one.

    Raises:
        TypeError: value is something else, or has values that JSON has not.
        ConstraintError: the text is not JSON, or it is too long or too deep.
    """
    if isinstance(value, str):
        value = _parsed(checked_text("json_schema", value))
        if not isinstance(value, (dict, bool)):
            raise ConstraintError("json_schema must be JSON of an object, or true or false")
    if not isinstance(value, (Mapping, bool)):
        refuse("json_schema", "a mapping or JSON of one", value)
    try:
        text = json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False, ensure_ascii=False)
    except RecursionError:
        raise ConstraintError("json_schema is too deeply nested") from None
    except TypeError as error:
        raise TypeError(f"json_schema has values that JSON cannot express: {shown(error)}") from None
    except ValueError as error:  # NaN, or a circle
        raise ConstraintError(f"json_schema is not JSON: {shown(error)}") from None
    _check_depth(checked_text("json_schema", text))
    return text


def checked_text(kind: Kind, value: Any) -> str:
    """Return a regular expression or a grammar.

    Args:
        kind: the name of the parameter.
        value: a string.

    Raises:
        TypeError: value is not a string.
        ConstraintError: it is too long, or has a lone surrogate.
    """
    text = string(kind, value)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ConstraintError(f"{kind} has a lone surrogate, which is not a character") from None
    if size > _MAX_BYTES:
        raise ConstraintError(f"{kind} has {size} bytes, more than {_MAX_BYTES}")
    return text


def _parsed(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except ValueError as error:
        raise ConstraintError(f"json_schema {error}") from None


def _check_depth(text: str) -> None:
    """Raise ConstraintError if JSON text has too many brackets inside each other."""
    depth = 0
    inside_string = escaped = False
    for char in text:
        if inside_string:
            inside_string = escaped or char != '"'
            escaped = not escaped and char == "\\"
        elif char == '"':
            inside_string = True
        elif char in "{[":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ConstraintError(f"json_schema is nested more than {_MAX_DEPTH} deep")
        elif char in "}]":
            depth -= 1
