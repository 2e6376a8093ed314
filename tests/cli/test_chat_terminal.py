"""The chat in a pseudo terminal, as a person sees it: keys, lines, history, Markdown, and what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest
from helpers.tiny_llama import CHATML, write_tiny
from helpers.tiny_tokenizers import sentencepiece_spec

from pyllama2.cli.saved_chats import SavedChat, newest_chat

ROOT = Path(__file__).parents[2]
READY = "\x1b\\[\\?2004h"  # prompt_toolkit asks for bracketed paste when it is ready to read
PASTE = "\x1b[200~{}\x1b[201~"
ALT_ENTER, UP, CTRL_C, CTRL_D, TAB = "\x1b\r", "\x1b[A", "\x03", "\x04", "\t"

# A terminal shows ^C at once, in the middle of a character of the answer, too.
TERMINAL: dict[str, Any] = {"encoding": "utf-8", "codec_errors": "replace"}

pytestmark = pytest.mark.subprocess
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML, max_seq_len=400)


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    """A function that starts the chat in a terminal of its own, with the state in tmp_path."""
    running: list[Any] = []

    def start_chat(*flags: str, ready: str = READY, **environment: str) -> Any:
        variables = {
            **os.environ, "PYTHONPATH": str(ROOT), "PYLLAMA2_NUM_THREADS": "1", "XDG_STATE_HOME": str(tmp_path),
            "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment,
        }  # fmt: skip
        command = ["-m", "pyllama2.chat", "-m", str(model), "-n", "5", "--seed", "2", *flags]
        child = pexpect.spawn(sys.executable, command, env=variables, timeout=60, **TERMINAL)
        child.setwinsize(24, 80)
        running.append(child)
        child.expect(ready)
        return child

    yield start_chat
    for child in running:
        child.close(force=True)


def say(child: Any, text: str, ready: str = READY) -> str:
    """Send text and wait for the next prompt. Returns what was shown before it."""
    child.send(text)
    child.expect(ready)
    return str(child.before)


def questions(path: Path) -> list[str]:
    return [message["content"] for message in json.loads(path.read_text()) if message["role"] == "user"]


def end(child: Any) -> int:
    child.send(CTRL_D)
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus)


def test_keys(start: Start, tmp_path: Path) -> None:
    child = start()
    child.send("forgotten")
    child.send(CTRL_C)
    assert "Ctrl-D ends the chat" in say(child, CTRL_C)
    say(child, PASTE.format("first\nsecond") + "\r")
    say(child, f"third{ALT_ENTER}fourth\r")
    say(child, '"""fifth\r/sixth"""\r')
    child.send("/hel" + TAB)
    child.expect("/help")
    assert "this list" in say(child, "\r")
    say(child, f"/save {tmp_path}/chat.json\r")
    assert questions(tmp_path / "chat.json") == ["first\nsecond", "third\nfourth", "fifth\n/sixth"]
    assert end(child) == 0


def test_a_bare_exit_asks(start: Start, tmp_path: Path) -> None:
    child = start()
    child.send("exit\r")
    child.expect("Leave the chat")
    say(child, "n\r")  # so it was a message
    say(child, f"/save {tmp_path}/chat.json\r")
    assert questions(tmp_path / "chat.json") == ["exit"]
    child.send("quit\r")
    child.expect("Leave the chat")
    child.send("y\r")
    child.expect(pexpect.EOF)


def test_the_next_session_goes_on(start: Start, tmp_path: Path) -> None:
    child = start()
    say(child, "What is it?\r")
    assert end(child) == 0
    saved = newest_in(tmp_path)
    assert questions(saved) == ["What is it?"]
    assert stat.S_IMODE((tmp_path / "pyllama2").stat().st_mode) == 0o700
    child = start("--continue", ready="going on after 2 messages")
    child.expect(READY)
    say(child, UP + UP + UP + "\r")  # the oldest line there is
    assert end(child) == 0
    assert questions(saved) == ["What is it?"] * 2 and newest_in(tmp_path) == saved


def test_nothing_is_kept_if_nothing_is_to_be(start: Start, tmp_path: Path) -> None:
    child = start("--no-save")
    say(child, "What?\r")
    assert end(child) == 0 and list(tmp_path.iterdir()) == []


def test_edit_begins_with_the_last_message(start: Start, tmp_path: Path) -> None:
    child = start()
    say(child, "What?\r")
    say(child, "/edit\r")
    say(child, " Who?\r")
    say(child, f"/save {tmp_path}/chat.json\r")
    assert questions(tmp_path / "chat.json") == ["What? Who?"]


def test_ctrl_c_ends_an_answer_and_not_the_chat(start: Start, tmp_path: Path) -> None:
    spec = replace(sentencepiece_spec(), eos_ids=())
    slow = write_tiny(tmp_path / "slow.bin", spec=spec, template=CHATML, max_seq_len=60_000, n_layers=4)
    child = start("-m", str(slow), "-n", "50000", "--temperature", "2")
    child.send("What?\r")
    child.expect("[A-Za-z]{3}.*[A-Za-z]{3}")  # its line is shown again, and then the answer comes
    time.sleep(1)
    child.send(CTRL_C)
    child.expect("\\(stopped\\)")
    child.expect(READY)
    say(child, f"/save {tmp_path}/chat.json\r")
    assert len(json.loads((tmp_path / "chat.json").read_text())) == 2
    assert end(child) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(start: Start, number: int) -> None:
    child = start()
    child.send("unfinished")
    child.expect("unfinished")
    child.kill(number)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 128 + number and "Traceback" not in child.before
    assert child.before.endswith("\x1b[?2004l")  # no bracketed paste any more


def test_plain(start: Start) -> None:
    """Without prompt_toolkit and rich, or without wanting them."""
    prompt = "(?:^|\n)(?:\x1b\\[[^a-zA-Z]*[a-zA-Z])*> $"
    child = start("--plain", ready=prompt)
    assert "Ctrl-D ends the chat" in say(child, CTRL_C, prompt)
    assert "\x1b[" not in re.sub("\x1b\\[\\?2004[hl]", "", say(child, "What?\r", prompt))
    assert end(child) == 0


def test_plain_edit(start: Start, tmp_path: Path) -> None:
    """The draft is there once: not again after Ctrl-C, nor in an answer to a question."""
    child = start("--plain", ready="> ")
    say(child, "What?\r", "\n.*> ")
    say(child, "/edit\r", "> .*What\\?")
    say(child, " Who?\r", "\n.*> ")
    assert questions(newest_in(tmp_path)) == ["What? Who?"]
    say(child, "/edit\r", "> .*What\\? Who\\?")
    say(child, CTRL_C, "Ctrl-D ends the chat.*> ")
    say(child, "exit\r", "y/N")
    child.send("y\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


MARKDOWN = "# Title\n\nSome **bold** words and `code`, all of which are more than a line can have, so they wrap.\n\n"
CODE = "```python\ndef f():\n    return 'x'  # \x1b]0;title\x07\n```\n" + "".join(f"- item {i}\n" for i in range(12))


@pytest.mark.parametrize("no_colour", [False, True])
def test_markdown(no_colour: bool) -> None:
    """Each line is there once in the end; words are whole; nothing of the model reaches the terminal as it is."""
    code = (
        "import sys, time\nfrom pyllama2.cli.chat_output import answer_maker, MarkdownAnswer\n"
        "answer = answer_maker()()\nassert isinstance(answer, MarkdownAnswer)\nanswer._INTERVAL_S = 0.0\n"
        "for i in range(0, len(sys.argv[1]), 7):\n    answer.write(sys.argv[1][i : i + 7])\n"
        "answer.close(None)\nprint('END')\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": ""}
    variables.pop("NO_COLOR", None)
    if no_colour:
        variables["NO_COLOR"] = "1"
    child = pexpect.spawn(sys.executable, ["-c", code, MARKDOWN + CODE], env=variables, timeout=60, **TERMINAL)
    child.setwinsize(24, 60)
    child.expect("END")
    shown = child.before
    child.close()
    colours = re.search("\x1b\\[(?:\\d+;)*(?:3[1-7]|9[0-7])m", shown)
    assert (colours is None) == no_colour and "\x1b[1m" in shown and "\x1b]0;" not in shown
    lines = screen(shown)
    assert [line.strip() for line in lines if "item" in line] == [f"• item {i}" for i in range(12)]
    assert sum("def f():" in line for line in lines) == 1 and "\\x1b]0;title\\x07" in "".join(lines)
    paragraph = " ".join(" ".join(line for line in lines if "bold" in line or "wrap" in line).split())
    assert paragraph == "Some bold words and code, all of which are more than a line can have, so they wrap."


def screen(shown: str) -> list[str]:
    """The lines on an endless screen, after the escape sequences that move the cursor up and clear lines."""
    lines, row = [""], 0
    for part in re.findall("\x1b\\[[?\\d;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match := re.fullmatch("\x1b\\[(\\d*)A", part):
            row -= int(match[1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return lines


def newest_in(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        newest = newest_chat()
    assert newest is not None
    return newest


def test_only_the_newest_conversations_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert newest_chat() is None
    folder = tmp_path / "pyllama2" / "chats"
    folder.mkdir(parents=True)
    for i in range(60):
        (folder / f"20200101-0000{i:02}-1.json").write_text("[]")
    saved = SavedChat()
    for _ in range(2):
        saved.save([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 50 and names[0] == "20200101-000011-1.json" and newest_chat() == folder / names[-1]
