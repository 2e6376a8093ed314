"""--json-schema, --regex and --grammar of generate and chat."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.schemas import SCHEMAS, check
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import chat, generate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin", "bpe", template=CHATML, max_seq_len=400))


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(SCHEMAS["person"]))
    return str(path)


@pytest.mark.slow
def test_generate(model: str, schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "a" | "bb"\n')
    for flags, pattern in (
        (["--json-schema", schema], ""),
        (["--regex", "[xyz]{3}"], "[xyz]{3}"),
        (["--grammar", str(grammar)], "a|bb"),
    ):
        assert generate.main(["Say: ", "-m", model, "--seed", "1", "-n", "300", *flags]) == 0
        text = capsys.readouterr().out.removeprefix("Say: ").removesuffix("\n")
        if pattern:
            assert re.fullmatch(pattern, text), text
        else:
            check(text, SCHEMAS["person"])


def test_chat(model: str, schema: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-m", model, "-p", "Hello", "--single-turn", "-n", "300", "--json-schema", schema]
    assert chat.main(flags) == 0
    check(capsys.readouterr().out.strip(), SCHEMAS["person"])


def test_what_cannot_be_used(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence; before the prompt is printed, and before a chat begins."""
    path = tmp_path / "wrong.json"
    for content, message, code in (
        ('{"type": "strnig"}', "json_schema cannot be used: Invalid type: strnig", 1),
        ("{", "json_schema is not valid JSON", 2),
        (None, "No such file", 1),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        for main, more in ((generate.main, ["Say: "]), (chat.main, ["-p", "Hello"])):
            try:
                assert main([*more, "-m", model, "--json-schema", str(path)]) == code
            except SystemExit as end:
                assert end.code == code
            captured = capsys.readouterr()
            assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_only_one_of_them(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["-m", model, "--regex", "a", "--grammar", "x"]) == 2
    assert "not allowed with" in capsys.readouterr().err
