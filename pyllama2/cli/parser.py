"""CommandParser: the parser of a command's arguments, with errors that say what to type instead."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from .. import __version__
from ..shown import one_line, shown
from . import other_names


class _HelpFormatter(argparse.HelpFormatter):
    """A formatter that shows defaults, and fits an epilog to the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[tuple[str, int]] = []  # text with its indentation, column where its next lines begin
        for line in text.splitlines():
            start = len(line) - len(line.lstrip())
            columns = re.match(r" +\S+(?: \S+)*? {2,}(?=\S)", line)
            before, hang = lines[-1] if lines else ("", 0)
            if line and before and columns is None and start == hang:
                lines[-1] = (f"{before} {line.strip()}", hang)
            else:
                lines.append((line, columns.end() if columns else start and start + 2))
        wrapped = [
            textwrap.fill(line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)
            for line, hang in lines
        ]
        return textwrap.indent("\n".join(wrapped), indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown_already = action.help is None or "default" in action.help
        if shown_already or not _is_value(action.default):
            return action.help
        return f"{action.help} (default: %(default)s)"


def _is_value(default: Any) -> bool:
    """Whether a default says something. 0 does."""
    return default is not None and not isinstance(default, bool) and default not in ([], argparse.SUPPRESS)


# Flags of other commands and programs for what is a word without a flag here, by its name.
_WITHOUT_FLAG = {"prompt": ("-p", "--prompt"), "checkpoint": ("-m", "--model"), "source": ("-m", "--model")}


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser with short usage, whose errors come first and stay on one line, without control characters.

    Args:
        command: the name of the command. Empty for the program itself.
        description: what it does, in one sentence.
        epilog: what its help says after the list of flags; wrapped at the width of the
            terminal. An indented line stays a line of its own.

    Attributes:
        about_words: called with words that belong to no flag, and with the parsed arguments, for wrong usage. Returns
            what to type instead.
    """

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"pyllama2 {command}".rstrip(),
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
        )
        self.add_argument("--version", action="version", version=f"pyllama2 {__version__}", help=argparse.SUPPRESS)
        self.about_words: Callable[[list[str], argparse.Namespace], str] | None = None

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments. Ends with exit code 2 and a sentence if they are wrong."""
        self._refuse_foreign_flags(arguments)
        args, unknown = self.parse_known_args(list(arguments))
        if unknown:
            self.error(self._about_unknown(unknown, args))
        return args

    def error(self, message: str) -> NoReturn:
        """Print the message and a line of usage, and end with exit code 2."""
        usage = f"usage: {self._short_usage()}; --help lists the flags\n"
        self.exit(2, f"{self.prog}: {one_line(message)}\n{usage}")

    def format_help(self) -> str:
        """Return the help. Its usage is one line, not every flag once more."""
        self.usage = self._short_usage().replace("%", "%%")
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        """Write the help. Errors of the file are raised; argparse's own method ignores them.

        Args:
            file: where to write; None: stdout.

        Raises:
            OSError: the file cannot be written.
        """
        (sys.stdout if file is None else file).write(self.format_help())

    def _short_usage(self) -> str:
        """The program, its arguments, and the flags that must be given."""
        words = [self.prog]
        for action in self._actions:
            name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            if not action.option_strings:
                words.append(f"[{name}]" if action.nargs in ("?", "*") else name)
            elif action.required:
                values = "|".join(map(str, action.choices)) if action.choices else name
                words.append(f"{action.option_strings[0]} {values}")
        return " ".join([*words, "[FLAGS]"])

    def _refuse_foreign_flags(self, arguments: Sequence[str]) -> None:
        """Answer a flag of another program, before argparse takes -ngl for -n gl."""
        for argument in arguments:
            if argument == "--":
                return
            flag = argument.partition("=")[0]
            if flag in other_names.FLAGS and flag not in self._option_string_actions:
                ours = other_names.FLAGS[flag]
                if ours.split()[0] in self._option_string_actions:
                    self.error(f"there is no flag {flag}; did you mean {ours}?")

    def _about_unknown(self, unknown: list[str], args: argparse.Namespace) -> str:
        flags = [word for word in unknown if word.startswith("-") and word != "-"]
        if flags:
            flag = flags[0].partition("=")[0]
            for place, names in _WITHOUT_FLAG.items():
                if flag in names and any(action.dest == place for action in self._get_positional_actions()):
                    return f"there is no flag {flag}: it is a word without one, as in {self._short_usage()}"
            close = get_close_matches(flag, self._option_string_actions, 1) if flag.startswith("--") else []
            return f"there is no flag {shown(flag)}" + (f"; did you mean {close[0]}?" if close else "")
        if self.about_words is not None:
            return self.about_words(unknown, args)
        hint = ""
        if len(unknown) == 1 and "--model" in self._option_string_actions and not getattr(args, "model", None):
            hint = f"; -m {shown(shlex.quote(unknown[0]))} names a model"
        return f"one argument too many: {shown(shlex.join(unknown))}{hint}"
