"""The plugin of the command llm, where that is installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama

llm = pytest.importorskip("llm")
plugin = importlib.import_module("pyllama2.llm_plugin")
ROOT = Path(__file__).parents[1]
OPTIONS = {"max_tokens": 5, "temperature": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML)


@pytest.fixture
def model(path: Path) -> Iterator[Any]:
    yield plugin.LlmModel("pyllama2/x", str(path))
    plugin._open.cache_clear()


def answer(path: Path, *texts: str, system: str | None = None) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    with Llama(path) as one:
        return one.chat(messages, max_tokens=5, temperature=0).text


@pytest.mark.slow
def test_a_conversation(model: Any, path: Path) -> None:
    conversation = model.conversation()
    first = conversation.prompt("What?", system="Be nice.", **OPTIONS)
    assert first.text() == answer(path, "What?", system="Be nice.")
    assert first.usage().output == 5 and first.usage().input > 5
    second = conversation.prompt("Who?", **OPTIONS)
    assert "".join(second) == answer(path, "What?", first.text(), "Who?", system="Be nice.")


def test_a_model_that_continues_texts(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.bin", "bpe")
    model = plugin.LlmModel("pyllama2/x", None)
    with Llama(path) as one:
        expected = one.generate("Once", max_tokens=5, temperature=0).text
    assert model.prompt("Once", model=str(path), **OPTIONS).text() == expected
    with pytest.raises(llm.ModelError, match="no system prompt"):
        model.prompt("Once", system="Be nice.", model=str(path)).text()
    with pytest.raises(llm.ModelError, match=r"missing\.bin"):
        model.prompt("Once", model="missing.bin").text()
    plugin._open.cache_clear()


def test_a_schema(model: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    answer = model.prompt("Count.", schema=schema, max_tokens=50, temperature=0.0)
    assert json.loads(answer.text()) == {"n": 7}


def test_the_options_are_those_of_sampling(model: Any) -> None:
    with pytest.raises(ValueError):
        model.prompt("What?", temperature=-1)
    names = set(plugin.LlmModel.Options.model_fields) - {"model"}
    from pyllama2 import SamplingParams

    assert names <= {*SamplingParams.__dataclass_fields__}


def test_the_entry_point_names_this_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^\[project\.entry-points\.llm\]\npyllama2 = "([\w.]+)"$', text, re.MULTILINE)
    assert found is not None and found[1] == plugin.__name__


@pytest.mark.subprocess
def test_the_command_knows_the_models(tmp_path: Path, path: Path) -> None:
    code = (
        "import sys, llm.plugins, pyllama2.llm_plugin\n"
        "from llm.cli import cli\n"
        "if not llm.plugins.pm.is_registered(pyllama2.llm_plugin):\n"
        "    llm.plugins.pm.register(pyllama2.llm_plugin)\n"
        "cli(sys.argv[1:])"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "pyllama2/demo" in run("models", "list")
    options = ["-o", "max_tokens", "5", "-o", "temperature", "0", "-o", "model", str(path)]
    assert run("-m", "pyllama2", *options, "What?").strip() == answer(path, "What?").strip()
