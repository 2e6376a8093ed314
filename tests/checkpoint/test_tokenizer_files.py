"""Tokenizer files of three kinds: read as their own packages read them; damaged ones are refused."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.foreign import llama2c_tokenizer
from helpers.tiny_tokenizers import bpe_json, sentencepiece_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as PackageTokenizer

from pyllama2.checkpoint.tokenizer_files import read_tokenizer_file
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer
from pyllama2.tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, build_model

PACKAGE = SentencePieceProcessor(model_proto=sentencepiece_model())
TEXTS = st.text(
    st.sampled_from("Once upon a time there was little fox [INST] /\n\t 0123 é漢😀▁<s>") | st.characters(codec="utf-8"),
    max_size=60,
)


def pieces_of(processor: SentencePieceProcessor) -> list[tuple[str, float, int]]:
    def kind(token_id: int) -> int:
        if processor.is_unknown(token_id):
            return UNKNOWN
        return CONTROL if processor.is_control(token_id) else BYTE if processor.is_byte(token_id) else NORMAL

    return [
        (processor.id_to_piece(token_id), processor.get_score(token_id), kind(token_id))
        for token_id in range(processor.get_piece_size())
    ]


def llama2c_pieces(processor: SentencePieceProcessor) -> list[tuple[bytes, float]]:
    """What llama2.c's tokenizer.py writes."""
    result = []
    for text, score, kind in pieces_of(processor):
        text = f"\n{text}\n" if kind == CONTROL else text.replace("\u2581", " ")
        result.append((text.encode(), score))
    return result


def huggingface_json(processor: SentencePieceProcessor, metaspace: bool = False) -> dict[str, Any]:
    """What transformers' converter makes of a SentencePiece model."""
    pieces = pieces_of(processor)
    vocab = {text: token_id for token_id, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score, kind in pieces:
        if kind == NORMAL:
            cuts = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]
            merges += [(score, cut) for cut in sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))]
    merges.sort(key=lambda entry: entry[0], reverse=True)
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    splitter = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for token_id, (text, _, kind) in enumerate(pieces)
            if kind in (UNKNOWN, CONTROL)
        ],
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": splitter if metaspace else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": vocab, "merges": [list(cut) for _, cut in merges]},
    }  # fmt: skip


def load(path: Path, data: bytes | str) -> Tokenizer:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return load_tokenizer(read_tokenizer_file(path))


def refuse(path: Path, data: bytes | str, *words: str, vocab_size: int | None = None) -> None:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer_file(path, vocab_size)
    assert len(str(caught.value)) < 600
    assert str(path) in str(caught.value)
    message = str(caught.value).replace(str(path), "")  # whose name has words of the test's
    for word in words:
        assert word in message


