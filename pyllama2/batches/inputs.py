"""The requests of a batch, read one at a time from a file of any length.

jsonl     {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}     OpenAI's batch format
          {"prompt": ...} or {"messages": ...}, with sampling fields beside them
csv       a column of texts
parquet   a column of texts (needs pyarrow)

What is wrong with a line becomes the error of its item: the lines after it are read all the same.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from ..bounded_json import parse_json
from ..errors import CheckpointError, Pyllama2Error
from ..shown import shown, shown_value

FORMATS = ("jsonl", "csv", "parquet")
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
# Bytes of one line; the server takes as many for the body of a request.
MAX_LINE = 4 << 20
# Tokens of a text whose line says nothing about them. A request with a url has OpenAI's default.
MAX_TOKENS = 256
_ID_CHARS = 512
_COLUMNS = ("prompt", "text")  # that are taken without --column
_ROWS = 256  # of a Parquet file in memory at a time


@dataclass(frozen=True)
class Item:
    """One request.

    Attributes:
        number: of its line or row, from 1 on.
        source: what it says, as bytes.
        custom_id: what its result is called. None if the line does not say.
        path: of the endpoint that answers it.
        body: JSON for that endpoint. None if the line is wrong.
        code: of what is wrong with the line.
        message: a sentence on that.
    """

    number: int
    source: bytes
    custom_id: str | None
    path: str = ""
    body: bytes | None = None
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Defaults:
    """What holds for lines that do not say otherwise.

    Attributes:
        fields: sampling fields for the body of each request.
        chat: whether a text is the message of a user, rather than the beginning of a text.
        system: the system prompt of such chats. None: none.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    chat: bool = False
    system: str | None = None

    def body(self, own: Mapping[str, Any], **more: Any) -> bytes:
        """JSON of a body: own fields, else the defaults. null is the same as no field."""
        said = {name: value for name, value in own.items() if value is not None}
        fields = {**more, **self.fields, **said}
        if "max_completion_tokens" in said:
            fields = {name: value for name, value in fields.items() if name != "max_tokens" or name in said}
        return json.dumps(fields).encode()

    def of_text(self, text: Any, own: Mapping[str, Any]) -> tuple[str, bytes]:
        """Path and body for a text with fields of its own."""
        if not self.chat:
            return COMPLETIONS, self.body({**own, "prompt": text}, max_tokens=MAX_TOKENS)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*system, {"role": "user", "content": text}]
        return CHATS, self.body({**own, "messages": messages}, max_tokens=MAX_TOKENS)


class Input:
    """The file of a batch.

    Args:
        path: the file.
        kind: of FORMATS. None: Parquet is known by its first bytes, CSV by the ending of its name.
        column: of CSV and Parquet: the texts. None: prompt or text, or the only one.
        defaults: for lines that do not say otherwise.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such column.
        Pyllama2Error: pyarrow is missing, or the file is damaged.
    """

    def __init__(
        self, path: str, *, kind: str | None = None, column: str | None = None, defaults: Defaults | None = None
    ) -> None:
        self.path = path
        self.kind = kind or _kind_of(path)
        self._defaults = defaults or Defaults()
        self._column = column
        self._has_ids = False
        if self.kind != "jsonl":
            self._choose_column()

    def count(self) -> int:
        """Lines or rows: the number of the last item."""
        with self._errors_in_a_sentence():
            if self.kind == "parquet":
                return int(_parquet(self.path).metadata.num_rows)
            if self.kind == "csv":
                with self._open_text() as file:
                    return sum(1 for _ in csv.reader(file)) - 1
            with open(self.path, "rb") as file:
                return sum(1 for _ in _lines(file))

    def __iter__(self) -> Iterator[Item]:
        """Read the items. Blank lines are none."""
        with self._errors_in_a_sentence():
            if self.kind == "jsonl":
                with open(self.path, "rb") as file:
                    for number, line in enumerate(_lines(file), 1):
                        if line is None:
                            yield _wrong(number, b"", f"the line has more than {MAX_LINE} bytes")
                        elif line.strip():
                            yield item_of_line(number, line, self._defaults)
            else:
                rows = self._csv_rows() if self.kind == "csv" else self._parquet_rows()
                for number, (text, custom_id) in enumerate(rows, 1):
                    yield self._item_of_row(number, text, custom_id)

    def _item_of_row(self, number: int, text: Any, custom_id: Any) -> Item:
        source = json.dumps([text, custom_id], default=str).encode()
        name = f"row-{number}" if custom_id is None else str(custom_id)
        if len(name) > _ID_CHARS:
            return _wrong(number, source, f"custom_id has more than {_ID_CHARS} characters")
        if not isinstance(text, str) or not text:
            return _wrong(number, source, f"the column {shown(self._column or '', 80)} has no text here", name)
        if len(source) > MAX_LINE:
            return _wrong(number, source, f"the text has more than {MAX_LINE} bytes", name)
        return Item(number, source, name, *self._defaults.of_text(text, {}))

    def _csv_rows(self) -> Iterator[tuple[Any, Any]]:
        with self._open_text() as file:
            for row in csv.DictReader(file):
                yield row[self._column or ""], row["custom_id"] if self._has_ids else None

    def _parquet_rows(self) -> Iterator[tuple[Any, Any]]:
        columns = [self._column, *(["custom_id"] if self._has_ids else [])]
        for batch in _parquet(self.path).iter_batches(_ROWS, columns=columns):
            for row in batch.to_pylist():
                yield row[self._column], row.get("custom_id")

    def _choose_column(self) -> None:
        with self._errors_in_a_sentence():
            if self.kind == "parquet":
                columns = list(_parquet(self.path).schema_arrow.names)
            else:
                with self._open_text() as file:
                    columns = next(csv.reader(file), [])
        texts = [name for name in columns if name != "custom_id"]
        usual = [name for name in _COLUMNS if name in texts]
        chosen = self._column or (usual[0] if usual else texts[0] if len(texts) == 1 else None)
        if chosen is None or chosen not in columns:
            there = ", ".join(shown_value(name) for name in columns[:20])
            what = "say which column has the texts (--column)" if chosen is None else f"no column {shown_value(chosen)}"
            raise ValueError(f"{shown(self.path)}: {what}; there is {there or 'none'}")
        self._column, self._has_ids = chosen, "custom_id" in columns and chosen != "custom_id"

    def _open_text(self) -> IO[str]:
        csv.field_size_limit(sys.maxsize)
        return open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="")

    @contextmanager
    def _errors_in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            raise CheckpointError(f"{shown(self.path)} is not CSV: {error}") from None
        except Exception as error:
            bare = isinstance(error, OSError) and error.errno is None  # pyarrow's word for much that is damaged
            if bare or isinstance(error, UnicodeDecodeError) or type(error).__module__.startswith("pyarrow"):
                raise CheckpointError(f"{shown(self.path)} cannot be read as Parquet: {error}") from None
            raise


