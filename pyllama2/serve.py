"""python -m pyllama2.serve: an HTTP server with OpenAI's interface.

create_app() makes the ASGI app for other programs. It needs pip install "pyllama2[serve]".
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # before the imports below, which take a while: Ctrl-C then ends them quietly
    from .cli.program import main as run_program

    sys.exit(run_program(["serve", *sys.argv[1:]]))

from .cli.common import add_model_flags, open_model, positive, read_text
from .cli.naming import model_name
from .cli.parser import CommandParser
from .cli.running import run_command
from .errors import Pyllama2Error
from .llama import Llama
from .shown import shown, shown_value

if TYPE_CHECKING:
    from .server.app import App
    from .server.settings import Settings

_EPILOG = """\
  pyllama2 serve -m smollm2
  curl http://127.0.0.1:8000/v1/completions --json '{"prompt": "One day"}'

Any client of OpenAI's works with the base URL http://127.0.0.1:8000/v1. GET /docs describes the interface.

The server listens to this machine only. For another --host it needs an API key: in the file of --api-key-file, one a
line, or in the environment variable PYLLAMA2_API_KEY. --no-auth does without one.

SIGTERM and Ctrl-C end the server with exit code 0: it takes no more requests, and those under way have --grace seconds.
"""


def create_app(
    llm: Llama,
    *,
    names: str | Sequence[str] | None = None,
    api_keys: Sequence[str] = (),
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    max_concurrent: int = 32,
    max_queue: int = 128,
    timeout_s: float = 600.0,
    max_body_bytes: int = 4 << 20,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> App:
    """Make the ASGI app that serves a model.

    Args:
        llm: the model. The app does not close it, and others may use it at the same time.
        names: the name of the model, or several; requests may use any of them. None: "pyllama2".
        api_keys: a request must bring one of them as Authorization: Bearer KEY. Empty: no key is needed.
        host: the address that the app is reached at. Requests may name it, localhost and allowed_hosts as their Host.
        allowed_hosts: further names of this server.
        cors_origins: origins such as https://example.org whose pages may use the server. "*" is any.
        max_concurrent: texts that are generated at a time.
        max_queue: requests that may wait. One more is answered with 429.
        timeout_s: seconds that a request may take in all.
        max_body_bytes: bytes that a request may have.
        temperature: of requests that name none.
        top_p: of requests that name none.

    Returns:
        An ASGI app. Its lifespan, if it is run, ends the requests under way when the program ends.

    Raises:
        Pyllama2Error: a package of the extra "serve" is missing.
        ValueError: an argument is wrong.
    """
    _import_packages()
    from .server.app import App

    return App(
        llm,
        make_settings(
            names=names,
            api_keys=api_keys,
            host=host,
            allowed_hosts=allowed_hosts,
            cors_origins=cors_origins,
            max_concurrent=max_concurrent,
            max_queue=max_queue,
            timeout_s=timeout_s,
            max_body_bytes=max_body_bytes,
            temperature=temperature,
            top_p=top_p,
        ),
    )


def make_settings(
    *,
    names: str | Sequence[str] | None = None,
    api_keys: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    **limits: Any,
) -> Settings:
    """Check the arguments of create_app(), and keep them as one object.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    from .server.settings import Settings

    if names is None:
        names = "pyllama2"
    for key in api_keys:
        check_key(key)
    for name in allowed_hosts:
        if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", name):
            raise ValueError(f"{shown_value(name)} is not the name of a host")
    for origin in cors_origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
            raise ValueError(f"{shown_value(origin)} is not an origin such as https://example.org")
    return Settings(
        names=(names,) if isinstance(names, str) else tuple(names),
        keys=tuple(api_keys),
        allowed_hosts=tuple(allowed_hosts),
        cors_origins=tuple(cors_origins),
        **limits,
    )


def check_key(key: str) -> None:
    """Raise ValueError unless key can be sent in a header. The message does not show it."""
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", key):
        raise ValueError("an API key must have 8 to 512 visible ASCII characters and no spaces")


