"""python -m pyllama2.batch: answer the requests of a file, and go on where an earlier run has stopped."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["batch", *sys.argv[1:]]))

from .batches.answering import Tally, run_batch
from .batches.identity import identity_of
from .batches.inputs import FORMATS, Defaults, Input
from .batches.results import Results
from .cli.common import add_model_flags, naming_environment, open_model, positive, thread_count
from .cli.naming import model_name
from .cli.parser import CommandParser
from .cli.running import run_command
from .errors import Pyllama2Error
from .model_names import find_model
from .shown import shown

_EPILOG = """\
  pyllama2 batch requests.jsonl -o results.jsonl -m smollm2
  pyllama2 batch questions.csv -o answers.jsonl -m smollm2 --chat -n 100

REQUESTS is
  JSON lines  {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}, as OpenAI has it,
              or {"prompt": "..."} or {"messages": [...]}, with fields such as max_tokens beside it
  CSV         a column of texts, with a line of names; a column custom_id names the results
  Parquet     the same (needs pyarrow)
Fields have the meaning that they have for pyllama2 serve, and are checked in the same way. The model is that of -m,
whatever a line names.

Each result is a line of JSON, written when it is ready: {"id", "custom_id", "response": {"status_code", "request_id",
"body"}, "error"}. The order may differ from that of the requests. A request that is refused gets a response with
the status and the error; a line that is no request gets an error. The others go on.

--ray spreads the requests over the machines of a Ray cluster (docs/ray.md).

The command may be interrupted or killed at any time. Started again with the same arguments, it computes only what
RESULTS does not have.
"""


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("batch", "Answer the requests of a file, many at a time.", _EPILOG)
    parser.add_argument("requests", metavar="REQUESTS", help="JSON lines, CSV or Parquet")
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="RESULTS", help="JSON lines; what is in it is not computed again")
    add("--format", choices=FORMATS, help="of REQUESTS (default: Parquet by its content, CSV by its name, else jsonl)")
    add("--column", metavar="NAME", help="the texts of CSV and Parquet (default: prompt or text, or the only column)")
    add("--chat", action="store_true", help="texts are messages to the assistant, not beginnings of texts")
    add("-s", "--system", metavar="TEXT", help="the system prompt of such chats; it implies --chat")
    group = parser.add_argument_group("many machines")
    group.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS",
        help="use a Ray cluster (without an address: RAY_ADDRESS, one on this machine, or a new one here)",
    )  # fmt: skip
    group.add_argument("--workers", type=positive, metavar="N", help="models on it (default: as many as CPUs allow)")
    add = parser.add_argument_group("of requests that do not say otherwise").add_argument
    add("-n", "--max-tokens", type=int, metavar="N", help="most tokens (256; with a url: OpenAI's default)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (1)")
    add("--top-p", type=float, metavar="P", help="the likeliest tokens up to this mass (1, which is off)")
    add("--seed", type=int, metavar="N", help="the same seed gives the same text (default: another each time)")
    add_model_flags(parser, threads=positive)  # those of other machines may be more than this one has
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _batch(parser, args))


def _batch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    _import_packages()
    if args.ray is not None and args.cpu_affinity is not None:
        parser.error("--cpu-affinity is for this machine, and --ray for others")
    if args.ray is None:
        if args.workers is not None:
            parser.error("--workers needs --ray")
        if args.threads is not None:
            args.threads = thread_count(str(args.threads))
    names = ("max_tokens", "temperature", "top_p", "seed")
    fields = {name: value for name in names if (value := getattr(args, name)) is not None}
    _check_fields(parser, fields)
    defaults = Defaults(fields, chat=args.chat or args.system is not None, system=args.system)
    items = Input(args.requests, kind=args.format, column=args.column, defaults=defaults)
    with suppress(OSError):
        if os.path.samefile(args.requests, args.output):
            raise ValueError("the results must not go into the file of the requests")
    n_items = items.count()
    with Results(args.output, n_items, _recipe(args, fields)) as results:
        from tqdm import tqdm

        with tqdm(total=n_items, initial=results.n_before, unit="req", disable=None, dynamic_ncols=True) as bar:

            def told(tally: Tally) -> None:
                bar.set_postfix_str(f"{tally.tokens_per_s:.1f} tokens/s", refresh=False)
                bar.update()

            tally = _answer(args, items, results, told)
        print(_summary(tally, results), file=sys.stderr)
    return 0


def _answer(args: argparse.Namespace, items: Input, results: Results, told: Callable[[Tally], None]) -> Tally:
    name = model_name(args.model)
    if args.ray is None:
        with open_model(args) as llm:
            return run_batch(llm, items, results, name=name, told=told)
    from .batches.on_ray import run_on_ray

    names = {"threads": "n_threads", "ctx": "n_ctx"}
    names |= {name: name for name in ("quant", "kv_dtype", "device", "n_gpu_layers")}
    options = {ours: value for flag, ours in names.items() if (value := getattr(args, flag)) is not None}
    options |= {"prompt_lookup": not args.no_prompt_lookup, "lora": list(map(_absolute, args.lora)), "keep": args.keep}
    if args.tokenizer is not None:
        options["tokenizer"] = os.path.abspath(args.tokenizer)
    if args.draft is not None:
        options["draft"] = _absolute(args.draft)
    return run_on_ray(
        args.ray or None, args.model, options, items, results, name=name, n_workers=args.workers, told=told
    )


def _absolute(name: str) -> str:
    """A path for workers, whose current folder is another one. What is no path of a file here stays as it is."""
    path, colon, scale = name.rpartition(":")
    if os.path.exists(name) or not os.path.exists(path):
        path, colon, scale = name, "", ""
    return os.path.abspath(path) + colon + scale if os.path.exists(path) else name


def _recipe(args: argparse.Namespace, fields: dict[str, Any]) -> str:
    """What a result depends on besides its line, apart from the device."""
    with naming_environment(args.model):
        path = find_model(args.model, needs_tokenizer=args.tokenizer is None)
    files = [identity_of(path), None if args.tokenizer is None else identity_of(args.tokenizer)]
    model = [model_name(args.model), *files, args.quant, args.ctx, args.kv_dtype, *args.lora]
    return json.dumps([model, fields, args.chat or args.system is not None, args.system])


def _summary(tally: Tally, results: Results) -> str:
    lines = [f"{tally.answered} requests answered, {tally.failed} refused"]
    if results.n_before:
        lines[0] += f"; {results.n_before} were there before"
    if tally.answered:
        cached = f" ({tally.cached_tokens} from the cache)" if tally.cached_tokens else ""
        lines.append(
            f"prompts: {tally.prompt_tokens} tokens{cached}; generated: {tally.completion_tokens} tokens in "
            f"{tally.seconds:.1f} s, {tally.tokens_per_s:.1f} tokens/s"
        )
    lines.append(f"results: {shown(results.path)}")
    return "\n".join(lines)


def _check_fields(parser: argparse.ArgumentParser, fields: dict[str, Any]) -> None:
    """End with a usage error if a flag's value is out of range, rather than refuse every request."""
    from .server.errors import ApiError
    from .server.service import Service

    try:
        Service.parse("/v1/completions", json.dumps({"prompt": "x", **fields}).encode())
    except ApiError as error:
        parser.error(error.message)


def _import_packages() -> None:
    """Raise Pyllama2Error with a hint if a package of the extra is missing."""
    try:
        import pydantic  # noqa: F401
    except ImportError as error:
        raise Pyllama2Error(f'{error.name} is missing: pip install "pyllama2[batch]"') from None
