"""The chat loop's commands, driven through a pipe as a script or a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_llama import CHATML, write_tiny
from helpers.tiny_tokenizers import sentencepiece_spec

from pyllama2 import Llama, chat
from pyllama2.cli.chat_loop import COMMANDS

pytestmark = pytest.mark.subprocess

ROOT = Path(__file__).parents[2]
FLAGS = ["-n", "5", "--seed", "2"]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """One thread, and none of the variables that change what the command lines do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYLLAMA2_MODEL", "PYLLAMA2_DEVICE", "PYLLAMA2_LOG_LEVEL"):
            patch.delenv(name, raising=False)
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML, max_seq_len=200)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers are long enough to be interrupted: a large context and no end-of-text token."""
    spec = replace(sentencepiece_spec(), eos_ids=())
    path = tmp_path_factory.mktemp("models") / "slow.bin"
    return write_tiny(path, spec=spec, template=CHATML, max_seq_len=60_000, n_layers=4)


def answers(path: Path, *questions: str, system: str | None = None, history: list[dict[str, str]] | None = None) -> str:
    """What the loop prints when it is asked questions one after the other."""
    messages = list(history or [])
    messages = ([] if system is None else [{"role": "system", "content": system}]) + messages
    shown = ""
    with Llama(path) as llm:
        for question in questions:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": llm.chat(messages, seed=2, max_tokens=5).text})
            shown += messages[-1]["content"] + "\n"
    return shown


def talk(path: Path, *lines: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a chat whose input is lines; errors do not mention that answers were cut."""
    result = subprocess.run(
        [sys.executable, "-m", "pyllama2.chat", "-m", path, *FLAGS, *flags],
        input="".join(line + "\n" for line in lines).encode(), capture_output=True, timeout=60,
    )  # fmt: skip
    shown = result.stderr.decode().splitlines(keepends=True)
    return result.returncode, result.stdout.decode(), "".join(line for line in shown if "was cut after" not in line)


