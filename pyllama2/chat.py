"""python -m pyllama2.chat: talk to a model.

Answers go to stdout as they come; all else goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import dataclass, field

from .chat_format import CHAT_FORMATS
from .command_line import add_model_flags, add_sampling_flags, open_model, run_command, sampling_params
from .errors import ContextLengthError
from .generate import timings_line
from .llama import Llama
from .sampling import SamplingParams

_EPILOG = """\
Messages are lines of standard input. /clear forgets the conversation, /exit or the end of the input ends it.
"""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pyllama2 chat", description="Talk to a model.", epilog=_EPILOG)
    parser.add_argument("-s", "--system", help="the system prompt")
    parser.add_argument("-p", "--prompt", metavar="FIRST_MESSAGE", help="the first message, before any that is read")
    parser.add_argument("--single-turn", action="store_true", help="end after one answer")
    parser.add_argument("--template", choices=CHAT_FORMATS, help="the chat format (default: the model's own)")
    add_model_flags(parser)
    add_sampling_flags(parser)
    return run_command(parser, argv, lambda args: _chat(parser, args))


def _chat(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    params = sampling_params(parser, args)
    with open_model(args) as llm:
        conversation = _Conversation(llm, params, args)
        text = args.prompt if args.prompt is not None else _read_message()
        while text is not None:
            if text == "/clear":
                conversation.clear()
            else:
                conversation.ask(text)
                if args.single_turn:
                    break
            text = _read_message()
    return 0


def _read_message() -> str | None:
    """The next line that is not blank; None at the end."""
    while True:
        line = _read_line()
        if line is None or line.strip() == "/exit":
            return None
        if line.strip():
            return line.strip()


def _read_line() -> str | None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return sys.stdin.readline() or None
    with suppress(ImportError):
        import readline  # noqa: F401 (input() can edit lines once it is there)
    try:
        return input("> ")
    except EOFError:
        print()
        return None


@dataclass
class _Conversation:
    """The messages so far, and how answers are made."""

    llm: Llama
    params: SamplingParams
    args: argparse.Namespace
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Back to the system prompt."""
        system = self.args.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, text: str) -> None:
        """Print the answer to a message, and keep both; a message that is refused is not kept."""
        asked = [*self.messages, {"role": "user", "content": text}]
        try:
            stream = self.llm.stream_chat(asked, self.params, template=self.args.template)
        except (ContextLengthError, ValueError) as error:
            if self.args.single_turn or not sys.stdin.isatty():
                raise
            print(f"{error} (/clear starts again)", file=sys.stderr)  # a person can try another message
            return
        try:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        finally:
            print(flush=True)
        answer = stream.completion
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            print(f"(the answer was cut after {answer.usage.completion_tokens} tokens)", file=sys.stderr)
        if self.args.verbose:
            print(timings_line(self.llm, answer, verbose=True), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