def make_parser() -> CommandParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser("serve", "Serve a model over HTTP, with OpenAI's interface.", _EPILOG)
    parser.allow_abbrev = False  # --api-key KEY must not become --api-key-file
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="the address to listen to")
    add("--port", type=_number(int, 0, 65535), default=8000, help="0 takes a free one")
    add("--name", action="append", metavar="NAME", help="the model's name for clients; may be repeated")
    add("--api-key-file", metavar="FILE", help="API keys, one a line (default: PYLLAMA2_API_KEY, if it is set)")
    add("--no-auth", action="store_true", help="ask for no key, even if others can reach the address")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a further host name; may be repeated")
    add("--cors-origin", action="append", default=[], metavar="ORIGIN", help="whose pages may ask; may be repeated")
    add("--max-concurrent", type=positive, default=32, metavar="N", help="texts at a time")
    add(
        "--max-queue",
        type=_number(int, 0),
        default=128,
        metavar="N",
        help="requests that may wait",
    )
    add(
        "--timeout",
        type=_number(float, 0.001),
        default=600.0,
        metavar="S",
        help="seconds for a request",
    )
    add("--grace", type=_number(float, 0), default=30.0, metavar="S", help="seconds for the end")
    add("--max-body", type=positive, default=4 << 20, metavar="BYTES", help="largest request")
    add(
        "--temperature",
        type=_number(float, 0, 2),
        default=1.0,
        help="of requests that name none",
    )
    add("--top-p", type=_number(float, 0, 1), default=1.0, help="of requests that name none")
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="form of the log on stderr",
    )
    add_model_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = make_parser()
    return run_command(parser, argv, lambda args: _serve(parser, args))


def _serve(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    keys = _keys(parser, args)
    if not keys and not args.no_auth and not is_loopback(args.host):
        parser.error(
            f"others can reach {shown(args.host)}: give a key (--api-key-file, PYLLAMA2_API_KEY) or say --no-auth"
        )
    _import_packages()
    from .server.observe import LogFormatter
    from .server.run import open_socket, run

    log = logging.getLogger("pyllama2.server")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(as_json=args.log_format == "json"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO)
    with open_socket(args.host, args.port) as bound, open_model(args) as llm:
        app = create_app(
            llm,
            names=args.name or model_name(args.model),
            api_keys=keys,
            host=args.host,
            allowed_hosts=args.allowed_host,
            cors_origins=args.cors_origin,
            max_concurrent=args.max_concurrent,
            max_queue=args.max_queue,
            timeout_s=args.timeout,
            max_body_bytes=args.max_body,
            temperature=args.temperature,
            top_p=args.top_p,
        )
        if "*" in args.cors_origin:
            log.warning("pages of every origin may use this server (--cors-origin *)")
        if not keys and not is_loopback(args.host):
            log.warning("whoever reaches this address may use the model (--no-auth)")
        run(app, bound, args.grace)
    return 0


def _keys(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    if args.api_key_file is not None:
        if args.no_auth:
            parser.error("give either --api-key-file or --no-auth")
        keys = [line.strip() for line in read_text(args.api_key_file, "the file of API keys").splitlines()]
        keys = [key for key in keys if key]
        if not keys:
            raise ValueError(f"{shown(args.api_key_file)} has no API key")
        if args.api_key_file != "-" and os.stat(args.api_key_file).st_mode & (stat.S_IRGRP | stat.S_IROTH):
            logging.getLogger("pyllama2").warning("others may read %s (chmod 600)", shown(args.api_key_file))
    else:
        key = os.environ.get("PYLLAMA2_API_KEY", "").strip()
        keys = [key] if key and not args.no_auth else []
    for key in keys:
        check_key(key)
    return keys


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """A type= of argparse for numbers from low to high."""

    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf"):
            bounds = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bounds}")
        return value

    return parse


def _import_packages() -> None:
    """Raise Pyllama2Error with a hint if a package of the extra is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise Pyllama2Error(f'{error.name} is missing: pip install "pyllama2[serve]"') from None
