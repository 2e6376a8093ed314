"""How the answers of a chat are shown: as they are in a pipe, in whole words on a terminal, with rich as Markdown.

Control characters of the model never reach a terminal (shown.py).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from ..generation.completion import Completion
from ..shown import for_json, for_terminal
from .common import write_text


class Answer(Protocol):
    """One answer on its way to stdout."""

    def write(self, text: str) -> None:
        """Show the next part of the text."""

    def close(self, completion: Completion) -> None:
        """Show the rest, and end the line. completion is the whole answer."""


def answer_maker(*, as_json: bool = False, plain: bool = False) -> Callable[[], Answer]:
    """Choose how answers are shown.

    Args:
        as_json: each answer is a JSON object on a line.
        plain: without Markdown and colours.
    """
    if as_json:
        return JsonAnswer
    if not sys.stdout.isatty():
        return PlainAnswer
    if not plain and os.environ.get("TERM") != "dumb":
        try:
            import rich  # noqa: F401
        except ImportError:
            pass
        else:
            return MarkdownAnswer
    return WrappedAnswer


class PlainAnswer:
    """The text as it is."""

    def write(self, text: str) -> None:
        """Print the text."""
        write_text(text)

    def close(self, completion: Completion) -> None:
        """End the line."""
        write_text("\n")


class JsonAnswer:
    """An object with role, content, finish_reason, stop_reason, usage and timings."""

    def write(self, text: str) -> None:
        """Print nothing yet."""

    def close(self, completion: Completion) -> None:
        """Print the object."""
        fields = asdict(completion)
        kept = {name: fields[name] for name in ("finish_reason", "stop_reason", "usage", "timings")}
        answer = {"role": "assistant", "content": completion.text, **kept}
        print(for_json(json.dumps(answer, ensure_ascii=False)), flush=True)


class WrappedAnswer:
    """Text for a terminal, where a line break comes before a word that does not fit, not inside of it.

    Attributes:
        width: returns the columns of the terminal, which may change.
    """

    def __init__(self) -> None:
        self.width: Callable[[], int] = lambda: shutil.get_terminal_size().columns
        self._column = 0
        self._spaces = ""  # before the word
        self._word = ""

    def write(self, text: str) -> None:
        """Print the words that are complete."""
        write_text("".join(map(self._put, text)))

    def close(self, completion: Completion) -> None:
        """Print the last word, and end the line."""
        write_text(self._flush() + "\n")

    def _put(self, char: str) -> str:
        """Take a character. Returns what can be printed now."""
        if char == "\n":
            done = self._flush() + "\n"
            self._column, self._spaces = 0, ""
            return done
        if char.isspace():
            done = self._flush()
            self._spaces += char
            return done
        if _columns(char) == 2:  # of a language that may break anywhere
            done = self._flush()
            self._word = char
            return done + self._flush()
        self._word += char
        return ""

    def _flush(self) -> str:
        if not self._word:
            return ""
        word, spaces = self._word, self._spaces
        self._word = self._spaces = ""
        n_word = sum(map(_columns, word))
        n_spaces = sum(map(_columns, spaces))
        if self._column and self._column + n_spaces + n_word > self.width():
            self._column = n_word
            return "\n" + word
        self._column += n_spaces + n_word
        return spaces + word


def _columns(char: str) -> int:
    """Columns that a terminal needs for a character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class MarkdownAnswer:
    """Text that is rendered as Markdown while it comes, with rich. Colours are left out where NO_COLOR is set.

    The last lines are drawn again and again, because what follows may change them. Lines above them are printed once.
    """

    _REDRAWN = 6  # lines: a table or a list may still change that many
    _INTERVAL_S = 0.05
    _MOST_OF_TIME = 0.1  # spent with drawing

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._text = ""
        self._n_printed = 0
        self._next_s = 0.0
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def write(self, text: str) -> None:
        """Draw the text so far, but not too often."""
        self._text += text
        now = time.monotonic()
        if now >= self._next_s:
            self._draw(n_redrawn=self._REDRAWN)
            took = time.monotonic() - now
            self._next_s = now + max(self._INTERVAL_S, took / self._MOST_OF_TIME)

    def close(self, completion: Completion) -> None:
        """Print the last lines for good."""
        try:
            self._draw(n_redrawn=0)
        finally:
            self._live.stop()

    def _draw(self, n_redrawn: int) -> None:
        from rich.text import Text

        lines = self._lines()
        n_stable = max(self._n_printed, len(lines) - n_redrawn)
        if n_stable > self._n_printed:
            stable = "\n".join(lines[self._n_printed : n_stable])
            self._live.update(Text(""), refresh=True)
            self._console.print(Text.from_ansi(stable), soft_wrap=True)
            self._n_printed = n_stable
        self._live.update(Text.from_ansi("\n".join(lines[self._n_printed :])), refresh=True)

    def _lines(self) -> list[str]:
        """The text so far as lines of a terminal, with its escape sequences."""
        from rich.console import Console
        from rich.markdown import Markdown

        out = io.StringIO()
        like = self._console
        colours: Any = like.color_system
        console = Console(file=out, force_terminal=True, width=like.width, color_system=colours, no_color=like.no_color)
        console.print(Markdown(for_terminal(self._text), code_theme="ansi_dark", hyperlinks=False))
        return [line.rstrip() for line in out.getvalue().splitlines()]
