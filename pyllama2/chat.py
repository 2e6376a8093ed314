"""python -m pyllama2.chat: talk to a model.

Answers go to stdout as they are generated, everything else to stderr.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["chat", *sys.argv[1:]]))

from .chat_formats import CHAT_FORMATS
from .chat_formats.base import n_system
from .cli.common import (
    add_model_flags,
    add_sampling_flags,
    open_model,
    sampling_params,
    timings_line,
    write_text,
)
from .cli.conversation import Messages, read_messages, without_oldest_turns, write_messages
from .cli.parser import CommandParser
from .cli.running import run_command
from .errors import CheckpointError, ContextLengthError
from .generation.completion import Completion
from .llama import Llama
from .sampling.params import SamplingParams
from .shown import one_line, shown
from .tokenizer.base import utf8

_COMMANDS = """\
  /reset         forget all but the system prompt; also /clear
  /system TEXT   replace the system prompt; without TEXT, do without one
  /save PATH     write the messages to a file, as JSON
  /load PATH     go on with the messages of a file
  /stats         tokens, speeds, and how much of the context is used
  /help          this list
  /exit          end, as the end of the input does
"""
_EPILOG = f"""\
Messages are lines of standard input. A line may also be one of these commands:

{_COMMANDS}
A message that is to begin with / and a word is written with //. Ctrl-C ends an answer, of which the part that came is
kept, and the chat goes on. A message that is refused, because it does not fit into the context or for another
reason, is not kept, and the chat goes on; when messages come from a pipe, the exit code in the end is then 1.

A terminal gets no control characters of an answer, which could steer it: they are spelled, as \\x1b.

--drop-oldest forgets whole turns, the oldest first, so that the rest and an answer of -n tokens, or of a quarter of
the context if that is less, fit into the context.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("chat", "Talk to a model.", _EPILOG)
    parser.add_argument("-s", "--system", help="the system prompt")
    parser.add_argument("-p", "--prompt", metavar="FIRST_MESSAGE", help="the first message, before any that is read")
    parser.add_argument("--single-turn", action="store_true", help="end after one answer")
    parser.add_argument("--template", choices=CHAT_FORMATS, help="the chat format (default: the model's own)")
    parser.add_argument("--drop-oldest", action="store_true", help="forget the oldest turns when the context is full")
    parser.about_words = _about_words
    add_model_flags(parser)
    add_sampling_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _chat(parser, args))


def _about_words(words: list[str], args: argparse.Namespace) -> str:
    """What to type instead of a message or a model without its flag."""
    text = shown(shlex.quote(" ".join(words)))
    return f"-p {text} asks a message, and -m {text} names a model"


