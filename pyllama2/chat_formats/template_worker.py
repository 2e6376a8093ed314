"""The process that renders chat templates, so that a hostile template can only harm this process.

Jinja's sandbox keeps a template from Python's internals, but not from endless loops, 9**(9**9) or strings that double.
Therefore the process gives up what it does not need before it reads a template. Its parent (renderer.py) kills it if a
render takes too long.

    Linux      no new files, sockets or processes (root can still start processes), no writing to files, no core dump,
               no new privileges; 256 MB of memory, 20 s of processor time for a render; a render ends when the
               parent dies
    macOS      the same, except: no limit of memory, and privileges stay; if the parent dies, a render goes on until
               its processor time is used up
    Windows    none of these, since Python has no resource module there; only the parent's time limit

System calls are not filtered on Linux. That would need libseccomp, which no wheel includes, or tables of numbers for
every architecture. So code that escapes from the sandbox can still send signals to processes of the same user.

    question   number (uint64), two lengths in bytes (uint32), all little-endian; JSON {"template": source,
               "stand_ins": {name: stand-in}}; JSON object of the variables
    answer     status (one byte), the question's number (uint64), length in bytes (uint32); UTF-8 text, which may
               contain lone surrogates. The status is one of

        +   the text is the rendered template
        r   the template refused the messages; the text is the argument of its raise_exception()
        -   the template failed; the text says why

Before the first question the process says that it is ready: an answer with the number 0, which no question has, the
status + and no text. The process ends when its standard input ends.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..process.limits import confine, limit_processor_time

if sys.platform != "win32":
    import fcntl
    import select
    import signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jinja2 import Template

QUESTION = struct.Struct("<QII")
ANSWER = struct.Struct("<cQI")
READY = 0  # the number of the answer that no question has
# Python and Jinja take 25 MB of address space. A context of a million tokens is about 4 MB of text.
MAX_MEMORY = 256 << 20
MAX_CHARS = 4 << 20
MAX_CPU_S = 20


class _TooLong(Exception):
    """A template wrote more than MAX_CHARS."""


def main() -> None:
    """Answer questions until standard input ends."""
    compile_template = lru_cache(maxsize=1)(_compile)
    _load_everything()
    _confine()
    sys.stdout.buffer.write(ANSWER.pack(b"+", READY, 0))
    sys.stdout.buffer.flush()
    while len(header := sys.stdin.buffer.read(QUESTION.size)) == QUESTION.size:
        number, template_length, variables_length = QUESTION.unpack(header)
        template = sys.stdin.buffer.read(template_length)
        variables = json.loads(sys.stdin.buffer.read(variables_length))
        limit_processor_time(MAX_CPU_S)  # the parent's limit is shorter; this one is for when it has died
        with _ending_with_the_parent():
            status, text = _answer(compile_template, template, variables)
        data = text.encode("utf-8", "surrogatepass")
        sys.stdout.buffer.write(ANSWER.pack(status, number, len(data)) + data)
        sys.stdout.buffer.flush()


def _answer(
    compile_template: Callable[[bytes], Template], template: bytes, variables: dict[str, Any]
) -> tuple[bytes, str]:
    from .template_environment import Refused, mark_roles

    try:
        mark_roles(variables.get("messages", []))
        return b"+", _render(compile_template(template), variables)
    except Refused as error:
        return b"r", " ".join(str(error).split())[:1000]
    except _TooLong:
        return b"-", f"writes more than {MAX_CHARS} characters"
    except MemoryError:
        return b"-", f"needs more than {MAX_MEMORY >> 20} MB of memory"
    except Exception as error:  # a template can raise anything
        return b"-", " ".join(f"fails: {type(error).__name__}: {error}".split())[:300]


def _compile(template: bytes) -> Template:
    from .template_environment import compile_template

    request = json.loads(template)
    return compile_template(request["template"], request["stand_ins"])


def _render(template: Template, variables: dict[str, Any]) -> str:
    chunks: list[str] = []
    length = 0
    for chunk in template.generate(variables):
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_CHARS:
            raise _TooLong
    return "".join(chunks)


# A template that uses every feature that loads a module when it is first used, and reads the time zone.
_LAZY = (
    "{{ [1] | pprint }}{{ '&lt;' | striptags | wordwrap(1) }}{{ lipsum(1, false, 1, 2) }}"
    "{{ strftime_now('%c %Z') }}{{ 1 / 0 }}"
)


def _load_everything() -> None:
    """Let Python read all files that rendering may need, while files can still be opened."""
    _answer(_compile, json.dumps({"template": _LAZY, "stand_ins": {}}).encode(), {})


def _confine() -> None:
    """Give up what rendering does not need. This cannot be undone."""
    if sys.platform == "linux":
        # For _ending_with_the_parent(). The parent may ignore or block SIGIO, and this process inherits that.
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    confine(MAX_MEMORY)


@contextmanager
def _ending_with_the_parent() -> Iterator[None]:
    """Let the kernel end this process, within the block, when the parent closes the pipe or dies.

    The parent has sent its whole question by then, so nothing else happens to the pipe.
    """
    if sys.platform == "linux":
        flags = fcntl.fcntl(0, fcntl.F_GETFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)  # any event of the pipe now sends SIGIO, which is fatal
        pipe = select.poll()
        pipe.register(0, 0)
        if pipe.poll(0):  # the parent has closed it already
            sys.exit()
        yield
        fcntl.fcntl(0, fcntl.F_SETFL, flags)
    else:
        yield
