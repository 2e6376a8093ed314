"""The largest tokenizer of each kind of file that is allowed loads within some 2 s of one core and 300 MB."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.foreign import llama2c_tokenizer
from helpers.gguf_files import write_gguf
from helpers.tiny_tokenizers import bpe_json

from pyllama2.tokenizer.limits import MAX_MERGES, MAX_SPECIAL_LENGTH, MAX_SPECIAL_TOKENS, MAX_TOKENS
from pyllama2.tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, build_model

# Run in a process of its own, whose memory is measured: what the tokenizer and the reading of it take.
LOAD = """
import resource, sys
from pyllama2.checkpoint.gguf_header import read_header
from pyllama2.checkpoint.gguf_tokenizer import read_tokenizer
from pyllama2.checkpoint.tokenizer_files import read_tokenizer_file
from pyllama2.storage.mapped import MappedFile
from pyllama2.tokenizer import load_tokenizer
import sentencepiece, tokenizers
path, vocab_size = sys.argv[1], int(sys.argv[2])
def peak():  # in MB; ru_maxrss would be that of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
least = peak()
before = resource.getrusage(resource.RUSAGE_SELF)
if path.endswith("gguf"):
    spec = read_tokenizer(read_header(MappedFile(path)).metadata, vocab_size)
else:
    spec = read_tokenizer_file(path, vocab_size)
tokenizer = load_tokenizer(spec, vocab_size)
tokenizer.encode("Once upon a time")
after = resource.getrusage(resource.RUSAGE_SELF)
print(len(tokenizer.special_tokens))
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
print(peak() - least)
"""


def words(count: int) -> list[str]:
    """Texts of up to 8 letters, of which each but the single letters is two shorter ones joined."""
    spelled = (itertools.product("abcdefgh", repeat=length) for length in range(2, 9))
    return ["".join(letters) for letters in itertools.islice(itertools.chain(*spelled), count)]


def special_names() -> list[str]:
    return [f"<{i:0{MAX_SPECIAL_LENGTH - 2}}>" for i in range(MAX_SPECIAL_TOKENS)]


def merges(texts: list[str], most: int) -> list[tuple[str, str]]:
    return [(text[:i], text[i:]) for text in texts for i in range(1, len(text))][:most]


def write_bpe(path: Path) -> None:
    """More merges than Llama-3's, as pairs; one character beyond 16 bits makes each of the text take four bytes."""
    parts = bpe_json(())
    vocab: dict[str, int] = {
        token: token_id for token_id, token in enumerate([t for t in parts["model"]["vocab"] if len(t) == 1])
    }
    texts = words(180_000)
    fillers = (f"{i:024}" for i in itertools.count())
    for text in itertools.islice(itertools.chain(texts, fillers), 210_000):
        vocab[text] = len(vocab)
    vocab["\U0001f600"] = len(vocab)
    parts["model"] |= {"vocab": vocab, "merges": merges(texts, 290_000)}
    parts["added_tokens"] = [
        {"id": len(vocab) + i, "content": name, "special": i % 2 == 0, "normalized": True}
        for i, name in enumerate(special_names())
    ]
    path.write_text(json.dumps(parts | {"normalizer": {"type": "NFC"}}, ensure_ascii=False, indent=1))


def sentencepiece_pieces() -> list[tuple[str, float, int]]:
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [(name, 0.0, USER_DEFINED) for name in special_names()[3:]]
    return pieces + [(f"{i:028}", -float(i), NORMAL) for i in range(MAX_TOKENS - len(pieces))]


def write_sentencepiece_json(path: Path) -> None:
    """Every piece has all its cuts among the merges."""
    texts = words(90_000)
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefgh", *texts]
    vocab = {name: token_id for token_id, name in enumerate(names)}
    pairs = [list(pair) for pair in merges(texts, MAX_MERGES)]
    added = [{"id": len(vocab) + i, "content": name, "special": True} for i, name in enumerate(special_names())]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab, "merges": pairs}
    parts = {"added_tokens": added, "normalizer": {"type": "Sequence", "normalizers": [spaces]}, "model": model}
    path.write_text(json.dumps(parts))


def gguf_keys(model: str) -> dict[str, Any]:
    pieces = sentencepiece_pieces()
    keys = {"model": model, "pre": "llama-bpe", "tokens": [], "token_type": [kind for _, _, kind in pieces]}
    if model == "llama":
        keys |= {"tokens": [text for text, _, _ in pieces], "scores": [score for _, score, _ in pieces]}
        return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if key != "pre"}
    alphabet = [token for token in bpe_json(())["model"]["vocab"] if len(token) == 1]
    texts = words(MAX_TOKENS - len(alphabet) - MAX_SPECIAL_TOKENS)
    keys["tokens"] = [*alphabet, *texts, *special_names()]
    keys["token_type"] = [NORMAL] * (len(alphabet) + len(texts)) + [USER_DEFINED] * MAX_SPECIAL_TOKENS
    keys["merges"] = [" ".join(pair) for pair in merges(texts, MAX_MERGES)]
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def write_llama2c(path: Path) -> None:
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    pieces += [(f"{i:034}".encode(), -float(i)) for i in range(MAX_TOKENS - len(pieces))]
    path.write_bytes(llama2c_tokenizer(pieces))


WRITERS = {
    "tokenizer.json": write_bpe,
    "sentencepiece.json": write_sentencepiece_json,
    "tokenizer.model": lambda path: path.write_bytes(build_model(sentencepiece_pieces(), unk_id=0, bos_id=1, eos_id=2)),
    "llama2c.bin": write_llama2c,
    "gpt2.gguf": lambda path: write_gguf(path, {}, gguf_keys("gpt2")),
    "llama.gguf": lambda path: write_gguf(path, {}, gguf_keys("llama")),
}


@pytest.mark.subprocess
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
@pytest.mark.parametrize("name", WRITERS)
def test_the_largest_file_loads_within_bounds(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    command = [sys.executable, "-c", LOAD, str(tmp_path / name), str(MAX_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    n_special, seconds, megabytes = map(float, done.stdout.split())
    assert n_special <= MAX_SPECIAL_TOKENS + 2
    print(f"{name}: {(tmp_path / name).stat().st_size / 1e6:.1f} MB, {seconds:.2f} s, {megabytes:.0f} MB")
    assert megabytes < 300
    assert seconds < 8  # of the processor's time: some 2 s, and room for slower ones and other work on the same core
