"""python -m pyllama2.generate: continue a text.

The prompt and its continuation go to stdout as they are generated, timings to stderr.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["generate", *sys.argv[1:]]))

from .cli.common import (
    add_model_flags,
    add_sampling_flags,
    open_model,
    read_text,
    sampling_params,
    timings_line,
    write_text,
)
from .cli.parser import CommandParser
from .cli.running import run_command
from .generation.completion import Completion
from .shown import for_json, shown

_EPILOG = """\
The prompt is printed before its continuation. A prompt that is read from a file or standard input is
UTF-8; one line break at its end is not part of it. A terminal gets no control characters, which could steer it:
they are spelled, as \\x1b. Pipes and files get the text as it is.

--json prints one object with the fields
  prompt         as it was given
  text           the continuation alone
  token_ids      of the continuation
  finish_reason  "stop", "length" (of -n or the context), or "cancelled" (by Ctrl-C)
  stop_reason    the stop string or the token id that ended the text, else null
  usage          prompt_tokens, completion_tokens, cached_tokens
  timings        prompt_s, decode_s, prompt_tokens_per_s, decode_tokens_per_s
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("generate", "Continue a text.", _EPILOG)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='the text to continue; "-" reads standard input')
    parser.add_argument("-f", "--file", help='read the prompt from a file; "-" is standard input')
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
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
    return run_command(parser, argv, lambda args: _generate(parser, args))


def _about_words(words: list[str], args: argparse.Namespace) -> str:
    """What to type instead of a prompt without quotes."""
    prompt = shlex.quote(" ".join([args.prompt, *words]))
    return f"a prompt of several words needs quotes: pyllama2 generate {shown(prompt)}"


def _generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.prompt is not None and args.file is not None:
        parser.error("give either PROMPT or -f, not both")
    params = sampling_params(parser, args)
    prompt = _read_prompt(args)
    live = not args.json and not args.no_stream
    code = 0
    with open_model(args) as llm:
        stream = llm.stream(prompt, params)
        if live:
            write_text(prompt)
        try:
            for chunk in stream:
                if live:
                    write_text(chunk.text)
        except KeyboardInterrupt:
            code = 130
        completion = stream.completion
        if args.json:
            print(for_json(json.dumps({"prompt": prompt, **_json_fields(completion)}, ensure_ascii=False)))
        else:
            write_text(("" if live else prompt + completion.text) + "\n")
        print(timings_line(llm, completion, args.verbose), file=sys.stderr)
        if args.verbose:
            print(llm.profile(), file=sys.stderr)
    return code


def _read_prompt(args: argparse.Namespace) -> str:
    path = "-" if args.prompt == "-" else args.file
    if path is None:
        return args.prompt or ""
    return read_text(path, "the prompt").removesuffix("\n").removesuffix("\r")


def _json_fields(completion: Completion) -> dict[str, object]:
    fields = asdict(completion)
    del fields["logprobs"], fields["n_echoed"]  # no flag asks for them
    return fields
