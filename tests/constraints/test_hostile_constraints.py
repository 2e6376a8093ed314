"""Wrong, impossible and hostile constraints: one sentence each, in bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import write_tiny

from pyllama2 import ConstraintError, Llama, Pyllama2Error, SamplingParams
from pyllama2.constraints import Compiler, compiler
from pyllama2.constraints.matcher import LIMITS
from pyllama2.process.confined import command, folder_of
from pyllama2.sampling.constraint import Constraint, checked_schema

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def nested(n: int, schema: Any) -> Any:
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


def circle() -> Any:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    return schema


WRONG_SCHEMAS: list[tuple[Any, str]] = [
    ("{", "is not valid JSON"),
    ('{"type": "null", "type": "null"}', "'type' twice"),
    ("[1]", "must be JSON of an object"),
    ({"const": float("nan")}, "is not JSON"),
    (circle(), "is not JSON|too deeply nested"),
    (nested(100, {}), "nested more than 64 deep"),
    (nested(5000, {}), "too deeply nested|more than 64 deep"),
    ('{"items": ' * 2000 + "{}" + "}" * 2000, "nested"),
    ({"description": "x" * (1 << 18)}, "262144"),
    ({"const": "\ud800"}, "lone surrogate"),
]
UNUSABLE: list[tuple[str, Any, str]] = [
    ("json_schema", False, "no text can match it"),
    ("json_schema", {"type": "strnig"}, "Invalid type: strnig"),
    ("json_schema", {"enum": []}, "Unsatisfiable"),
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
    ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    ("json_schema", {"type": "string", "format": "colour"}, "colour"),
    ("json_schema", {"$ref": "http://127.0.0.1:9/schema.json"}, "not present|retriev"),
    ("json_schema", {"$ref": "file:///etc/passwd"}, "not present|retriev"),
    ("json_schema", {"$ref": "#/$defs/none"}, "does not exist"),
    ("json_schema", {"$ref": "#"}, "no text can match it"),
    ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(9000)}}, "large|too much|big|complex"),
    ("json_schema", {"allOf": [{"type": "string", "pattern": f"[a-z]{{{i}}}.*"} for i in range(1, 40)]}, "too much"),
    ("json_schema", {"type": "integer", "multipleOf": 99999989}, "too much"),
    ("regex", "(", "unclosed group"),
    ("regex", "(" * 3000 + "a" + ")" * 3000, "nested"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", "abc\\", "backslash"),
    ("regex", r"[^\s\S]", "no text can match it"),
    ("grammar", "", "no start rule"),
    ("grammar", "start: other", "other"),
    ("grammar", 'start: start "a"', "no text can match it"),
    ("grammar", "start: " + "(" * 20000 + '"a"' + ")" * 20000, "deeply nested"),
    ("grammar", 'start: A0\n' + "\n".join(f'A{i}: A{i + 1} "b"' for i in range(9000)) + '\nA9000: "a"', "too much|big"),
    ("grammar", "start: <|im_end|>", "special token"),
    ("grammar", '%import "/etc/passwd"\nstart: "a"', "Expected name"),
    ("grammar", "root ::= (", "."),
]  # fmt: skip
# They are accepted, and each token of theirs is computed within the limits.
HEAVY: list[tuple[str, Any]] = [
    ("json_schema", {"type": "string", "minLength": 10**6}),
    ("json_schema", {"type": "array", "items": {"const": "x"}, "minItems": 10**8}),
    ("json_schema", {"type": "string", "pattern": "(a|b)*a(a|b){30}c"}),
    ("json_schema", {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"],
                                     "additionalProperties": False}}, "$ref": "#/$defs/n"}),
    ("regex", "a{4294967295}"),
    ("regex", "((a{1000}){1000}){1000}"),
    ("regex", "(a+)+b"),
    ("regex", "(?s:.*)a(?s:.){200}b(?s:.*)c(?s:.){200}d"),
    ("grammar", 'start: start start | "a" | '),
    ("grammar", 'start: a a a a a a a a\na: | "x" a | a "x" | a a'),
    ("grammar", 'start: a{1000000}\na: b{1000000}\nb: "x" | "y"'),
    ("grammar", 'start: "a" start'),
    ("grammar", "start: a\na[max_tokens=3]: /.*/"),
]  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with Llama(write_tiny(tmp_path_factory.mktemp("hostile") / "tiny.bin", "bpe")) as llm:
        yield llm


@pytest.mark.parametrize(("schema", "message"), WRONG_SCHEMAS, ids=range(len(WRONG_SCHEMAS)))
def test_what_is_no_schema_is_refused_at_once(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as raised:
        SamplingParams(json_schema=schema)
    assert str(raised.value).startswith("json_schema ") and len(str(raised.value)) < 600


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text", "message"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_unusable(llm: Llama, kind: str, text: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=rf"^{kind} cannot be (used|\w+ any further): .*({message})") as raised:
        llm.generate("a", **{kind: text})
    said = str(raised.value)
    assert len(said) < 600 and "\n" not in said and "non-verbose" not in said and "panic" not in said
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, Pyllama2Error)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text"), HEAVY, ids=range(len(HEAVY)))
def test_heavy(llm: Llama, kind: Any, text: Any) -> None:
    """Random walks of some hundred tokens end, go on, or exceed the limits."""
    constraint = Constraint(kind, checked_schema(text) if kind == "json_schema" else text)
    grammar = Compiler(llm.tokenizer).compile(constraint)
    generator = random.Random(1)
    for _ in range(2):
        matcher = grammar.matcher([2])
        try:
            for _ in range(300):
                matcher.forced(11)
                bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[:340]
                token = int(generator.choice(np.flatnonzero(bits)))
                if token == 2:
                    break
                matcher.accept(token)
                if matcher.ended:
                    break
        except ConstraintError as error:
            assert "too complex" in str(error)


OTHER_TYPES: list[dict[str, Any]] = [
    {"json_schema": 5}, {"json_schema": ["x"]}, {"json_schema": {"const": object()}}, {"json_schema": {"enum": {1, 2}}},
    {"regex": b"x"}, {"grammar": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OTHER_TYPES, ids=range(len(OTHER_TYPES)))
def test_other_types(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} "):
        SamplingParams(**options)


def test_at_most_one() -> None:
    with pytest.raises(ValueError, match="json_schema and regex cannot be combined"):
        SamplingParams(json_schema={}, regex="a")
    with pytest.raises(ValueError, match="regex and grammar cannot be combined"):
        SamplingParams.of(SamplingParams(regex="a"), grammar="start: /a/")
    with pytest.raises(TypeError, match="did you mean 'json_schema'"):
        SamplingParams(guided_json={})


def test_a_missing_package_is_named(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Pyllama2Error, match=r'missing: pip install "pyllama2\[constraints\]"$'):
        llm.generate("a", regex="never seen")


def test_a_process_that_hangs_or_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_TIMEOUT_S", 0.5)
    for code in ("import time; time.sleep(60)", "import os; os.abort()", "raise SystemExit(3)"):
        monkeypatch.setattr(compiler, "_START", code)
        with pytest.raises(ConstraintError, match="takes too"):
            compiler.checked(Constraint("regex", "a"), False)


@pytest.mark.slow
def test_no_process_is_left_and_each_constraint_is_checked_once(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: started.append(args) or run(*args, **options))
    own = Compiler(llm.tokenizer)
    for _ in range(3):
        own.compile(Constraint("regex", "a+"))
    own.compile(Constraint("grammar", "start: /a/"))
    assert len(started) == 2
    for i in range(20):
        own.compile(Constraint("regex", f"a{i}"))
    own.compile(Constraint("regex", "a+"))
    assert len(started) == 23  # the oldest had to go


def test_few_checks_run_at_once_and_equal_ones_run_once(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Compiler(llm.tokenizer)
    answer = compiler.checked(Constraint("regex", "a"), False)
    running, most, seen = threading.Semaphore(3), [], []

    def check(constraint: Constraint, after_space: bool) -> dict[str, Any]:
        most.append(running.acquire(blocking=False))  # not a third one
        seen.append(constraint.text)
        time.sleep(0.02)
        running.release()
        return answer

    running.acquire()
    monkeypatch.setattr(compiler, "checked", check)
    texts = [f"a{i}" for i in range(8)] * 3
    with ThreadPoolExecutor(len(texts)) as threads:
        grammars = list(threads.map(lambda text: own.compile(Constraint("regex", text)), texts))
    assert all(most) and sorted(seen) == sorted(set(texts)) and len({id(grammar) for grammar in grammars}) == 8


@pytest.mark.slow
def test_refusals_are_kept_except_those_that_the_machine_may_be_the_reason_of(
    llm: Llama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    monkeypatch.setattr(compiler, "_TIMEOUT_S", 2)

    def checks(own: Compiler, code: str, text: str) -> int:
        """How often something is checked that is asked for twice."""
        monkeypatch.setattr(compiler, "_START", f"open({str(notes)!r}, 'a').write('x')\n{code}")
        notes.write_text("")
        messages = []
        for _ in range(2):
            with pytest.raises(ConstraintError, match=r"^regex cannot be used: ") as raised:
                own.compile(Constraint("regex", text))
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        return len(notes.read_text())

    own = Compiler(llm.tokenizer)
    for i in range(20):
        assert checks(own, 'print(\'{"error": "no"}\')', f"a{i}") == 1
    assert checks(own, "", "a19") == 0 and checks(own, "raise SystemExit(3)", "a0") == 1  # the oldest had to go
    assert checks(own, "import time; time.sleep(60)", "slow") == 2
    if sys.platform != "win32":
        assert checks(own, "import os; os.kill(os.getpid(), 9)", "killed") == 2
        assert checks(own, "import os; os.kill(os.getpid(), 24)", "too long") == 1  # SIGXCPU


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits")
def test_a_limit_that_was_exceeded_is_not_tried_again(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of processor time, even if this process ignores the signal."""
    short = compiler._START.replace("main()\n", "main.__globals__['MAX_CPU_S'] = 1\nmain()\n")
    monkeypatch.setattr(compiler, "_START", short)
    own = Compiler(llm.tokenizer)
    constraint = Constraint("json_schema", '{"type": "integer", "multipleOf": 99999989}')
    ignored = signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    try:
        with pytest.raises(ConstraintError, match="too much time or memory"):
            own.compile(constraint)
    finally:
        signal.signal(signal.SIGXCPU, ignored)
    monkeypatch.setattr(compiler, "_START", "never run")
    with pytest.raises(ConstraintError, match="too much time or memory"):
        own.compile(constraint)


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="other systems lack some of it")
def test_what_the_worker_has_given_up() -> None:
    script = """
import ctypes, os, resource, socket
from pyllama2.constraints.worker import _confine
_confine()
print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1)  # PR_GET_NO_NEW_PRIVS
for name in ("CORE", "FSIZE", "NPROC"):
    print(resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) == (0, 0))
for harm in (lambda: open(os.devnull), socket.socket, os.pipe):
    try:
        harm()
    except OSError as error:
        print(error.errno == 24)
    else:
        print(harm, "worked")
"""
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True"] * 7, output


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_it_compiles_without_the_rights_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the limit of processes, and so of threads, is for."""
    become = """
import os
confine = main.__globals__["_confine"]
main.__globals__["_confine"] = lambda: (confine(), os.setuid(65534))
main()
"""
    monkeypatch.setattr(compiler, "_START", compiler._START.replace("main()\n", become))
    for kind, text in (("json_schema", "{}"), ("regex", "a+"), ("grammar", "root ::= [a-z]+")):
        assert compiler.checked(Constraint(kind, text), False)["source"]


def test_the_worker_alone() -> None:
    """It answers with JSON."""
    folder = folder_of("llguidance")
    assert folder is not None
    request = {"kind": "regex", "text": "a", "after_space": False, "limits": LIMITS}
    start = command(compiler._START, folder)
    result = subprocess.run(start, input=json.dumps(request).encode(), capture_output=True, check=True)
    assert set(json.loads(result.stdout)) == {"source", "goes_back", "is_empty"} and not result.stderr
