"""Command lines whose standard streams are closed, full, or read by nobody; and what a terminal gets to see."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tiny_llama import CHATML, write_tiny

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.subprocess]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model m.bin."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder / "m.bin", "bpe", template=CHATML)
    return folder


def shell(folder: Path, command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; P in the command stands for python -m pyllama2."""
    python = f"{sys.executable} -m pyllama2 "
    result = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command.replace("P ", python)],
        cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "Traceback" not in result.stderr + result.stdout and "Exception ignored" not in result.stderr, result
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("P generate -m m.bin -n 3 Once >&-", 0, "tokens/s"),
        ("P generate -m m.bin -n 3 Once <&- >&- 2>&-", 0, ""),
        ("P generate -m m.bin -n 3 - <&- >/dev/null", 0, "tokens/s"),
        ("P generate -m missing 2>&-", 1, ""),
        ("P generate --nonsense 2>&-", 2, ""),
        ("P chat -m m.bin -n 3 <&-", 0, ""),
        ("echo hi | P chat -m m.bin -n 3 --seed 1 >&-", 0, "(the answer was cut after 3 tokens)\n"),
        ("P inspect -m m.bin >&-", 0, ""),
        ("P quantize m.bin --type q8 -o q.bin <&- >&- 2>&- && test -s q.bin", 0, ""),
        ("P --help >&-", 0, ""),
        ("P generate -m m.bin -n 3 Once >/dev/full", 1, "No space left on device\n"),
        ("P generate -m m.bin -n 3 Once 2>/dev/full >/dev/null", 1, ""),
        ("P generate -m missing 2>/dev/full", 1, ""),
        ("P generate --help >/dev/full", 1, "No space left on device\n"),
        ("P --help >/dev/full", 1, "No space left on device\n"),
        ("P --help | true", 0, ""),
        ("P inspect -m m.bin | head -n 1 >/dev/null", 0, ""),
        ("P generate -m m.bin -n 40 Once 2>&1 | head -c 3 >/dev/null", 0, ""),
    ],
)
def test_exit_codes(folder: Path, command: str, code: int, error: str) -> None:
    actual, out, err = shell(folder, command)
    assert (actual, out) == (code, "")
    assert err.endswith(error) if error.endswith("\n") or not error else error in err


def test_what_goes_to_stderr_never_goes_to_stdout(folder: Path) -> None:
    code, out, _ = shell(folder, "P generate -v -m m.bin -n 3 Once 2>&-")
    assert code == 0 and out.startswith("Once") and out.count("\n") == 1 and "tokens/s" not in out


def at_a_terminal(*arguments: str) -> Iterator[str]:
    """What python -m pyllama2 prints on one."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pyllama2", *arguments], stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
    )  # fmt: skip
    os.close(follower)
    try:
        while data := os.read(leader, 10_000):
            yield data.decode()
    except OSError:  # the end, on Linux
        pass
    finally:
        os.close(leader)
        assert process.wait(timeout=60) == 0


def test_a_terminal_obeys_no_text(folder: Path) -> None:
    """A stranger's model, or a prompt out of a file, cannot rename the window or fill the clipboard."""
    text = "a\x1b]52;c;QQ==\x07\n\x9b2J"
    (folder / "prompt").write_text(text)
    shown = "".join(at_a_terminal("generate", "-m", str(folder / "m.bin"), "-n", "0", "-f", str(folder / "prompt")))
    assert "\x1b" not in shown and "\x9b" not in shown and r"a\x1b]52;c;QQ==\x07" in shown and r"\x9b2J" in shown
    code, out, _ = shell(folder, "P generate -m m.bin -n 0 -f prompt")
    assert code == 0 and out == text + "\n"  # a pipe gets every character
