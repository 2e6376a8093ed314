"""The process that renders chat templates, so that a hostile one harms nothing but itself.

Run as a script by template_renderer.py (`python -I -S _template_worker.py FOLDER...`, the folders
being those that jinja2 and markupsafe are imported from). Jinja's sandbox keeps a template from
Python's internals, but not from endless loops, 9**(9**9) or strings that double; hence memory and
processor time are limited here, and the parent stops the process after a while.

    request    length (uint32, little-endian), JSON {"template": ..., "variables": {...}}
    response   one byte, length, UTF-8 text; the byte is one of

        +   the rendered text
        r   the template refused the messages: what it gave to raise_exception()
        -   the template failed: why

It ends when its standard input does.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser

LENGTH = struct.Struct("<I")
# Python and Jinja take 25 MB of address space; a context of a million tokens is some 4 MB of text.
MAX_MEMORY = 256 << 20
MAX_CHARS = 4 << 20
MAX_CPU_S = 20


class _Refused(Exception):
    """What a template's raise_exception() raises."""


class _TooLong(Exception):
    """A template wrote more than MAX_CHARS."""


def main() -> None:
    """Answer requests until the input ends."""
    sys.path += sys.argv[1:]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MAX_MEMORY)
    compile_template = lru_cache(maxsize=1)(_make_environment().from_string)
    while len(header := sys.stdin.buffer.read(LENGTH.size)) == LENGTH.size:
        request = json.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
        # The parent's clock ends a render first, unless the parent has died.
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + MAX_CPU_S)
        status, text = _answer(compile_template, request)
        data = text.encode("utf-8", "replace")
        sys.stdout.buffer.write(status + LENGTH.pack(len(data)) + data)
        sys.stdout.buffer.flush()


def _limit(kind: int, amount: int) -> None:
    """Set a soft limit, or the hard one where that is lower."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


def _answer(compile_template: Callable[[str], Template], request: dict[str, Any]) -> tuple[bytes, str]:
    try:
        return b"+", _render(compile_template(request["template"]), request["variables"])
    except _Refused as error:
        return b"r", " ".join(str(error).split())[:1000]
    except _TooLong:
        return b"-", f"writes more than {MAX_CHARS} characters"
    except MemoryError:
        return b"-", f"needs more than {MAX_MEMORY >> 20} MB of memory"
    except Exception as error:  # anything at all may come out of a template
        return b"-", " ".join(f"fails: {type(error).__name__}: {error}".split())[:300]


def _render(template: Template, variables: dict[str, Any]) -> str:
    chunks: list[str] = []
    length = 0
    for chunk in template.generate(variables):
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_CHARS:
            raise _TooLong
    return "".join(chunks)


def _make_environment() -> Environment:
    """Jinja as model authors know it: the settings, filters and functions of transformers' apply_chat_template."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """{% generation %} ... {% endgeneration %} marks the assistant's words for training; here it is its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes < and > for HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _Refused(message)


if __name__ == "__main__":
    main()
