"""Templates are rendered as model authors expect, and a hostile one cannot hang, fill memory or get out."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyllama2.chat_formats import renderer as template_renderer
from pyllama2.chat_formats.renderer import TemplateRenderer
from pyllama2.chat_formats.template_worker import MAX_CPU_S
from pyllama2.errors import CheckpointError, Pyllama2Error

ROOT = Path(__file__).parents[2]
ENDLESS = """
{%- for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}
{%- endfor %}{% endfor %}{% endfor %}"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that ends the process")


def render(template: str, timeout_s: float | None = None, **variables: Any) -> str:
    renderer = TemplateRenderer(template, timeout_s)
    try:
        return renderer.render(variables)
    finally:
        renderer.close()


@pytest.fixture
def hello() -> Iterator[TemplateRenderer]:
    renderer = TemplateRenderer("hello {{ name }}")
    yield renderer
    renderer.close()


def worker_of(renderer: TemplateRenderer) -> int:
    """The id of the process that renders."""
    assert renderer._worker is not None
    return renderer._worker.pid


def is_running(pid: int) -> bool:
    """Whether a process runs (a zombie that its parent has not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends_soon(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos }}{{ undefined }}|", "<s>|"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "02"),
        ("{{ {'a': '<é\"'} | tojson }}", '{"a": "<é\\""}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("a{% generation %}{{ bos }}{% endgeneration %}b", "a<s>b"),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ 'a' ~ '\\n' ~ bos.split('s')[0] }}", "a\n<"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ],
)  # fmt: skip
def test_templates(template: str, expected: str) -> None:
    assert render(template, bos="<s>") == expected


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "did not finish within 0.7 s"),
        ("{{ 9**(9**9) }}", "did not finish within 0.7 s"),
        ("{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "256 MB"),
        ("{{ 'x' * 999999999 }}", "256 MB"),
        ("{{ '%999999999d' | format(1) }}", "256 MB"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than 4194304 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 9999 + ")" * 9999 + " }}", "fails: "),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ (''.format | attr('__globals__')).os }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ a.b.c }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_hostile_and_broken_templates(template: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        render(template, 0.7 if "0.7" in message else None, messages=[])
    assert "\n" not in str(caught.value)


def test_a_template_sees_nothing_of_this_process() -> None:
    assert render("{{ '{0.__class__}'.format(1) }}|{{ '' | attr('__class__') }}|{{ self._x }}") == "||"


def test_raise_exception_is_about_the_messages() -> None:
    renderer = TemplateRenderer("{{ raise_exception('roles must\n alternate') if bad }}ok")
    with pytest.raises(ValueError, match=r"refuses these messages: roles must alternate$"):
        renderer.render({"bad": True})
    pid = worker_of(renderer)
    assert renderer.render({"bad": False}) == "ok"
    assert worker_of(renderer) == pid  # a refusal costs nothing
    renderer.close()


@pytest.mark.subprocess
def test_the_process_is_kept_and_closed(hello: TemplateRenderer) -> None:
    assert hello.render({"name": "a"}) == "hello a"
    pid = worker_of(hello)
    assert hello.render({"name": "東京 🙂\0" * 100_000}) == "hello " + "東京 🙂\0" * 100_000
    assert worker_of(hello) == pid
    hello.close()
    hello.close()
    assert not Path(f"/proc/{pid}").exists()  # not even as a zombie
    assert hello.render({"name": "b"}) == "hello b"


@pytest.mark.subprocess
def test_a_failure_does_not_spoil_the_next_render() -> None:
    renderer = TemplateRenderer("{% if endless %}" + ENDLESS + "{% endif %}ok", timeout_s=2)
    with pytest.raises(CheckpointError, match="did not finish"):
        renderer.render({"endless": True})
    assert renderer._worker is None
    assert renderer.render({"endless": False}) == "ok"
    renderer.close()


@pytest.mark.subprocess
def test_the_start_of_the_process_is_no_part_of_a_render(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "_START", "import time; time.sleep(2.2)\n" + template_renderer._START)
    assert render("ok", timeout_s=2) == "ok"


@pytest.mark.parametrize(
    ("program", "message"), [("import time; time.sleep(60)", "it took longer than 0.3 s"), ("", "it ended")]
)
def test_a_process_that_does_not_start(program: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "START_TIMEOUT_S", 0.3 if program else 60)
    monkeypatch.setattr(template_renderer, "_START", program)
    renderer = TemplateRenderer("ok")
    with pytest.raises(Pyllama2Error, match=f"did not start: {message}$") as caught:
        renderer.render({})
    assert not isinstance(caught.value, CheckpointError)  # the file is not to blame
    assert renderer._worker is None


def test_a_process_killed_meanwhile_is_replaced(hello: TemplateRenderer) -> None:
    hello.render({"name": "a"})
    os.kill(worker_of(hello), signal.SIGKILL)
    assert ends_soon(worker_of(hello))
    assert hello.render({"name": "b"}) == "hello b"


def test_many_threads_share_a_renderer(hello: TemplateRenderer) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda i: hello.render({"name": str(i)}), range(100))
    assert list(texts) == [f"hello {i}" for i in range(100)]


@pytest.mark.subprocess
def test_an_interrupt_ends_the_render_and_its_process() -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    renderer = TemplateRenderer("{% if endless %}" + ENDLESS + "{% endif %}ok")
    assert renderer.render({}) == "ok"
    pid = worker_of(renderer)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            renderer.render({"endless": True})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_running(pid)
    assert renderer.render({}) == "ok"
    renderer.close()


# A process that answers like the real one, but starts at once; a "slow" question it answers only later.
STAND_IN = """
import json, struct, sys, time
QUESTION, ANSWER = struct.Struct("<QII"), struct.Struct("<cQI")
sys.stdout.buffer.write(ANSWER.pack(b"+", 0, 0))
sys.stdout.buffer.flush()
while header := sys.stdin.buffer.read(QUESTION.size):
    number, *lengths = QUESTION.unpack(header)
    template, variables = (json.loads(sys.stdin.buffer.read(length)) for length in lengths)
    time.sleep(variables.get("slow", 0))
    text = variables["who"].encode()
    sys.stdout.buffer.write(ANSWER.pack(b"+", number + OFFSET, len(text)) + text)
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Iterator[TemplateRenderer]:
    monkeypatch.setattr(template_renderer, "_START", STAND_IN.replace("OFFSET", "0"))
    renderer = TemplateRenderer("")
    yield renderer
    renderer.close()


