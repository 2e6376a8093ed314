"""Messages of a chat in files, and what is forgotten when they are too many."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama2.cli import conversation
from pyllama2.cli.conversation import Messages, read_messages, without_oldest_turns, write_messages
from pyllama2.errors import CheckpointError


def turns(*texts: str, system: str | None = None) -> Messages:
    """Messages of the user and the assistant in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


class TestFiles:
    @pytest.mark.parametrize(
        "messages",
        [[], turns("a\n", "\u72d0 \U0001f98a"), turns("a", "b", "", "d", system="Be nice."), turns(system="s")],
    )
    def test_are_read_as_they_were_written(self, tmp_path: Path, messages: Messages) -> None:
        path = tmp_path / "chat.json"
        write_messages(str(path), messages)
        assert read_messages(str(path)) == messages == json.loads(path.read_text())
        assert list(tmp_path.iterdir()) == [path]

    def test_replace_others_and_follow_links(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        write_messages(str(tmp_path / "link"), turns("a", "b"))
        assert read_messages(str(tmp_path / "file")) == turns("a", "b") and (tmp_path / "link").is_symlink()

    def test_have_the_permissions_of_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        write_messages(str(tmp_path / "chat.json"), [])
        assert (tmp_path / "chat.json").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "chat.json"
        write_messages(str(path), turns("a", "b"))

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="No space"):
            write_messages(str(path), turns("c", "d"))
        assert read_messages(str(path)) == turns("a", "b") and list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "not valid JSON"), ("[", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("{}", "not dict"),
            ("3", "not int"), ("[3]", "message 0 must be a mapping"),
            ('[{"role": "user"}]', "message 0 has no content"),
            ('[{"role": "user", "content": 3}]', "content of message 0"),
            ('[{"role": "user", "content": "a", "content": "b"}]', "twice"),
            ('[{"role": "user", "content": "a", "name": "b"}]', "message 0 has fields other than"),
            (json.dumps(turns("a")), "the last question has no answer"),
            (json.dumps(turns("a", "b", "c")), "the last question has no answer"),
            (json.dumps(turns("a", "b")[::-1]), "message 0 should be the user's"),
            (json.dumps(turns("a", "b", system="s")[1:] + turns(system="s")), "message 2 should be the user's"),
            (json.dumps(turns(system="s") * 2), "message 1 should be the user's, not the system's"),
            ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
        ],
    )  # fmt: skip
    def test_of_other_kinds_are_one_sentence(self, tmp_path: Path, text: str, match: str) -> None:
        (tmp_path / "f").write_text(text)
        with pytest.raises(ValueError, match=match) as caught:
            read_messages(str(tmp_path / "f"))
        assert str(tmp_path / "f") in str(caught.value) and "\n" not in str(caught.value)

    def test_that_are_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "f"
        write_messages(str(path), turns("a", "b" * 1000))
        monkeypatch.setattr(conversation, "_MAX_BYTES", 1000)
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            read_messages(str(path))
        monkeypatch.undo()
        path.write_text("[" + "0," * 600_000 + "0]")
        with pytest.raises(ValueError, match="more than 500000 values"):
            read_messages(str(path))

    def test_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b'["\xff"]')
        with pytest.raises(ValueError, match="not valid JSON"):
            read_messages(str(tmp_path / "f"))
        with pytest.raises(OSError):
            read_messages(str(tmp_path / "missing"))


def size(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages)


class TestForgetting:
    def test_whole_turns_go_oldest_first(self) -> None:
        messages = turns("aaaa", "bbbb", "cc", "dd", "e", system="s")
        assert without_oldest_turns(messages, size, 14) is messages
        assert without_oldest_turns(messages, size, 13) == turns("cc", "dd", "e", system="s")
        assert without_oldest_turns(messages, size, 6) == turns("cc", "dd", "e", system="s")
        assert without_oldest_turns(messages, size, 5) == turns("e", system="s")

    def test_the_system_prompt_and_the_question_stay(self) -> None:
        assert without_oldest_turns(turns("a", "b", "ccc", system="s"), size, 1) == turns("ccc", system="s")
        assert without_oldest_turns(turns("ccc"), size, 1) == turns("ccc")

    @given(st.lists(st.integers(0, 9), min_size=1, max_size=15), st.booleans(), st.integers(0, 60))
    def test_as_few_as_possible(self, lengths: list[int], has_system: bool, n_most: int) -> None:
        if len(lengths) % 2 == 0:
            lengths.append(1)
        messages = turns(*("x" * n for n in lengths), system="sss" if has_system else None)
        system, rest = messages[: int(has_system)], messages[int(has_system) :]
        expected = next(
            (system + rest[i:] for i in range(0, len(rest), 2) if size(system + rest[i:]) <= n_most), system + rest[-1:]
        )
        assert without_oldest_turns(messages, size, n_most) == expected
