"""What the lines and rows of a batch ask for."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pyllama2.batches import inputs
from pyllama2.batches.inputs import CHATS, COMPLETIONS, MAX_TOKENS, Defaults, Input, Item
from pyllama2.errors import CheckpointError, Pyllama2Error


def items_of(tmp_path: Path, content: str | bytes, name: str = "requests.jsonl", **options: Any) -> list[Item]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    batch = Input(str(path), **options)
    items = list(batch)
    assert all(item.number <= batch.count() for item in items)
    return items


def one(tmp_path: Path, line: Any, **options: Any) -> Item:
    (item,) = items_of(tmp_path, json.dumps(line), **options)
    return item


def body_of(item: Item) -> Any:
    assert item.body is not None, item.message
    return json.loads(item.body)


def test_openais_format(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "gpt-4o-mini", "messages": messages, "top_p": None}
    item = one(tmp_path, {"custom_id": "a", "method": "POST", "url": CHATS, "body": body})
    assert (item.number, item.custom_id, item.path) == (1, "a", CHATS)
    assert body_of(item) == {"messages": messages}  # for the model at hand, with OpenAI's own defaults


def test_lines_with_prompts_and_messages(tmp_path: Path) -> None:
    item = one(tmp_path, {"prompt": [1, 2], "n": 2})
    assert (item.path, item.custom_id) == (COMPLETIONS, "line-1")
    assert body_of(item) == {"prompt": [1, 2], "n": 2, "max_tokens": MAX_TOKENS}
    item = one(tmp_path, {"custom_id": "x", "messages": [], "max_tokens": 3})
    assert (item.path, item.custom_id, body_of(item)) == (CHATS, "x", {"messages": [], "max_tokens": 3})


def test_defaults_are_for_lines_that_say_nothing(tmp_path: Path) -> None:
    defaults = Defaults({"max_tokens": 5, "temperature": 0.0})
    assert body_of(one(tmp_path, {"prompt": "x", "temperature": 1}, defaults=defaults)) == {
        "prompt": "x", "temperature": 1, "max_tokens": 5,
    }  # fmt: skip
    body = {"messages": [], "max_completion_tokens": 7}
    item = one(tmp_path, {"custom_id": "a", "method": "POST", "url": CHATS, "body": body}, defaults=defaults)
    assert body_of(item) == {"messages": [], "max_completion_tokens": 7, "temperature": 0.0}


def test_texts_become_chats(tmp_path: Path) -> None:
    item = one(tmp_path, {"prompt": "Why?"}, defaults=Defaults(chat=True, system="Be short."))
    assert item.path == CHATS
    assert body_of(item)["messages"] == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"oops", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "too deeply nested"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b"[1]", "no JSON object"),
        (b"{}", "neither"),
        (b'{"custom_id": 7, "prompt": "x"}', "custom_id must be"),
        (b'{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "method"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}', "url must be"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": 1}', "body must be"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"stream": true}}', "no streams"),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}, "urk": 1}', "unknown field"),
        (b'{"prompt": "' + b"x" * inputs.MAX_LINE + b'"}', "more than"),
    ],
)
def test_a_bad_line_is_an_error_and_the_rest_go_on(tmp_path: Path, line: bytes, message: str) -> None:
    good = b'{"prompt": "x"}\n'
    first, bad, last = items_of(tmp_path, good + line + b"\n" + good)
    assert first.body is not None and last.body is not None and last.number == 3
    assert bad.body is None and bad.code and message in (bad.message or "")


def test_blank_lines_marks_and_a_missing_end(tmp_path: Path) -> None:
    items = items_of(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\n  \n{"prompt": "b"}')
    assert [item.number for item in items] == [1, 4]
    assert [body_of(item)["prompt"] for item in items] == ["a", "b"]


def test_a_column_of_csv(tmp_path: Path) -> None:
    table = 'n,text,custom_id\n1,"one\nline, two",a\n2,,b\n3,three,c\n4\n'
    items = items_of(tmp_path, table, "table.CSV", defaults=Defaults({"seed": 1}))
    assert [item.custom_id for item in items] == ["a", "b", "c", "row-4"]
    assert body_of(items[0]) == {"prompt": "one\nline, two", "seed": 1, "max_tokens": MAX_TOKENS}
    assert items[1].message and items[3].message and body_of(items[2])["prompt"] == "three"
    assert body_of(items_of(tmp_path, table, "table.txt", kind="csv", column="n")[1])["prompt"] == "2"


@pytest.mark.parametrize(
    ("table", "column", "message"), [("a,b\n1,2\n", None, "--column"), ("a,b\n1,2\n", "c", "no column 'c'")]
)
def test_a_column_must_be_known(tmp_path: Path, table: str, column: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        items_of(tmp_path, table, "table.csv", column=column)


def test_a_column_of_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "requests"
    table = pyarrow.table({"prompt": ["a", None, "c"], "n": [1, 2, 3], "custom_id": ["x", "y", "z"]})
    pyarrow.parquet.write_table(table, path)
    batch = Input(str(path))
    assert batch.kind == "parquet" and batch.count() == 3
    items = list(batch)
    assert [item.custom_id for item in items] == ["x", "y", "z"]
    assert body_of(items[2])["prompt"] == "c" and items[1].body is None
    assert all(item.message for item in Input(str(path), column="n"))  # numbers are no texts
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="Parquet"):
        Input(str(path))


def test_damaged_parquet_is_one_sentence(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "requests"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a text", None, "c"], "n": [1, 2, 3]}), path)
    whole, n_damaged = path.read_bytes(), 0
    for position in [4, whole.index(b"a text"), *range(5, len(whole), 7)]:
        path.write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
        try:
            list(Input(str(path), column="prompt"))
        except CheckpointError as error:
            assert "cannot be read as Parquet: " in str(error)
            n_damaged += 1
        except ValueError as error:
            assert "no column 'prompt'" in str(error)
    assert n_damaged > 20


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(Pyllama2Error, match="pip install pyarrow"):
        Input(str(tmp_path / "x"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.jsonl", "long.csv"])
def test_a_long_file_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("w") as file:
        if name.endswith("csv"):
            file.write("text\n")
        for n in range(20_000):
            file.write(f"{n} {'x' * 500}\n" if name.endswith("csv") else f'{{"prompt": "{n} {"x" * 500}"}}\n')
    tracemalloc.start()
    try:
        batch = Input(str(path))
        assert batch.count() == 20_000 == sum(1 for _ in batch)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 < path.stat().st_size / 9
    finally:
        tracemalloc.stop()