def item_of_line(number: int, line: bytes, defaults: Defaults) -> Item:
    """Read one line of JSON."""
    try:
        fields = parse_json(line)
    except ValueError as error:
        return _wrong(number, line, f"the line {error}", code="invalid_json")
    if not isinstance(fields, dict):
        return _wrong(number, line, "the line is no JSON object", code="invalid_json")
    custom_id = fields.pop("custom_id", None)
    if custom_id is not None and not (isinstance(custom_id, str) and 1 <= len(custom_id) <= _ID_CHARS):
        return _wrong(number, line, f"custom_id must be a string of 1 to {_ID_CHARS} characters")
    name = custom_id or f"line-{number}"
    if "url" in fields or "body" in fields or "method" in fields:
        return _of_openai(number, line, name, fields, defaults)
    if "messages" in fields:
        body = defaults.body(_without_model(fields), max_tokens=MAX_TOKENS)
        return Item(number, line, name, CHATS, body)
    if "prompt" in fields:
        prompt = fields.pop("prompt")
        return Item(number, line, name, *defaults.of_text(prompt, _without_model(fields)))
    return _wrong(number, line, "the line has neither a url and a body, nor a prompt, nor messages", name)


def _of_openai(number: int, line: bytes, custom_id: str, fields: dict[str, Any], defaults: Defaults) -> Item:
    method, url, body = (fields.pop(name, None) for name in ("method", "url", "body"))
    wrong = None
    if fields:
        wrong = f"unknown field {shown_value(next(iter(fields)))}"
    elif method not in (None, "POST"):
        wrong = "method must be POST"
    elif url not in (COMPLETIONS, CHATS):
        wrong = f"url must be {COMPLETIONS} or {CHATS}"
    elif not isinstance(body, dict):
        wrong = "body must be an object"
    elif body.get("stream"):
        wrong = "a batch has no streams"
    if wrong is not None:
        return _wrong(number, line, wrong, custom_id)
    return Item(number, line, custom_id, url, defaults.body(_without_model(body)))


def _without_model(body: dict[str, Any]) -> dict[str, Any]:
    """A body for the model that the command names, whatever model the line was written for."""
    return {name: value for name, value in body.items() if name != "model" or not isinstance(value, str)}


def _wrong(
    number: int, source: bytes, message: str, custom_id: str | None = None, *, code: str = "invalid_request"
) -> Item:
    return Item(number, source, custom_id, code=code, message=message)


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines of a file. None stands for one that is too long, which is not kept in memory."""
    first = True
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield None
        else:
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _kind_of(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    return "csv" if os.fspath(path).lower().endswith(".csv") else "jsonl"


def _parquet(path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise Pyllama2Error("Parquet files need pyarrow: pip install pyarrow") from None
    return ParquetFile(path)
