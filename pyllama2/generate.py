"""python -m pyllama2.generate: continue a text.

The prompt and its continuation go to stdout as they are generated, timings to stderr.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["generate", *sys.argv[1:]]))

from .cli.common import (
    add_model_flags,
    add_sampling_flags,
    open_model,
    positive,
    read_text,
    sampling_params,
    timings_line,
    write_text,
)
from .cli.parser import CommandParser
from .cli.running import run_command
from .generation.completion import Completion
from .llama import Llama
from .sampling.params import SEED_LIMIT, SamplingParams
from .shown import for_json, for_terminal, shown

_EPILOG = """\
The prompt is printed before its continuation, unless --no-echo is given. Without PROMPT and -f, it is read from \
standard input if that is a pipe or a file. What is read is UTF-8; one line break at its end is not part of the prompt.
A terminal gets no control characters, which could steer it: they are spelled, as \\x1b. Pipes and files get the text as
it is.

--variants generates several texts, with the seeds S, S + 1 and so on, S being that of --seed. A line of three hyphens
stands between them, and with --json there is one object a line.

--json prints one object with the fields
  prompt         as it was given
  text           the continuation alone
  token_ids      of the continuation
  finish_reason  "stop", "length" (of -n or the context), or "cancelled" (by Ctrl-C)
  stop_reason    the stop string or the token id that ended the text, else null
  usage          prompt_tokens, completion_tokens, cached_tokens
  timings        prompt_s, decode_s, prompt_tokens_per_s, decode_tokens_per_s
  logprobs       with --logprobs: token_id, token, logprob and top for each token
  seed           with --variants
"""


_VARIANTS = 3  # if nobody says how many


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("generate", "Continue a text.", _EPILOG)
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help='the text to continue; "-" reads standard input')
    add("-f", "--file", help='read the prompt from a file; "-" is standard input')
    add("--no-echo", action="store_true", help="print the continuation without the prompt")
    add("--no-stream", action="store_true", help="print the text when it is complete")
    add("-q", "--quiet", action="store_true", help="print nothing on stderr but errors")
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--logprobs", type=int, metavar="N", help="print how likely each token was, and the N likeliest, on stderr")
    about = f"generate N texts; {_VARIANTS} if N is left out"
    add("--variants", type=positive, nargs="?", const=_VARIANTS, metavar="N", help=about)
    add("--state", metavar="FILE", help="go on from what FILE has computed, if it exists, and keep it there")
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
    arguments = _with_number_of_variants(sys.argv[1:] if argv is None else argv)
    return run_command(parser, arguments, lambda args: _generate(parser, args))


def _with_number_of_variants(arguments: list[str]) -> list[str]:
    """Write the number after --variants, where the prompt follows, which argparse would take for it."""
    for i, word in enumerate(arguments[:-1]):
        if word == "--":
            break
        if word == "--variants" and not re.fullmatch(r"-?\d+|-[^ ]+", arguments[i + 1]):
            return [*arguments[:i], f"--variants={_VARIANTS}", *arguments[i + 1 :]]
    return arguments


def _about_words(words: list[str], args: argparse.Namespace) -> str:
    """What to type instead of a prompt without quotes."""
    prompt = shlex.quote(" ".join([args.prompt, *words]))
    return f"a prompt of several words needs quotes: pyllama2 generate {shown(prompt)}"


def _generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.prompt is not None and args.file is not None:
        parser.error("give either PROMPT or -f, not both")
    if args.logprobs is not None and args.logprobs < 0:
        parser.error(f"--logprobs must be at least 0, not {args.logprobs}")
    params = replace(sampling_params(parser, args), logprobs=args.logprobs)
    prompt = _read_prompt(args)
    code = 0
    with open_model(args) as llm:
        if llm.has_chat_template and not args.quiet:
            print("(this model has a chat template: pyllama2 chat asks it questions)", file=sys.stderr)
        if args.state is not None:
            if os.path.exists(args.state):
                llm.load_state(args.state)
            elif not os.path.isdir(os.path.dirname(args.state) or os.curdir):  # said before the work
                raise FileNotFoundError(errno.ENOENT, "there is no such folder", os.path.dirname(args.state))
        for i, one in enumerate(_variants(params, args.variants)):
            if i and not args.json:
                print("---")
            code = code or _print_one(llm, prompt, one, args)
            if code:
                break
        if args.state is not None:
            llm.save_state(args.state)
        if args.verbose:
            print(llm.profile(), file=sys.stderr)
    return code


def _variants(params: SamplingParams, n: int | None) -> Iterator[SamplingParams]:
    """The parameters of each text."""
    if n is None:
        yield params
        return
    seed = random.getrandbits(32) if params.seed is None else params.seed
    for i in range(n):
        yield replace(params, seed=(seed + i) % SEED_LIMIT)


def _print_one(llm: Llama, prompt: str, params: SamplingParams, args: argparse.Namespace) -> int:
    """Generate a text and print it. Returns 130 after Ctrl-C, else 0."""
    live = not args.json and not args.no_stream
    echo = "" if args.no_echo else prompt
    code = 0
    stream = llm.stream(prompt, params)
    if live:
        write_text(echo)
    try:
        for chunk in stream:
            if live:
                write_text(chunk.text)
    except KeyboardInterrupt:
        code = 130
    completion = stream.completion
    if args.json:
        fields = {"prompt": prompt, **_json_fields(completion, params, args)}
        print(for_json(json.dumps(fields, ensure_ascii=False)), flush=True)
    else:
        write_text(("" if live else echo + completion.text) + "\n")
        if completion.logprobs is not None:
            _print_logprobs(completion)
    if not args.quiet:
        line = timings_line(llm, completion, args.verbose)
        print(line if args.variants is None else f"seed {params.seed}; {line}", file=sys.stderr)
    return code


def _read_prompt(args: argparse.Namespace) -> str:
    path = "-" if args.prompt == "-" else args.file
    if path is None and args.prompt is None and _stdin_has_text():
        path = "-"
    if path is None:
        return args.prompt or ""
    return read_text(path, "the prompt").removesuffix("\n").removesuffix("\r")


def _stdin_has_text() -> bool:
    """Whether standard input is a pipe or a file: not a terminal, not the null device, not closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _json_fields(completion: Completion, params: SamplingParams, args: argparse.Namespace) -> dict[str, object]:
    fields = asdict(completion)
    del fields["n_echoed"]
    if completion.logprobs is None:
        del fields["logprobs"]
    return fields if args.variants is None else {**fields, "seed": params.seed}


def _print_logprobs(completion: Completion) -> None:
    """A line for each token: its log-probability, and the likeliest tokens with theirs."""
    for entry in completion.logprobs or ():
        others = "  ".join(f"{text!r} {logprob:.3f}" for _, text, logprob in entry.top)
        print(
            for_terminal(f"{entry.logprob:8.3f}  {entry.token!r:<16}  {others}".rstrip(), sys.stderr), file=sys.stderr
        )
