"""python -m pyllama2.generate: continue a text.

The prompt and its continuation go to stdout as they come, timings to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from .command_line import add_model_flags, add_sampling_flags, open_model, run_command, sampling_params
from .completion import Completion
from .llama import Llama
from .sampling import SamplingParams

_EPILOG = """\
With --json one object is printed: text, token_ids, finish_reason ("stop" or "length"), stop_reason, usage
(prompt_tokens, completion_tokens, cached_tokens) and timings (prompt_s, decode_s, prompt_tokens_per_s,
decode_tokens_per_s). Its text is the continuation alone.
"""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pyllama2.generate", description="Continue a text.", epilog=_EPILOG)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='the text to continue; "-" reads standard input')
    parser.add_argument("-f", "--file", help='read the prompt from a file; "-" is standard input')
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-stream", action="store_true", help="print the text when it is complete")
    add_model_flags(parser)
    add_sampling_flags(parser)
    return run_command(parser, argv, lambda args: _generate(parser, args))


def _generate(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.prompt is not None and args.file is not None:
        print(f"{parser.prog}: give either PROMPT or -f, not both", file=sys.stderr)
        return 2
    params = sampling_params(args)
    prompt = _read_prompt(args)
    with open_model(args) as llm:
        if args.json:
            completion = llm.generate(prompt, params)
            print(json.dumps(_as_json(completion), ensure_ascii=False))
        elif args.no_stream:
            completion = llm.generate(prompt, params)
            print(prompt + completion.text)
        else:
            completion = _print_stream(llm, prompt, params)
        print_timings(llm, completion, args.verbose)
    return 0


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt == "-" or args.file == "-":
        data = sys.stdin.buffer.read()
    elif args.file is not None:
        with open(args.file, "rb") as file:
            data = file.read()
    else:
        return args.prompt or ""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt is not UTF-8: byte {data[error.start]:#04x} at {error.start}") from None


def _print_stream(llm: Llama, prompt: str, params: SamplingParams) -> Completion:
    stream = llm.stream(prompt, params)
    print(prompt, end="", flush=True)
    for chunk in stream:
        print(chunk.text, end="", flush=True)
    print(flush=True)
    assert stream.completion is not None  # the last chunk has come
    return stream.completion


def print_timings(llm: Llama, result: Completion, verbose: bool) -> None:
    """Tokens per second on stderr; with verbose also the weights' bytes read per second in decoding."""
    timings = result.timings
    line = (
        f"prompt: {result.usage.prompt_tokens} tokens, {timings.prompt_tokens_per_s:.1f} tokens/s; "
        f"decode: {result.usage.completion_tokens} tokens, {timings.decode_tokens_per_s:.1f} tokens/s"
    )
    if verbose:
        # Each token reads every weight but the embedding's other rows, which a tied model reads as the output.
        line += f", {timings.decode_tokens_per_s * llm.describe()["bytes_per_token"] / 1e9:.2f} GB/s of weights"
    print(line, file=sys.stderr)


def _as_json(completion: Completion) -> dict[str, object]:
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "usage": dataclasses.asdict(completion.usage),
        "timings": dataclasses.asdict(completion.timings),
    }


if __name__ == "__main__":
    sys.exit(main())
