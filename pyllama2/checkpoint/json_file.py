"""Reads the small JSON files of a checkpoint (params.json, config.json, ...), with limits on their size."""

from __future__ import annotations

import os
from typing import Any

from ..bounded_json import MAX_VALUES, parse_json
from ..errors import CheckpointError
from ..storage.mapped import MappedFile

_MAX_BYTES = 16 << 20  # the index of a 70B checkpoint has 60 KB


class JsonObject:
    """Typed access to a JSON object.

    Attributes:
        path: the file's path, and for a child also its place in the file; for error messages.
        values: the fields.
    """

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], max_bytes: int = _MAX_BYTES, max_values: int = MAX_VALUES
    ) -> JsonObject:
        """Parse a file.

        Args:
            path: the file.
            max_bytes: the largest size of the file.
            max_values: the most values in it.

        Raises:
            CheckpointError: the file cannot be read, is no JSON object, exceeds a limit, or has a key twice.
        """
        with MappedFile(path) as file:
            if file.size > max_bytes:
                raise CheckpointError(f"{file.path}: {file.size} bytes exceed the limit of {max_bytes}")
            text = file.bytes(0, file.size)
        try:
            values = parse_json(text, max_values)
        except ValueError as error:
            raise CheckpointError(f"{file.path} {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file.path} is not a JSON object")
        return cls(file.path, values)

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return a field.

        Args:
            name: the field.
            kind: the type expected, or several.
            default: the result when the field is absent or null.

        Raises:
            CheckpointError: the field is of another type.
        """
        value = self.values.get(name)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise CheckpointError(f"{self.path}: {name} should be of type {names}, not {type(value).__name__}")
        return value

    def child(self, name: str) -> JsonObject:
        """Return the object in a field.

        Args:
            name: the field; an absent or null one gives an object without fields.

        Raises:
            CheckpointError: the field is not an object.
        """
        return JsonObject(f"{self.path}: {name}", self.get(name, dict, {}))

    def positive(self, name: str, default: int | None = None) -> int:
        """Return an integer from 1 to 2**31 - 1.

        Args:
            name: the field.
            default: the result when the field is absent or null; None: it must exist.

        Raises:
            CheckpointError: the field is absent without a default, not an integer, or out of range.
        """
        value = self.get(name, int, default)
        if value is None:
            raise CheckpointError(f"{self.path} lacks {name}")
        if not 1 <= value < 1 << 31:
            raise CheckpointError(f"{self.path}: {name} is {str(value)[:40]}, which is out of range")
        assert isinstance(value, int)
        return value