class TestCommands:
    def test_reset_keeps_the_system_prompt(self, chat_model: Path) -> None:
        for command in ("/reset", "/clear"):
            code, out, err = talk(chat_model, "What?", command, "Who?", flags=("-s", "Be nice."))
            expected = answers(chat_model, "What?", system="Be nice.") + answers(chat_model, "Who?", system="Be nice.")
            assert (code, out, err) == (0, expected, "")

    def test_system_replaces_the_prompt_and_keeps_the_conversation(self, chat_model: Path) -> None:
        first = answers(chat_model, "What?", system="Be nice.")
        history = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": first[:-1]}]
        for line, system in (("/system Be  brief.", "Be  brief."), ("/system", None)):
            _, out, _ = talk(chat_model, "What?", line, "Who?", "/reset", "Where?", flags=("-s", "Be nice."))
            second = answers(chat_model, "Who?", system=system, history=history)
            assert out == first + second + answers(chat_model, "Where?", system=system)
        _, out, _ = talk(chat_model, "/system Be nice.", "What?")
        assert out == first

    def test_save_and_load(self, chat_model: Path, tmp_path: Path) -> None:
        path = tmp_path / "my chat.json"
        _, out, err = talk(chat_model, "What?", f"/save {path}", "Who?", flags=("-s", "Be nice."))
        assert err == "" and out == answers(chat_model, "What?", "Who?", system="Be nice.")
        saved = json.loads(path.read_text())
        first = out[: len(answers(chat_model, "What?", system="Be nice."))]
        assert saved == [
            {"role": "system", "content": "Be nice."}, {"role": "user", "content": "What?"},
            {"role": "assistant", "content": first[:-1]},
        ]  # fmt: skip
        assert talk(chat_model, "forgotten", f"/load {path}", "Who?", "/reset", "What?")[1:] == (
            answers(chat_model, "forgotten") + out[len(first) :] + first, ""
        )  # fmt: skip

    def test_bytes_that_are_not_utf_8(self, chat_model: Path, tmp_path: Path) -> None:
        """They may name a file; a message of them is refused, and the chat goes on."""
        path = os.fsencode(tmp_path) + b"/chat\xff.json"
        lines = b"\n".join([b"Who?", b"/save " + path, b"a\xff", b"/system \xff", b"/load " + path, b"What?"])
        result = subprocess.run(
            [sys.executable, "-m", "pyllama2.chat", "-m", chat_model, *FLAGS],
            input=lines,
            capture_output=True,
            timeout=60,
        )
        assert result.returncode == 1 and result.stdout.decode() == answers(chat_model, "Who?", "What?")
        assert result.stderr.decode().count("has a lone surrogate U+DCFF") == 2 and os.path.exists(path)

    def test_a_path_may_begin_with_the_home_directory(
        self, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert talk(chat_model, "What?", "/save ~/chat.json", "/reset", "/load ~/chat.json")[::2] == (0, "")
        assert len(json.loads((tmp_path / "chat.json").read_text())) == 2

    def test_files_that_cannot_be_used_leave_the_conversation(self, chat_model: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.json").write_text("[3]")
        code, out, err = talk(
            chat_model, "What?", f"/load {tmp_path}/missing", f"/load {tmp_path}/bad.json", f"/load {tmp_path}",
            f"/save {tmp_path}/no/where", "/save", "/load  ", "Who?",
        )  # fmt: skip
        assert (code, out) == (1, answers(chat_model, "What?", "Who?"))
        for line, match in zip(
            err.splitlines(),
            [
                "missing: No such file",
                "message 0 must be",
                "Is a directory",
                "where: No such",
                "/save needs",
                "/load needs",
            ],
            strict=True,
        ):
            assert match in line

    def test_stats(self, chat_model: Path) -> None:
        _, _, err = talk(chat_model, "/stats", "What?", "Who?", "/stats", "/reset", "/stats")
        with Llama(chat_model) as llm:
            n_prompt = len(llm.chat_tokens([{"role": "user", "content": "What?"}]))
        lines = err.splitlines()
        assert lines[0] == "0 turns; 0 tokens generated in all" and lines[1] == "2 turns; 10 tokens generated in all"
        used = int(lines[2].removeprefix("context: ").partition(" of 200 tokens used")[0])
        assert used > 2 * n_prompt
        assert lines[3].startswith("last answer: prompt: ") and lines[3].endswith("GB/s")
        assert lines[4:] == ["0 turns; 10 tokens generated in all"]

    def test_help_lists_every_command(self, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = talk(chat_model, "/help")
        assert (code, out, err) == (0, "", COMMANDS)
        assert chat.main(["--help"]) == 0
        assert COMMANDS in capsys.readouterr().out

    def test_what_is_no_command(self, chat_model: Path) -> None:
        code, out, err = talk(chat_model, "/nonsense", "/reset now", "//help", "/etc/passwd", "/exit", "not read")
        assert (code, out) == (1, answers(chat_model, "/help", "/etc/passwd"))
        assert err.splitlines()[0].startswith("there is no command /nonsense;") and "/reset takes nothing" in err
        assert err.count("\n") == 2

    def test_the_first_message_is_no_command(self, chat_model: Path) -> None:
        assert talk(chat_model, "Who?", flags=("-p", "/help"))[1] == answers(chat_model, "/help", "Who?")


class TestContext:
    LONG = "fox " * 20

    def test_a_full_context_is_said_and_the_chat_goes_on(self, chat_model: Path) -> None:
        code, out, err = talk(chat_model, self.LONG, self.LONG * 5, "Who?", "/reset", "Who?")
        assert (code, out) == (1, answers(chat_model, self.LONG.strip(), "Who?") + answers(chat_model, "Who?"))
        assert err.count("\n") == 1 and "do not fit in a context of 200" in err and "--drop-oldest" in err

    def test_a_line_of_five_megabytes(self, chat_model: Path) -> None:
        """More than any template may write: it is too long, the template is not at fault, and the chat goes on."""
        for flags in ((), ("--drop-oldest",)):
            code, out, err = talk(chat_model, "a" * 5_000_000, "Who?", flags=flags)
            assert (code, out) == (1, answers(chat_model, "Who?"))
            assert "messages of 5000000 characters do not fit in a context of 200 tokens" in err and len(err) < 1000

    def test_drop_oldest(self, chat_model: Path, tmp_path: Path) -> None:
        lines = [self.LONG, "Who?", self.LONG, self.LONG, f"/save {tmp_path}/chat.json"]
        code, out, err = talk(chat_model, *lines, flags=("--drop-oldest", "-s", "s"))
        assert code == 0 and out.count("\n") >= 4
        assert "(forgot the oldest turn)" in err and "do not fit" not in err
        kept = json.loads((tmp_path / "chat.json").read_text())
        assert kept[0]["role"] == "system" and kept[-2]["content"] == self.LONG.strip()
        assert [message["role"] for message in kept[1:3]] == ["user", "assistant"] and len(kept) < 9
        with Llama(chat_model) as llm:
            fits = len(llm.chat_tokens(kept[:-1]))
            assert fits <= 195  # with the answer's 5 tokens
            assert llm.chat(kept[:-1], seed=2, max_tokens=5).text == kept[-1]["content"]

    def test_drop_oldest_leaves_room_for_the_answer(self, chat_model: Path, tmp_path: Path) -> None:
        saves = [f"/save {tmp_path}/{i}.json" for i in range(7)]
        lines = [line for save in saves for line in ("Who?", save)]
        code, _, err = talk(chat_model, *lines, flags=("--drop-oldest", "-n", "40", "--top-p", "1"))
        assert code == 0 and "(forgot the oldest turn)" in err
        with Llama(chat_model) as llm:
            for i in range(len(saves)):
                kept = json.loads((tmp_path / f"{i}.json").read_text())
                assert len(llm.chat_tokens(kept[:-1])) <= 160

    def test_drop_oldest_cannot_shorten_a_question(self, chat_model: Path) -> None:
        code, out, err = talk(chat_model, "Who?", "fox " * 300, "What?", flags=("--drop-oldest",))
        assert (code, out) == (1, answers(chat_model, "Who?", "What?"))
        assert "do not fit in a context of 200 (/clear starts again)" in err

    def test_a_message_that_the_format_refuses(self, slow: Path) -> None:
        code, out, err = talk(slow, "a [INST] b", flags=("--template", "mistral"))
        assert (code, out) == (1, "") and err.count("\n") == 1 and "[INST]" in err


class TestInterruption:
    def start(self, slow: Path, *flags: str) -> subprocess.Popen[bytes]:
        arguments = ["-m", slow, "-n", "50000", "--seed", "2", "--temperature", "2", *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", "pyllama2.chat", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        watchdog = threading.Timer(60, process.kill)  # so that waiting for its output has an end
        watchdog.daemon = True
        watchdog.start()
        return process

    def test_ctrl_c_keeps_the_answer_so_far_and_the_chat(self, slow: Path, tmp_path: Path) -> None:
        process = self.start(slow)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        out = b""
        for question in (b"What?\n", b"Who?\n"):
            process.stdin.write(question)
            out += process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            while not (line := process.stderr.readline()).startswith(b"(stopped)"):
                assert line, "the chat has ended"
            out += process.stdout.read(1 << 20)  # all that there is, up to the end of the line
        rest, err = process.communicate(f"/save {tmp_path}/chat.json\n".encode(), timeout=30)
        assert process.returncode == 0 and err == b""
        saved = json.loads((tmp_path / "chat.json").read_text())
        assert [message["role"] for message in saved] == ["user", "assistant"] * 2
        assert saved[1]["content"] + "\n" + saved[3]["content"] + "\n" == (out + rest).decode()

    def test_ctrl_c_ends_a_single_turn_with_130(self, slow: Path) -> None:
        process = self.start(slow, "--single-turn", "-p", "What?")
        assert process.stdout is not None
        start = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
        assert process.returncode == 130 and (start + rest).endswith(b"\n") and b"Traceback" not in err

    def test_ctrl_c_between_messages_ends_with_130(self, slow: Path) -> None:
        process = self.start(slow)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"/help\n")
        assert process.stderr.readline()  # it reads its input by now
        for _ in range(COMMANDS.count("\n") - 1):
            process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and b"Traceback" not in err
