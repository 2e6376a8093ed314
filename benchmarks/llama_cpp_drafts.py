"""llama.cpp's speculative decoding, by its own programs llama-speculative-simple and llama-bench."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllama2 import export
from pyllama2.errors import Pyllama2Error


@dataclass(frozen=True)
class Drafted:
    """Greedy decoding by llama.cpp.

    Attributes:
        plain: tokens/s without a draft.
        drafted: tokens/s with it.
        guesses: tokens that the draft proposed.
        guesses_true: those that were taken.
    """

    plain: float
    drafted: float
    guesses: int
    guesses_true: int


def run(programs: Path, model: str, prompts: Sequence[str], max_tokens: int, n_threads: int) -> Drafted:
    """Decode each prompt in float32, with the model's own Q8_0 as the draft.

    Args:
        programs: the folder of the two programs, of the same build.
        model: a name or a path, as export() takes it.
        prompts: the beginnings of the texts.
        max_tokens: of each text.
        n_threads: of both models.

    Raises:
        Pyllama2Error: a program failed.
    """
    threads = ["-t", str(n_threads)]
    with tempfile.TemporaryDirectory() as folder:
        target, draft = Path(folder, "float32.gguf"), Path(folder, "q8_0.gguf")
        export(model, target, format="gguf")
        export(model, draft, format="gguf", dtype="q8")
        report = _output(
            programs / "llama-bench", "-m", target, "-p", "0", "-n", str(max_tokens), "-o", "json", *threads
        )
        tokens = seconds = guesses = true = 0.0
        for prompt in prompts:
            report_of_text = _output(
                programs / "llama-speculative-simple", "-m", target, "-md", draft, "--spec-type", "draft-simple",
                "-p", prompt, "-n", str(max_tokens), "--temp", "0", *threads, "-td", str(n_threads),
            )  # fmt: skip
            tokens += _number(r"decoded\s+(\d+) tokens", report_of_text)
            seconds += _number(r"decoded\s+\d+ tokens in\s+([\d.]+) seconds", report_of_text)
            guesses += _number(r"n_drafted\s+= (\d+)", report_of_text)
            true += _number(r"n_accept\s+= (\d+)", report_of_text)
    return Drafted(json.loads(report)[0]["avg_ts"], tokens / seconds, int(guesses), int(true))


def _output(program: Path, *arguments: str | Path) -> str:
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise Pyllama2Error(f"cannot run {program}: {error.strerror}") from error
    if done.returncode:
        raise Pyllama2Error(f"{program.name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout if program.name == "llama-bench" else done.stdout + done.stderr


def _number(pattern: str, report: str) -> float:
    found = re.search(pattern, report)
    if found is None:
        raise Pyllama2Error(f"llama.cpp's report has nothing like {pattern!r}")
    return float(found.group(1))