def interrupt_at(n: int) -> Callable[[FrameType, str, Any], None]:
    """A profile function that raises KeyboardInterrupt at the nth place where Python looks for signals.

    These are the beginnings of functions, and the ends of calls to C. Only those in template_renderer.py count.
    """
    places = itertools.count()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        where = frame.f_code.co_filename == template_renderer.__file__ and event in ("call", "c_return")
        if where and next(places) == n:
            raise KeyboardInterrupt

    return profile


@pytest.mark.subprocess
def test_an_interrupt_anywhere_leaves_no_answer_behind(echo: TemplateRenderer) -> None:
    for n in itertools.count():
        assert echo.render({"who": "warm"}) == "warm"
        sys.setprofile(interrupt_at(n))
        try:
            finished = echo.render({"who": "Alice"}) == "Alice"
        except KeyboardInterrupt:
            finished = False
        finally:
            sys.setprofile(None)
        assert echo.render({"who": "Bob"}) == "Bob"
        if finished:
            break
    assert n > 20


@pytest.mark.subprocess
@pytest.mark.parametrize("place", ["cancel", "join", "end"])
def test_a_second_interrupt_leaves_no_answer_behind(
    echo: TemplateRenderer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is being dealt with."""

    class Interrupted(threading.Timer):
        def cancel(self) -> None:
            if place == "cancel":
                raise KeyboardInterrupt
            super().cancel()

        def join(self, timeout: float | None = None) -> None:
            if place == "join":
                raise KeyboardInterrupt
            super().join(timeout)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    assert echo.render({"who": "warm"}) == "warm"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(threading, "Timer", Interrupted)
            if place == "end":
                patch.setattr(template_renderer, "_close_pipes", interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            echo.render({"who": "Alice", "slow": 0.4})
    finally:
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.4)
    assert [echo.render({"who": who}) for who in ("Bob", "Carol")] == ["Bob", "Carol"]


def test_no_interrupt_is_lost_while_the_process_is_ended(
    echo: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be if the process ended with the object, as Python ignores what a destructor raises."""

    class Interrupted(threading.Timer):
        def cancel(self) -> None:
            signal.raise_signal(signal.SIGINT)
            super().cancel()

    def close_pipes(process: subprocess.Popen[bytes]) -> None:
        signal.raise_signal(signal.SIGINT)
        own_close_pipes(process)

    assert echo.render({"who": "warm"}) == "warm"
    pid, own_close_pipes, ignored = worker_of(echo), template_renderer._close_pipes, []
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sys, "unraisablehook", ignored.append)
            patch.setattr(threading, "Timer", Interrupted)
            patch.setattr(template_renderer, "_close_pipes", close_pipes)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            echo.render({"who": "Alice", "slow": 10})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not ignored and not is_running(pid)