class TestBuildModel:
    def test_the_package_agrees(self) -> None:
        data = build_model(pieces_of(PACKAGE), unk_id=0, bos_id=1, eos_id=2)
        built = SentencePieceProcessor(model_proto=data)
        assert pieces_of(built) == pieces_of(PACKAGE)
        assert (built.unk_id(), built.bos_id(), built.eos_id(), built.pad_id()) == (0, 1, 2, -1)

    @settings(max_examples=200, deadline=None)
    @given(TEXTS)
    def test_same_tokens(self, text: str) -> None:
        ids = BUILT.encode(text)
        assert ids == PACKAGE.encode(text)
        assert BUILT.decode(ids) == PACKAGE.decode(ids)

    def test_options(self) -> None:
        pieces = [("<unk>", 0.0, UNKNOWN), ("<pad>", 0.0, CONTROL), ("a", -1.0, NORMAL), ("▁", -2.0, NORMAL)]
        data = build_model(pieces, unk_id=0, bos_id=None, eos_id=None, add_dummy_prefix=False)
        processor = SentencePieceProcessor(model_proto=data)
        assert (processor.bos_id(), processor.eos_id(), processor.pad_id()) == (-1, -1, 1)
        assert processor.encode("a  a") == [2, 3, 3, 2]
        assert processor.encode("é") == [0]
        processor = SentencePieceProcessor(model_proto=build_model(pieces, unk_id=0, bos_id=None, eos_id=1))
        assert processor.encode("a") == [3, 2]

    def test_user_defined(self) -> None:
        data = build_model([*pieces_of(PACKAGE), ("<x>", 0.0, USER_DEFINED)], unk_id=0, bos_id=1, eos_id=2)
        assert 340 in SentencePieceProcessor(model_proto=data).encode("a<x>b")

    def test_ids_out_of_range(self) -> None:
        for ids in ({"unk_id": 3}, {"bos_id": -1}, {"eos_id": 3}):
            with pytest.raises(ValueError, match=next(iter(ids))):
                build_model([("a", 0.0, NORMAL)] * 3, **({"unk_id": 0, "bos_id": None, "eos_id": None} | ids))

    def test_llama2(self, other_models: Path) -> None:
        package = SentencePieceProcessor(model_file=str(other_models / "llama2-tokenizer.model"))
        built = SentencePieceProcessor(model_proto=build_model(pieces_of(package), unk_id=0, bos_id=1, eos_id=2))
        rng = random.Random(0)
        for _ in range(300):
            parts = ["the", " ", "  ", "ing", "é", "漢", "😀", "\n", "<s>", "▁", "1984", "def f(x):"]
            text = "".join(rng.choice(parts) for _ in range(20))
            assert built.encode(text) == package.encode(text)


BUILT = SentencePieceProcessor(model_proto=build_model(pieces_of(PACKAGE), unk_id=0, bos_id=1, eos_id=2))


