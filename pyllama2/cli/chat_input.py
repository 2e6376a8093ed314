"""Where the messages of a chat come from: a pipe, a terminal, or a terminal with prompt_toolkit.

A message in triple quotes may have several lines. It is never a command.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from .saved_chats import private_folder

QUOTES = '"""'
_PROMPT, _MORE = "> ", ". "
HINT = "(/exit or Ctrl-D ends the chat)"


class Input(Protocol):
    """Where messages come from."""

    interactive: bool  # whether somebody can be asked

    def read(self, draft: str = "") -> str | None:
        """Return the next message or command, which is not blank. None: there are no more.

        Args:
            draft: text to begin with, which may be edited.
        """

    def ask(self, question: str) -> bool:
        """Ask a question. Returns whether the answer was yes."""


def open_input(*, commands: Iterable[str], plain: bool, keep: bool) -> Input:
    """Choose where messages come from.

    Args:
        commands: names for the completion, such as /help.
        plain: do without prompt_toolkit.
        keep: whether to keep what is typed for the next session.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PipeInput()
    if not plain and os.environ.get("TERM") != "dumb":
        with suppress(ImportError):
            return EditedInput(list(commands), keep=keep)
    return TerminalInput()


def message_of(text: str) -> str:
    """Take the triple quotes off a message. One that begins with / gets another /, so that it is no command."""
    if not text.startswith(QUOTES):
        return text.strip()
    text = text.removeprefix(QUOTES).strip().removesuffix(QUOTES).strip()
    return f"/{text}" if text.startswith("/") else text


def is_open(text: str) -> bool:
    """Whether text begins with triple quotes that do not end yet."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


class PipeInput:
    """Lines of standard input."""

    interactive = False

    def read(self, draft: str = "") -> str | None:
        """Return the next line that is not blank, or lines in triple quotes."""
        return _read(lambda prompt: sys.stdin.readline() or None)

    def ask(self, question: str) -> bool:
        """Nobody is asked: yes."""
        return True


class TerminalInput:
    """A terminal without prompt_toolkit. Python's readline edits lines, where it is there."""

    interactive = True

    def read(self, draft: str = "") -> str | None:
        """Ask for a message. Ctrl-C clears the line."""
        with suppress(ImportError):
            import readline  # once imported, input() can edit lines and recalls earlier ones

            def begin() -> None:
                readline.set_startup_hook()  # the lines after this one begin empty
                readline.insert_text(draft)

            readline.set_startup_hook(begin if draft else None)
        while True:
            try:
                return _read(_typed)
            except KeyboardInterrupt:
                print(f"\n{HINT}", file=sys.stderr)

    def ask(self, question: str) -> bool:
        """Ask a question on one line."""
        try:
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return True


def _typed(prompt: str) -> str | None:
    try:
        return input(prompt) + "\n"
    except EOFError:
        print()
        return None


def _read(next_line: Callable[[str], str | None]) -> str | None:
    """Read a message. next_line takes a prompt, and returns a line, or None at the end."""
    text = ""
    while True:
        line = next_line(_MORE if text else _PROMPT)
        if line is None:
            return message_of(text) or None
        text = text + line if text else line.lstrip()
        if text.strip() and not is_open(text):
            return message_of(text)


class EditedInput:
    """A terminal with prompt_toolkit: lines are edited, recalled and completed, and pasted text may have several.

    Args:
        commands: names for the completion.
        keep: whether to keep what is typed for the next session.

    Raises:
        ImportError: prompt_toolkit is not installed.
    """

    interactive = True

    def __init__(self, commands: list[str], *, keep: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        self._session: Any = PromptSession(
            multiline=True,
            key_bindings=_keys(),
            history=(_file_history() if keep else None) or InMemoryHistory(),
            completer=_completer(commands),
            complete_while_typing=False,
            prompt_continuation=_MORE,
            enable_open_in_editor=True,
        )

    def read(self, draft: str = "") -> str | None:
        """Ask for a message. Ctrl-C clears what is typed; Alt-Enter begins another line."""
        while True:
            try:
                with _signals_end_prompts():
                    text = message_of(self._session.prompt(_PROMPT, default=draft))
            except KeyboardInterrupt:  # on an empty line
                print(HINT, file=sys.stderr)
                continue
            except EOFError:
                return None
            if text:
                return text

    def ask(self, question: str) -> bool:
        """Ask a question on one line."""
        from prompt_toolkit.shortcuts import prompt

        try:
            with _signals_end_prompts():
                return prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return True


@contextmanager
def _signals_end_prompts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a prompt, as Ctrl-D does, and then do what they do otherwise.

    What a handler raises in one of the tasks of a prompt would be shown as a mistake of that task, and the terminal
    would stay as the prompt has set it.
    """
    from prompt_toolkit.application.current import get_app_or_none

    caught: dict[int, Callable[[int, FrameType | None], Any]] = {}
    arrived: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        app = get_app_or_none()
        if app is None or app.loop is None or app.future is None:  # no prompt yet, or no more
            caught[number](number, frame)
            return
        arrived.append(number)
        app.loop.call_soon_threadsafe(leave, app.future)

    def leave(ending: Any) -> None:
        if not ending.done():
            ending.set_exception(EOFError)

    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for ends in (signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(ends)):
                caught[ends] = handler
                signal.signal(ends, end)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        if arrived:
            caught[arrived[0]](arrived[0], None)


def _keys() -> Any:
    """Enter sends, but in triple quotes; Alt-Enter begins a line; Ctrl-C clears, and on an empty line ends the read."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def clear(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def _completer(commands: list[str]) -> Any:
    """Names of commands at the beginning, and paths after /save and /load."""
    from prompt_toolkit.completion import Completer, PathCompleter, WordCompleter
    from prompt_toolkit.document import Document

    names = WordCompleter(commands, sentence=True)
    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        """Completes commands."""

        def get_completions(self, document: Any, complete_event: Any) -> Any:
            """Yield what the text before the cursor may become."""
            command, space, rest = document.text_before_cursor.partition(" ")
            if space and command in ("/save", "/load"):
                return paths.get_completions(Document(rest), complete_event)
            return names.get_completions(document, complete_event) if command.startswith("/") else iter(())

    return Commands()


def _file_history() -> Any:
    """The history of a file. None if it cannot be written."""
    from prompt_toolkit.history import FileHistory

    try:
        path = private_folder() / "history"
        path.touch(mode=0o600)
        return FileHistory(str(path))
    except OSError:
        return None