def test_an_answer_to_another_question_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_renderer, "_START", STAND_IN.replace("OFFSET", "1"))
    with pytest.raises(CheckpointError, match="ended the process that renders it"):
        render("", who="Alice")


def test_ctrl_c_in_the_terminal_does_not_reach_the_process(hello: TemplateRenderer) -> None:
    hello.render({"name": "a"})
    assert os.getpgid(worker_of(hello)) != os.getpgid(0)


@pytest.mark.subprocess
def test_a_forked_process_has_its_own(hello: TemplateRenderer) -> None:
    hello.render({"name": "a"})
    pid = worker_of(hello)
    with hello._lock:  # as if another thread, which the child does not have, rendered at this moment
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            good = hello.render({"name": "child"}) == "hello child" and worker_of(hello) != pid
            hello.close()
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert hello.render({"name": "b"}) == "hello b"
    assert worker_of(hello) == pid


@linux
def test_a_forked_process_has_not_the_pipes_to_its_parents(hello: TemplateRenderer) -> None:
    hello.render({"name": "a"})
    assert hello._worker is not None
    process = hello._worker._process
    assert process.stdin is not None and process.stdout is not None
    numbers = [process.stdin.fileno(), process.stdout.fileno()]
    child = os.fork()
    if child == 0:
        os._exit(sum(os.path.exists(f"/proc/self/fd/{number}") for number in numbers))
    assert os.waitpid(child, 0)[1] == 0
    assert hello.render({"name": "b"}) == "hello b"


def test_the_process_goes_with_the_renderer() -> None:
    renderer = TemplateRenderer("x")
    renderer.render({})
    pid = worker_of(renderer)
    del renderer
    assert ends_soon(pid)


SCRIPT = """
import os, sys, threading, time
from pyllama2.chat_formats import renderer as template_renderer
from pyllama2.process import forking
{before}
r = template_renderer.TemplateRenderer({template!r})
t = threading.Thread(target=r.render, args=({{}},), daemon=True)
t.start()
def pid():
    while True:
        for thing in list(forking._renewals):
            if isinstance(thing, template_renderer._Worker): return thing.pid
        time.sleep(0.01)
{after}
print(pid(), flush=True)
"""


def start(template: str, before: str = "", after: str = "t.join()") -> subprocess.Popen[str]:
    script = SCRIPT.format(template=template, before=before, after=after)
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("x", "", "t.join()"),
        ("x", "os.close(0)", "t.join()"),  # no standard input
        ("x", "os.close(0); os.close(2)", "t.join()"),
        (ENDLESS, "template_renderer.TIMEOUT_S = 1000", ""),  # the interpreter exits in the middle of a render
    ],
    ids=["plain", "no_stdin", "no_stdin_no_stderr", "during_a_render"],
)
def test_the_process_ends_with_the_interpreter(template: str, before: str, after: str) -> None:
    process = start(template, before, after)
    output, _ = process.communicate(timeout=MAX_CPU_S - 5)  # sooner than the endless render would end by itself
    assert process.returncode == 0
    assert ends_soon(int(output))


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("template", "after"),
    [
        ("x", "t.join()"),
        pytest.param(ENDLESS, "pid(); time.sleep(0.5)", marks=linux),
        (
            "x",
            "t.join()\nif os.fork() == 0: os.close(1); signal.alarm(20); signal.pause()",
        ),  # a child that has the parent's pipes
    ],
    ids=["idle", "during_a_render", "with_a_forked_child"],
)
def test_the_process_ends_when_its_parent_is_killed(template: str, after: str) -> None:
    process = start(template, "import signal", f"{after}\nprint(pid(), flush=True)\nsignal.pause()")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert is_running(pid)
    process.kill()
    process.communicate()
    assert ends_soon(pid)