def _chat(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    params = sampling_params(parser, args)
    with open_model(args) as llm:
        chat = _Chat(llm, params, args)
        chat.reset()
        if args.single_turn:
            text = args.prompt if args.prompt is not None else _read_message()
            return 0 if text is None or chat.ask(text) else 130
        if args.prompt is not None:
            chat.try_to_ask(args.prompt)
        while (line := _read_message()) is not None and chat.handle_line(line):
            pass
    return 1 if chat.refused and not sys.stdin.isatty() else 0


def _read_message() -> str | None:
    """The next line of input that is not blank; None at the end."""
    while True:
        line = _read_line()
        if line is None:
            return None
        if line.strip():
            return line.strip()


def _read_line() -> str | None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return sys.stdin.readline() or None
    with suppress(ImportError):
        import readline  # noqa: F401 (once imported, input() can edit lines and recalls earlier ones)
    try:
        return input("> ")
    except EOFError:
        print()
        return None


@dataclass
class _Chat:
    """A conversation, and what is done with each line of input.

    Attributes:
        llm: the model.
        params: how answers are sampled.
        args: the command's arguments.
        messages: the messages so far.
        system: the system prompt with which reset() starts again; None: there is none.
        refused: whether any line was answered with an error.
        last: the last answer.
        n_generated: tokens of all answers.
    """

    llm: Llama
    params: SamplingParams
    args: argparse.Namespace
    messages: Messages = field(default_factory=list)
    system: str | None = None
    refused: bool = False
    last: Completion | None = None
    n_generated: int = 0

    def __post_init__(self) -> None:
        self.system = self.args.system

    def handle_line(self, line: str) -> bool:
        """Run a command, or answer a message. False if the chat is to end."""
        command = re.fullmatch(r"/([A-Za-z]+)(?:\s+(.*))?", line)
        if command is None:
            self.try_to_ask(line[1:] if line.startswith("//") else line)
            return True
        if line == "/exit":
            return False
        try:
            self._obey(command[1], command[2])
        except OSError as error:
            self._refuse(f"{shown(command[2])}: {error.strerror}")
        except (CheckpointError, ValueError) as error:
            self._refuse(str(error))
        return True

    def try_to_ask(self, text: str) -> None:
        """Call ask(), and print the reason if the message is refused."""
        try:
            self.ask(text)
        except ContextLengthError as error:
            hint = "" if self.args.drop_oldest else "; --drop-oldest forgets the oldest turns"
            self._refuse(f"{error} (/clear starts again{hint})")
        except ValueError as error:
            self._refuse(str(error))

    def ask(self, text: str) -> bool:
        """Print the answer to a message as it is generated, and keep both.

        The part of an answer that came before Ctrl-C is kept. A message without any answer is not.

        Args:
            text: the user's message.

        Returns:
            False if Ctrl-C ended the answer.

        Raises:
            ContextLengthError, ValueError: the message is refused. The conversation is unchanged.
        """
        stream = None
        interrupted = False
        asked: Messages = [*self.messages, {"role": "user", "content": text}]
        try:
            asked = self._fitting(asked)
            stream = self.llm.stream_chat(asked, self.params, template=self.args.template)
            for chunk in stream:
                write_text(chunk.text)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if stream is not None:
                stream.close()
                print(flush=True)
        if stream is not None:
            self._keep(asked, stream.completion)
        if interrupted:
            print("(stopped)", file=sys.stderr)
        return not interrupted

    def reset(self) -> None:
        """Forget all messages but the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.last = None

    def _keep(self, asked: Messages, answer: Completion) -> None:
        self.n_generated += answer.usage.completion_tokens
        if answer.finish_reason == "cancelled" and not answer.text.strip():
            return
        self.last = answer
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            print(f"(the answer was cut after {answer.usage.completion_tokens} tokens)", file=sys.stderr)
        if self.args.verbose:
            print(timings_line(self.llm, answer, verbose=True), file=sys.stderr)

    def _fitting(self, asked: Messages) -> Messages:
        """With --drop-oldest, drop the oldest turns of a conversation that does not fit into the context."""
        if not self.args.drop_oldest:
            return asked
        quarter = self.llm.n_ctx // 4
        room = quarter if self.params.max_tokens is None else min(quarter, self.params.max_tokens)

        def count(messages: Messages) -> int:
            try:
                return len(self.llm.chat_tokens(messages, template=self.args.template))
            except ContextLengthError:  # far more characters than the context holds
                return sys.maxsize

        kept = without_oldest_turns(asked, count, self.llm.n_ctx - room)
        if len(kept) < len(asked):
            n_turns = (len(asked) - len(kept)) // 2
            print(f"(forgot the oldest {f'{n_turns} turns' if n_turns > 1 else 'turn'})", file=sys.stderr)
        return kept

    def _obey(self, name: str, argument: str | None) -> None:
        """Run a command.

        Raises:
            ValueError: it is unknown or incomplete, or the file to load holds no conversation.
            OSError: the file to load cannot be read.
            CheckpointError: the file to save cannot be written.
        """
        if name in ("reset", "clear", "stats", "help", "exit") and argument is not None:
            raise ValueError(f"/{name} takes nothing after it (// begins a message with /)")
        if name in ("save", "load") and argument is None:
            raise ValueError(f"/{name} needs the path of a file")
        if name in ("reset", "clear"):
            self.reset()
        elif name == "system":
            self._set_system(argument)
        elif name == "save":
            write_messages(os.path.expanduser(argument or ""), self.messages)
        elif name == "load":
            self._set_messages(read_messages(os.path.expanduser(argument or "")))
        elif name == "stats":
            self._print_stats()
        elif name == "help":
            print(_COMMANDS, end="", file=sys.stderr)
        else:
            raise ValueError(f"there is no command /{shown(name)}; /help lists them (// begins a message with /)")

    def _set_system(self, text: str | None) -> None:
        utf8(text or "")
        self.system = text
        rest = self.messages[n_system(self.messages) :]
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + rest

    def _set_messages(self, messages: Messages) -> None:
        self.messages = messages
        self.system = messages[0]["content"] if n_system(messages) else None
        self.last = None

    def _print_stats(self) -> None:
        n_turns = (len(self.messages) - n_system(self.messages)) // 2
        print(f"{n_turns} turns; {self.n_generated} tokens generated in all", file=sys.stderr)
        if self.last is not None:
            usage = self.last.usage
            used = usage.prompt_tokens + usage.completion_tokens
            print(f"context: {used} of {self.llm.n_ctx} tokens used", file=sys.stderr)
            print(f"last answer: {timings_line(self.llm, self.last, verbose=True)}", file=sys.stderr)

    def _refuse(self, message: str) -> None:
        self.refused = True
        print(one_line(message), file=sys.stderr)
