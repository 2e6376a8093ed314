"""python -m pyllama2.chat: talk to a model.

Answers go to stdout as they come; the prompt sign, when a person types, and timings to stderr.
"""

from __future__ import annotations

import argparse
import sys

from .chat_format import CHAT_FORMATS
from .command_line import add_model_flags, add_sampling_flags, open_model, run_command, sampling_params
from .errors import ContextLengthError
from .generate import print_timings
from .llama import Llama
from .sampling import SamplingParams

_EPILOG = "Without -p, lines are read from standard input, one message each; /exit or the end of input ends the chat."


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pyllama2.chat", description="Talk to a model.", epilog=_EPILOG)
    parser.add_argument("-s", "--system", help="the system prompt")
    parser.add_argument("-p", "--prompt", metavar="FIRST_MESSAGE", help="the first message")
    parser.add_argument("--single-turn", action="store_true", help="end after one answer")
    parser.add_argument("--template", choices=CHAT_FORMATS, help="the chat format (default: the model's own)")
    add_model_flags(parser)
    add_sampling_flags(parser)
    return run_command(parser, argv, _chat)


def _chat(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    messages = [] if args.system is None else [{"role": "system", "content": args.system}]
    with open_model(args) as llm:
        text = args.prompt if args.prompt is not None else _read_line()
        while text is not None:
            _turn(llm, messages, text, params, args)
            if args.single_turn:
                break
            text = _read_line()
    return 0


def _read_line() -> str | None:
    """The next message that is not blank; None at the end."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            return None
        if line.strip():
            return line.strip()


def _turn(
    llm: Llama, messages: list[dict[str, str]], text: str, params: SamplingParams, args: argparse.Namespace
) -> None:
    """One message and its answer, both added to messages; a refused one leaves them as they were."""
    asked = [*messages, {"role": "user", "content": text}]
    try:
        stream = llm.stream_chat(asked, params, template=args.template)
    except (ContextLengthError, ValueError) as error:
        if args.single_turn or not sys.stdin.isatty():
            raise
        print(error, file=sys.stderr)  # a person can try another message
        return
    for chunk in stream:
        print(chunk.text, end="", flush=True)
    print(flush=True)
    assert stream.completion is not None  # the last chunk has come
    messages[:] = [*asked, {"role": "assistant", "content": stream.completion.text}]
    if args.verbose:
        print_timings(llm, stream.completion, verbose=True)


if __name__ == "__main__":
    sys.exit(main())