class TestSentencePiece:
    def test_read(self, tmp_path: Path) -> None:
        path = tmp_path / "any-name"
        path.write_bytes(sentencepiece_model())
        spec = read_tokenizer_file(path, 340)
        assert (spec.kind, spec.data) == ("sentencepiece", sentencepiece_model())
        assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), True)

    def test_without_bos_and_eos(self, tmp_path: Path) -> None:
        path = tmp_path / "t"
        path.write_bytes(sentencepiece_model(bos_id=-1, eos_id=-1))
        spec = read_tokenizer_file(path)
        assert (spec.bos_id, spec.eos_ids, spec.add_bos) == (None, (), False)

    def test_refused(self, tmp_path: Path) -> None:
        data = sentencepiece_model()
        refuse(tmp_path / "t", data, "340", "339", vocab_size=339)
        refuse(tmp_path / "t", data[:-1], "damaged")
        refuse(tmp_path / "t", data[:1000], "damaged")
        refuse(tmp_path / "t", b"\n\x05\n\x03abc" * 10)  # no unknown token
        refuse(tmp_path / "t", bytes(17 << 20), "exceed")

    @pytest.mark.subprocess
    def test_hundreds_of_damaged_files(self, tmp_path: Path) -> None:
        """In a process of its own: the package is C++, where damage could be a crash."""
        code = """if True:
            import random, resource, sys
            from pyllama2.checkpoint.tokenizer_files import read_tokenizer_file
            from pyllama2.errors import CheckpointError
            from pyllama2.tokenizer import load_tokenizer
            data, path = open(sys.argv[1], "rb").read(), sys.argv[1] + ".damaged"
            rng = random.Random(0)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for i in range(800):
                changed = bytearray(data)
                for _ in range(rng.randrange(1, 4)):
                    changed[rng.randrange(len(changed))] = rng.randrange(256)
                if i % 3 == 0:
                    del changed[rng.randrange(len(changed)):]
                with open(path, "wb") as file:
                    file.write(changed)
                try:
                    tokenizer = load_tokenizer(read_tokenizer_file(path))
                    for id in tokenizer.encode("Once upon a time \\u6f22"):
                        tokenizer.token_bytes(id)
                except CheckpointError:
                    pass
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
        (tmp_path / "t").write_bytes(sentencepiece_model())
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert int(result.stdout) < 100_000  # KB


class TestLlama2c:
    def test_read(self, tmp_path: Path) -> None:
        tokenizer = load(tmp_path / "t.bin", llama2c_tokenizer(llama2c_pieces(PACKAGE)))
        spec = tokenizer.spec
        assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("sentencepiece", 1, (2,), True)
        assert tokenizer.vocab_size == 340
        assert pieces_of(SentencePieceProcessor(model_proto=spec.data)) == pieces_of(PACKAGE)
        assert read_tokenizer_file(tmp_path / "t.bin", 340) == spec

    def test_max_token_length_that_looks_like_a_sentencepiece_model(self, tmp_path: Path) -> None:
        pieces = llama2c_pieces(PACKAGE)
        pieces[300] = (b"abcdefghij", -1e6)  # 10 is the first byte of such a model, too
        data = llama2c_tokenizer(pieces)
        assert data[:4] == b"\n\0\0\0"
        assert load(tmp_path / "t.bin", data).vocab_size == 340

    def test_tok512(self, other_models: Path) -> None:
        tokenizer = load_tokenizer(read_tokenizer_file(other_models / "tok512.bin", 512))
        assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
        text = "  Tom said: “no!”\n\n漢字"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}

    @pytest.mark.slow
    def test_vocabulary_size(self, tmp_path: Path) -> None:
        data = llama2c_tokenizer(llama2c_pieces(PACKAGE))
        refuse(tmp_path / "t", data, "more than 339", vocab_size=339)
        refuse(tmp_path / "t", data, "340", "341", vocab_size=341)
        refuse(tmp_path / "t", llama2c_tokenizer(llama2c_pieces(PACKAGE)[:2]), "2 tokens")
        many = llama2c_pieces(PACKAGE)[:259] + [(b"x", 0.0)] * 299_742
        refuse(tmp_path / "t", llama2c_tokenizer(many), "more than 270000 tokens, which is too many")

    @pytest.mark.slow
    def test_truncation(self, tmp_path: Path) -> None:
        data = llama2c_tokenizer(llama2c_pieces(PACKAGE)[:300])
        assert load(tmp_path / "t", data).vocab_size == 300
        for length in [*range(200), *range(len(data) - 200, len(data))]:
            path = tmp_path / "t"
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError):
                read_tokenizer_file(path, 300)

    @pytest.mark.parametrize(
        ("token_id", "piece", "word"),
        [
            (0, (b"<s>", 0.0), "token 0"),
            (1, (b"\n</s>\n", 0.0), "token 1"),
            (2, (b"x", 0.0), "token 2"),
            (270, (b"", 0.0), "token 270"),
            (270, (b"\xff", 0.0), "token 270"),
            (270, (b"x", float("nan")), "token 270"),
            (270, (b"x", float("-inf")), "token 270"),
            (271, (b"<0x41>", 0.0), "damaged"),  # the text of token 68
        ],
    )
    def test_damaged_tokens(self, tmp_path: Path, token_id: int, piece: tuple[bytes, float], word: str) -> None:
        pieces = llama2c_pieces(PACKAGE)
        pieces[token_id] = piece
        refuse(tmp_path / "t", llama2c_tokenizer(pieces), word)

    def test_lying_lengths(self, tmp_path: Path) -> None:
        data = bytearray(llama2c_tokenizer(llama2c_pieces(PACKAGE)))
        for length in (0, -1, 6, 1 << 30, -(1 << 31)):
            struct.pack_into("<i", data, 8, length)
            refuse(tmp_path / "t", bytes(data), "token")
        refuse(tmp_path / "t", struct.pack("<i", 1 << 30) + bytes(data[4:]))
        refuse(tmp_path / "t", struct.pack("<i", 5) + bytes(8 << 20), "token 0")


class TestTokenizerJson:
    @pytest.mark.parametrize("metaspace", [False, True])
    def test_sentencepiece_in_its_spelling(self, tmp_path: Path, metaspace: bool) -> None:
        parts = huggingface_json(PACKAGE, metaspace)
        tokenizer = load(tmp_path / "t", json.dumps(parts))
        spec = tokenizer.spec
        assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("sentencepiece", 1, (2,), True)
        package = PackageTokenizer.from_str(json.dumps(parts))
        rng = random.Random(1)
        alphabet = ["Once upon", " a", "  ", "time", "é", "漢", "😀", "\n", "▁", "the", "[INST]", "capital", "x"]
        for _ in range(300):
            text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))
            assert tokenizer.encode(text) == PACKAGE.encode(text)
            if not (metaspace and text.startswith((" ", "▁"))):  # to which Metaspace gives no second space
                assert tokenizer.encode(text) == package.encode(text, add_special_tokens=False).ids
        assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}

    def test_as_gemma_spells_it(self, tmp_path: Path) -> None:
        """Its normalizer leaves no space for the pre-tokenizer to cut at."""
        parts = huggingface_json(PACKAGE)
        parts["normalizer"] = parts["normalizer"]["normalizers"][1]
        parts["pre_tokenizer"] = {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        }  # fmt: skip
        tokenizer, package = load(tmp_path / "t", json.dumps(parts)), PackageTokenizer.from_str(json.dumps(parts))
        assert not tokenizer.prepends_space
        for text in ("Once upon a time", "  a  b ", "é漢😀\n x"):
            assert tokenizer.encode(text) == package.encode(text, add_special_tokens=False).ids

    def test_bounds(self, tmp_path: Path) -> None:
        parts = huggingface_json(PACKAGE)
        for names, message in [
            ([f"<{i}>" for i in range(10_001)], "10001 special tokens are more than 10000"),
            (["x" * 129], "129 characters, more than 128"),
        ]:
            added = [{"id": 1000 + i, "content": name, "special": True} for i, name in enumerate(names)]
            refuse(tmp_path / "t", json.dumps(parts | {"added_tokens": added}), message)
        parts["model"]["merges"] = ["a b"] * 450_001
        refuse(tmp_path / "t", json.dumps(parts), "450001 merges are more than 450000")
        vocab = {f"{i:0100}": i for i in range(42_000)}
        refuse(
            tmp_path / "t", json.dumps(parts | {"model": {"byte_fallback": True, "vocab": vocab}}), "characters in all"
        )

    def test_merges_as_strings(self, tmp_path: Path) -> None:
        parts = huggingface_json(PACKAGE)
        parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
        assert load(tmp_path / "t", json.dumps(parts)).encode("Once upon") == PACKAGE.encode("Once upon")

    def test_without_a_dummy_prefix(self, tmp_path: Path) -> None:
        parts = huggingface_json(PACKAGE)
        del parts["normalizer"]["normalizers"][0]
        assert not load(tmp_path / "t", json.dumps(parts)).prepends_space
        parts = huggingface_json(PACKAGE, metaspace=True)
        parts["pre_tokenizer"]["prepend_scheme"] = "never"
        assert not load(tmp_path / "t", json.dumps(parts)).prepends_space

    def test_added_tokens(self, tmp_path: Path) -> None:
        parts = huggingface_json(PACKAGE)
        parts["added_tokens"] += [
            {"id": 340, "content": "<|im_end|>", "special": True},
            {"id": 341, "content": "<think>", "special": False},
        ]
        tokenizer = load(tmp_path / "t", json.dumps(parts))
        assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2, "<|im_end|>": 340}
        assert tokenizer.eos_ids == (2, 340)
        assert 341 in tokenizer.encode("a <think>")

    def test_byte_level(self, tmp_path: Path) -> None:
        tokenizer = load(tmp_path / "t", json.dumps(bpe_json()))
        assert tokenizer.spec.kind == "bpe"
        assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.eos_ids) == (None, False, (1, 3))
        path = tmp_path / "t"
        refuse(path, path.read_text(), "329", "300", vocab_size=300)

    def test_byte_level_that_says_byte_fallback(self, tmp_path: Path) -> None:
        parts = bpe_json()
        expected = load(tmp_path / "t", json.dumps(parts)).encode("Once upon é")
        parts["model"]["byte_fallback"] = True
        tokenizer = load(tmp_path / "t", json.dumps(parts))
        assert tokenizer.spec.kind == "bpe" and tokenizer.encode("Once upon é") == expected

    def test_merges_that_sentencepiece_would_not_do(self, tmp_path: Path) -> None:
        parts = huggingface_json(PACKAGE)
        merged = next(i for i, (left, right) in enumerate(parts["model"]["merges"]) if len(left + right) > 2)
        del parts["model"]["merges"][merged]
        refuse(tmp_path / "t", json.dumps(parts), "tokenizer.model")

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (("model", "type"), "Unigram"),
            (("model", "type"), 3),
            (("model", "vocab"), []),
            (("model", "merges"), {}),
            (("model", "merges", 0), ["a"]),
            (("model", "merges", 0), ["a", 1]),
            (("model", "merges", 0), "abc"),
            (("model", "merges", 0), ["", "ab"]),
            (("model", "merges", 0), ["q", "zz"]),
            (("model", "unk_token"), None),
            (("model", "unk_token"), "absent"),
            (("model", "byte_fallback"), "yes"),
            (("model", "end_of_word_suffix"), "</w>"),
            (("model", "vocab", "<s>"), "1"),
            (("model", "vocab", "<s>"), -1),
            (("model", "vocab", "<s>"), 2),
            (("model", "vocab", "<s>"), 1 << 30),
            (("model", "vocab", "<s>"), 1000),
            (("model", "vocab", "x" * 5000), 340),
            (("model", "vocab", "\ud800"), 340),
            (("added_tokens",), {}),
            (("added_tokens", 0), None),
            (("added_tokens", 0, "id"), None),
            (("added_tokens", 0, "id"), 1 << 40),
            (("added_tokens", 0, "content"), ""),
            (("added_tokens", 0, "content"), "<s>"),
            (("pre_tokenizer",), {"type": "Whitespace"}),
            (("normalizer",), {"type": "NFKC"}),
            (("normalizer", "normalizers", 0), {"type": "NFKC"}),
            (("normalizer", "normalizers", 1), {"type": "Lowercase"}),
            (("normalizer",), None),
        ],
    )
    def test_damaged(self, tmp_path: Path, where: tuple[str | int, ...], value: Any) -> None:
        parts: Any = huggingface_json(PACKAGE)
        target = parts
        for step in where[:-1]:
            target = target[step]
        target[where[-1]] = value
        refuse(tmp_path / "t", json.dumps(parts))

    def test_metaspace_that_splits(self, tmp_path: Path) -> None:
        for change in ({"split": True}, {"split": None}, {"replacement": "_"}):
            parts = huggingface_json(PACKAGE, metaspace=True)
            parts["pre_tokenizer"] |= change
            refuse(tmp_path / "t", json.dumps(parts), "pre_tokenizer")

    def test_not_json(self, tmp_path: Path) -> None:
        for text in ("{", "{]", "{}x", '{"model": {"type": "BPE", "type": "BPE"}}', '{"a":' * 50_000):
            refuse(tmp_path / "t", text, "JSON")
        refuse(tmp_path / "t", "{" + " " * (33 << 20), "limit")

    def test_other_json(self, tmp_path: Path) -> None:
        for text in ("{}", '{"model": {"vocab": {}}}', '{"model": {"type": "BPE"}}', '{"model": []}'):
            refuse(tmp_path / "t", text)


class TestOtherFiles:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"IQ== 0\nIg== 1\n", "tiktoken"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
            (b"PK\3\4" + bytes(100), "zip"),
            (b"hello", "plain text"),
            (b"\0" * 100, "zeros"),
            (b"", "empty"),
        ],
    )
    def test_what_it_looks_like(self, tmp_path: Path, data: bytes, words: str) -> None:
        refuse(tmp_path / "t", data, words)

    def test_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(CheckpointError, match=path.name):
                read_tokenizer_file(path)

    @pytest.mark.slow
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=60) | st.builds(bytes.__add__, st.sampled_from([b"\n", b"{", b"\7\0\0\0"]), st.binary()))
    def test_any_bytes(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "t").write_bytes(data)
        with pytest.raises(CheckpointError):
            read_tokenizer_file(tmp_path / "t")
