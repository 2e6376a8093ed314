"""Text of strangers, in files, names and arguments, reaches errors, logs and terminals only on one line and escaped."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers.gguf_files as gguf_files
import numpy as np
import pytest
import torch
from helpers.foreign import llama2c_bytes, llama2c_tokenizer, write_huggingface, write_meta
from helpers.tiny import quantized_model, random_weights, write_model
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import bpe_json, bpe_spec
from safetensors import safe_open
from safetensors.numpy import save_file

from pyllama2 import Llama, Pyllama2Error, chat, generate, inspect
from pyllama2.cli import conversation
from pyllama2.config import RopeScaling
from pyllama2.model import Transformer
from pyllama2.storage.safetensors import make_header
from pyllama2.storage.tensor_info import TensorInfo
from pyllama2.storage.weights import Quantization, StorageType

export = importlib.import_module("pyllama2.export")
pytestmark = pytest.mark.usefixtures("one_thread")

EVIL = "\x1b]52;c;QQ==\x07\x1b[2J\n\rerror: fake\u202e\x9b1m\u2028"
LONG = EVIL + "\x1b" * 50_000
WEIGHTS = random_weights(CONFIG)
ROW = np.zeros(4, np.float32)


def assert_safe(text: str, most: int = 1500) -> None:
    """Lines of printable characters, of which there are few."""
    assert all(line.isprintable() for line in text.split("\n")) and len(text) < most, repr(text[:2000])
    assert "\nerror: fake" not in text


def own(folder: Path, *, evil: str, **facts: Any) -> Path:
    model = quantized_model(CONFIG, WEIGHTS, "float32")
    model.source, model.chat_template = "a tiny model", facts.pop("chat_template", None)
    for name, value in facts.items():
        setattr(model, name, value)
    return write_model(folder / "m.bin", model)


def own_metadata(folder: Path, evil: str, field: str, value: Callable[[str], str]) -> Path:
    path = own(folder, evil=evil)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"][field] = value(evil)
    tensors = {k: v for k, v in header.items() if k != "__metadata__"}
    text = json.dumps({"__metadata__": header["__metadata__"], **tensors}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def own_tensor(folder: Path, evil: str) -> Path:
    path = folder / "m.bin"
    header = make_header({evil: TensorInfo("F32", (4,), 0, 16)}, {"format": "pyllama2", "version": evil[:30]})
    path.write_bytes(header + bytes(16))
    return path


def huggingface(folder: Path, evil: str, **changes: Any) -> Path:
    return write_huggingface(folder, CONFIG, WEIGHTS, **changes)


def huggingface_tokenizer(folder: Path, evil: str, change: Callable[[dict[str, Any]], None]) -> Path:
    write_huggingface(folder, CONFIG, WEIGHTS)
    parts = bpe_json()
    change(parts)
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    return folder


def huggingface_index(folder: Path, evil: str) -> Path:
    write_huggingface(folder, CONFIG, WEIGHTS, n_files=2)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][evil] = evil
    index.write_text(json.dumps(values))
    return folder


def meta_tensor(folder: Path, evil: str) -> Path:
    write_meta(folder, CONFIG, WEIGHTS)
    torch.save({evil: torch.ones(3)}, folder / "consolidated.00.pth")
    return folder


def meta_module(folder: Path, evil: str) -> Path:
    write_meta(folder, CONFIG, WEIGHTS)
    data = b"\x80\x02c" + evil[:60].replace("\n", "").encode() + b"\nname\n."
    import zipfile

    with zipfile.ZipFile(folder / "consolidated.00.pth", "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr(evil[:40].replace("\n", ""), b"")
    return folder


def gguf_file(folder: Path, evil: str, **options: Any) -> Path:
    return gguf_files.write_model(folder / "m.gguf", CONFIG, WEIGHTS, **options)


def gguf_bytes(folder: Path, evil: str, *pairs: bytes) -> Path:
    (folder / "m.gguf").write_bytes(gguf_files.file_bytes(pairs, [gguf_files.tensor_entry(evil, [4])], bytes(64)))
    return folder / "m.gguf"


def llama2c(folder: Path, evil: str) -> Path:
    (folder / "m.bin").write_bytes(llama2c_bytes(CONFIG, WEIGHTS, 1))
    pieces = [(evil.encode() if i == 5 else f"<0x{i:02X}>".encode(), float(i)) for i in range(CONFIG.vocab_size)]
    (folder / "tokenizer.bin").write_bytes(llama2c_tokenizer(pieces))
    return folder / "m.bin"


def in_folder(folder: Path, evil: str) -> Path:
    bad = folder / evil.replace("/", "")[:60]
    bad.mkdir()
    return write_tiny(bad / "m.bin", "bpe")


MAKERS: dict[str, Callable[[Path, str], Path]] = {
    "own source": lambda folder, evil: own(folder, evil=evil, source=evil),
    "own template": lambda folder, evil: own(folder, evil=evil, chat_template=evil, tokenizer=bpe_spec()),
    "own config": lambda folder, evil: own_metadata(folder, evil, "config", lambda evil: json.dumps({evil: 1})),
    "own config value": lambda folder, evil: own_metadata(
        folder, evil, "config", lambda evil: json.dumps({"dim": evil})
    ),
    "own quantization": lambda folder, evil: own_metadata(folder, evil, "quantization", lambda evil: evil),
    "own tokenizer": lambda folder, evil: own_metadata(folder, evil, "tokenizer", lambda evil: evil),
    "own tensor": own_tensor,
    "hf type": lambda folder, evil: huggingface(folder, evil, model_type=evil),
    "hf activation": lambda folder, evil: huggingface(folder, evil, hidden_act=evil),
    "hf rope": lambda folder, evil: huggingface(folder, evil, rope_scaling={"rope_type": evil, "factor": 2.0}),
    "hf quantization": lambda folder, evil: huggingface(folder, evil, quantization_config={"quant_method": evil}),
    "hf number": lambda folder, evil: huggingface(folder, evil, hidden_size=evil),
    "hf tensor": lambda folder, evil: huggingface(folder, evil, extra={evil: torch.ones(3)}),
    "hf index": huggingface_index,
    "hf token": lambda folder, evil: huggingface_tokenizer(
        folder, evil, lambda parts: parts["model"]["vocab"].update({evil: evil})
    ),
    "hf model": lambda folder, evil: huggingface_tokenizer(
        folder, evil, lambda parts: parts["model"].update(type=evil)
    ),
    "hf normalizer": lambda folder, evil: huggingface_tokenizer(
        folder, evil, lambda parts: parts.update(normalizer={"type": evil})
    ),
    "hf regex": lambda folder, evil: huggingface_tokenizer(
        folder, evil,
        lambda parts: parts.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(" + evil}, "behavior": "Isolated", "invert": False}
        ),
    ),
    "hf added": lambda folder, evil: huggingface_tokenizer(
        folder, evil, lambda parts: parts.update(added_tokens=[{"id": i, "content": evil} for i in (3, 4)])
    ),
    "meta tensor": meta_tensor,
    "meta module": meta_module,
    "meta params": lambda folder, evil: write_meta(folder, CONFIG, WEIGHTS, params={evil: evil, "dim": evil}),
    "gguf name": lambda folder, evil: gguf_file(folder, evil, keys={"general.name": evil}),
    "gguf tokenizer": lambda folder, evil: gguf_file(folder, evil, keys={"tokenizer.ggml.model": evil}),
    "gguf rope": lambda folder, evil: gguf_file(folder, evil, keys={"llama.rope.scaling.type": evil}),
    "gguf tensor": lambda folder, evil: gguf_file(folder, evil, extra={evil[:60]: ROW}),
    "gguf architecture": lambda folder, evil: gguf_bytes(folder, evil, gguf_files.pair("general.architecture", evil)),
    "gguf key": lambda folder, evil: gguf_bytes(folder, evil, *[gguf_files.pair(evil, 1)] * 2),
    "gguf kind": lambda folder, evil: gguf_bytes(folder, evil, gguf_files.typed_pair(evil, 77, b"")),
    "llama2.c piece": llama2c,
    "path": in_folder,
    "no path": lambda folder, evil: folder / evil.replace("/", ""),
}  # fmt: skip


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """basicConfig() of the command lines installs a handler only where there is none; capsys needs a fresh one."""
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    yield
    root.handlers[:] = before


@pytest.mark.slow
@pytest.mark.parametrize("evil", [EVIL, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", MAKERS)
def test_files(tmp_path: Path, name: str, evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        path = MAKERS[name](tmp_path, evil)
    except (UnicodeError, ValueError) as error:
        pytest.skip(f"such a file cannot be made: {error}")
    usable = True
    try:
        with Llama(path) as llm:
            llm.generate([5], max_tokens=1)
    except (Pyllama2Error, ValueError) as error:
        usable = False
        assert_safe(str(error), 1300)
    commands = [(generate.main, ["-v", "-n", "1", "a"])]
    if usable:
        commands += [(inspect.main, []), (inspect.main, ["--json"])]
    for main, arguments in commands:
        main([*arguments, "-m", str(path)])
        out, err = capsys.readouterr()
        assert_safe(err, 5000)
        if main is inspect.main:
            assert_safe(out, 800_000)
    export.main([str(path), "-o", str(tmp_path / "out")])
    assert_safe(capsys.readouterr().err)


@pytest.mark.parametrize("text", [EVIL, "y" * 1_000_000])
@pytest.mark.parametrize(
    "arguments",
    [["a", "{}"], ["--{}"], ["-t", "{}"], ["--device", "{}"], ["--seed", "{}"], ["-m", "{}"], ["-f", "{}"],
     ["--tokenizer", "{}"], ["-n", "0", "--stop", "{}"], ["--temperature", "{}"]],
)  # fmt: skip
def test_arguments(path: Path, text: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    generate.main(["-m", str(path), *[argument.format(text) for argument in arguments]])
    error = capsys.readouterr().err
    usage, _, message = error.rpartition("pyllama2 generate: ")
    assert_safe(message, 1300)
    assert_safe(usage, 3000)


def test_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in itertools.product(("LOG_LEVEL", "NUM_THREADS", "DEVICE", "MODEL"), (EVIL, "\x1b" * 30_000)):
        with monkeypatch.context() as patch:
            patch.setenv(f"PYLLAMA2_{name}", text)
            assert generate.main(["-n", "0", *(["-m", str(path)] if name != "MODEL" else [])]) == 1
        error = capsys.readouterr().err
        assert_safe(error)
        assert error.count("\n") == 1


def test_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of the library, which a program may send anywhere."""
    state, bad = tmp_path / "state", tmp_path / EVIL
    with Llama(write_tiny(tmp_path / "m.bin")) as llm:
        llm.generate([5, 6], max_tokens=1)
        llm.save_state(state)
        with safe_open(state, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
        save_file({name: a if a.dtype.kind == "i" else a * np.nan for name, a in arrays.items()}, bad, metadata)
        llm.load_state(bad)
    (record,) = caplog.records
    assert "not finite" in record.getMessage() and record.getMessage().isprintable()


def another_programs_file(folder: Path) -> Path:
    save_file({"a": ROW}, folder / EVIL)
    return folder / EVIL


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: Transformer.load(another_programs_file(folder)),
        lambda folder: StorageType(LONG, 32),
        lambda folder: StorageType.parse(LONG),
        lambda folder: Quantization(LONG, "q8", 32),
        lambda folder: RopeScaling(LONG, 1.0),
        lambda folder: replace(CONFIG, dim=LONG),
    ],
)
def test_errors_of_other_functions(tmp_path: Path, call: Callable[[Path], object]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.slow
def test_templates(tmp_path: Path) -> None:
    """What a template gives to raise_exception(), and what fails in it."""
    for template in ("{{ raise_exception(messages[0].content) }}", "{{ {}[messages[0].content] + 1 }}", "{{ " + EVIL):
        path = write_tiny(tmp_path / "m.bin", "bpe", template=template)
        with Llama(path) as llm:
            for content in (EVIL, "ab" + EVIL * 500):
                with pytest.raises((Pyllama2Error, ValueError)) as caught:
                    llm.chat([{"role": "user", "content": content}])
                assert_safe(str(caught.value))


def test_conversations(tmp_path: Path) -> None:
    path = tmp_path / EVIL.replace("/", "")
    for text in ("{" + EVIL, json.dumps([{"role": EVIL, "content": "a"}]), json.dumps([{"role": "user", EVIL: "a"}])):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no") as caught:
            conversation.read_messages(str(path))
        assert_safe(str(caught.value))


def test_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    path = write_tiny(tmp_path / "m.bin", "bpe", template="{{ raise_exception(messages[0].content) }}")
    lines = ["/a\x1b[2J", "/load \x1b[2J", "/save \x1b[2J/a", "/nope", "\x1b[2J\x9b", "/stats"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert chat.main(["-m", str(path), "-n", "2"]) == 1
    assert_safe(capsys.readouterr().err)


def test_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that begins like the name of BOS, which a file gives."""
    with Llama(write_tiny(tmp_path / "m.bin", max_seq_len=1000)) as llm:
        monkeypatch.setattr(llm.tokenizer, "piece", lambda token_id: EVIL * 9)
        with pytest.warns(UserWarning, match="starts with") as caught:
            llm.generate(EVIL * 9, max_tokens=0)
    assert_safe(str(caught[0].message), 500)


@pytest.mark.slow
def test_names_that_are_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of such names are read, written and named; their bytes are spelled out."""
    path = str(write_tiny(tmp_path / os.fsdecode(b"m\xff.bin"), "bpe"))
    out = str(tmp_path / os.fsdecode(b"out\xfe.bin"))
    assert export.main([path, "-o", out]) == 0 and os.path.exists(os.fsencode(out))
    with Llama(out) as llm:
        assert llm.describe()["source"] == "a tiny model"
        state = tmp_path / os.fsdecode(b"state\xff")
        llm.generate([5], max_tokens=1)
        llm.save_state(state)
        llm.load_state(state)
    messages = str(tmp_path / os.fsdecode(b"chat\xff"))
    conversation.write_messages(messages, [{"role": "system", "content": "a"}])
    assert conversation.read_messages(messages) == [{"role": "system", "content": "a"}]
    for arguments in (["-m", out], ["--json", "-m", out]):
        assert inspect.main(arguments) == 0
        text = capsys.readouterr().out
        text.encode()
        assert r"out\udcfe.bin" in text
    with pytest.raises(Pyllama2Error, match=r"missing\\udcff"):
        Llama(tmp_path / os.fsdecode(b"missing\xff"))


def test_a_source_that_is_not_utf_8(tmp_path: Path) -> None:
    """The name of a foreign file becomes part of ours."""
    path = tmp_path / os.fsdecode(b"m\xff.gguf")
    gguf_files.write_model(tmp_path / "m.gguf", CONFIG, WEIGHTS).rename(path)
    assert export.main([str(path), "-o", str(tmp_path / "m.bin")]) == 0
    with Llama(tmp_path / "m.bin") as llm:
        llm.describe()["source"].encode()
