"""Both kinds of tokenizer: equal to their packages, special tokens never out of text, damaged data refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_tokenizers import (
    CORPUS,
    bpe_json,
    bpe_spec,
    sentencepiece_model,
    sentencepiece_spec,
    tiny_tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as PackageTokenizer

from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer, TokenizerSpec

SENTENCEPIECE = tiny_tokenizer("sentencepiece")
BPE = tiny_tokenizer("bpe")
both = pytest.mark.parametrize("tokenizer", [SENTENCEPIECE, BPE], ids=["sentencepiece", "bpe"])
# SentencePiece spells a space as U+2581, so that it cannot tell the two apart.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
CORPUS_TEXT = st.lists(st.sampled_from([*" ".join(CORPUS).split(" "), " ", "\n"])).map(" ".join)


class TestBoth:
    @pytest.mark.slow
    @both
    @settings(deadline=None)
    @given(text=TEXT | CORPUS_TEXT)
    def test_text_survives(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() in (text, " " + text)

    @both
    @settings(deadline=None)
    @given(text=st.text("<>|s/_imstarend unk", max_size=60))
    def test_no_special_token_comes_out_of_text(self, tokenizer: Tokenizer, text: str) -> None:
        names = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<0x41>"]
        text += "".join(names) + " ".join(names)
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == text

    @both
    def test_special_tokens(self, tokenizer: Tokenizer) -> None:
        id = tokenizer.special_tokens["</s>"]
        assert (id,) == tokenizer.eos_ids
        assert tokenizer.token_bytes(id) == b""
        assert tokenizer.piece(id) == "</s>"
        assert tokenizer.decode([*tokenizer.encode("a"), id]) == "a"

    @both
    def test_bytes_of_a_character_have_readable_names(self, tokenizer: Tokenizer) -> None:
        assert [tokenizer.piece(id) for id in tokenizer.encode("東")[-3:]] == ["<0xE6>", "<0x9D>", "<0xB1>"]

    @both
    @pytest.mark.parametrize("id", [-1, 10**6, 2**70])
    def test_ids_outside_the_vocabulary_are_refused(self, tokenizer: Tokenizer, id: int) -> None:
        for use in (tokenizer.token_bytes, tokenizer.piece, lambda id: tokenizer.decode([id])):
            with pytest.raises(ValueError, match=f"token id {id} is outside the vocabulary of {tokenizer.vocab_size}"):
                use(id)

    @both
    def test_lone_surrogates_are_refused_and_nul_is_text(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(ValueError, match=r"lone surrogate U\+D83D at position 2"):
            tokenizer.encode("ab\ud83dc")
        assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"

    @both
    def test_text_must_be_a_string(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(TypeError):
            tokenizer.encode(b"bytes")  # type: ignore[arg-type]

    @pytest.mark.parametrize("spec", [sentencepiece_spec(), bpe_spec()], ids=["sentencepiece", "bpe"])
    def test_size_of_the_models_vocabulary(self, spec: TokenizerSpec) -> None:
        own = load_tokenizer(spec).vocab_size
        padded = load_tokenizer(spec, own + 5)
        assert padded.vocab_size == own + 5
        assert padded.token_bytes(own + 4) == b""
        with pytest.raises(CheckpointError, match=str(own - 1)):
            load_tokenizer(spec, own - 1)

    @pytest.mark.parametrize("make", [lambda **c: TokenizerSpec(**{**vars(sentencepiece_spec()), **c}), bpe_spec])
    @pytest.mark.parametrize("change", [{"bos_id": 5000}, {"eos_ids": (1, 5000)}])
    def test_special_ids_beyond_the_vocabulary(self, make: Any, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match="token 5000 is beyond"):
            load_tokenizer(make(**change))


class TestBpe:
    PACKAGE = PackageTokenizer.from_str(json.dumps(bpe_json()))

    @settings(deadline=None)
    @given(st.text() | CORPUS_TEXT)
    def test_encodes_as_the_package(self, text: str) -> None:
        if not any(name in text for name in BPE.special_tokens):
            assert BPE.encode(text) == self.PACKAGE.encode(text, add_special_tokens=False).ids

    @settings(deadline=None)
    @given(st.lists(st.integers(0, BPE.vocab_size - 1)))
    def test_decodes_as_the_package(self, ids: list[int]) -> None:
        assert BPE.decode(ids) == self.PACKAGE.decode(ids, skip_special_tokens=True)

    def test_a_whole_word_that_is_special_stays_text(self) -> None:
        parts = bpe_json(("<s>", "</s>", "fox"))
        parts["model"]["ignore_merges"] = True  # whole words are then looked up in the vocabulary
        tokenizer = load_tokenizer(bpe_spec(parts))
        assert 2 not in tokenizer.encode("fox")
        assert tokenizer.decode(tokenizer.encode("fox")) == "fox"

    def test_added_tokens_are_text_unless_special_or_markers(self) -> None:
        parts = bpe_json()
        n = len(parts["model"]["vocab"])
        for i, name in enumerate(["<think>", "<|user|>", "<eot>"]):
            parts["added_tokens"].append({"id": n + i, "content": name, "special": False})
        tokenizer = load_tokenizer(bpe_spec(parts, eos_ids=(1, n + 2)))
        ids = tokenizer.encode("a<think>b<|user|><eot>")
        assert n in ids
        assert n + 1 not in ids
        assert n + 2 not in ids
        assert tokenizer.token_bytes(n) == b"<think>"
        assert tokenizer.decode(ids) == "a<think>b<|user|><eot>"

    @pytest.mark.parametrize("gap", [1, 1000])
    def test_ids_of_added_tokens_are_the_files(self, gap: int) -> None:
        parts = bpe_json()
        id = len(parts["model"]["vocab"]) + gap
        parts["added_tokens"].append({"id": id, "content": "<think>", "special": False})
        tokenizer = load_tokenizer(bpe_spec(parts))
        assert tokenizer.encode("<think>") == [id]
        assert tokenizer.vocab_size == id + 1

    def test_characters_without_a_token_are_named(self) -> None:
        parts = bpe_json()
        del parts["model"]["vocab"]["Ą"]  # byte 04
        del parts["model"]["vocab"]["ñ"]  # byte F1
        tokenizer = load_tokenizer(bpe_spec(parts))
        assert tokenizer.decode(tokenizer.encode("a🙂é")) == "a🙂é"
        with pytest.raises(ValueError, match=r"no token for the character '\\x04' \(bytes 04\)"):
            tokenizer.encode("ab\x04c")
        with pytest.raises(ValueError, match=r"\(bytes f1 80 80 80\)"):
            tokenizer.encode("\U00040000")

    @pytest.mark.slow
    def test_smollm2_lacks_21_bytes(self, smollm2_path: Path) -> None:
        from pyllama2.checkpoint.gguf import GgufCheckpoint

        checkpoint = GgufCheckpoint(smollm2_path)
        assert checkpoint.tokenizer is not None
        tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
        refused = set()
        for char in map(chr, range(0x80)):
            try:
                assert tokenizer.decode(tokenizer.encode(char)) == char
            except ValueError:
                refused.add(ord(char))
        assert refused == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D}
        assert tokenizer.encode("<|im_start|>a") == [44, 108, 306, 79, 3738, 108, 46, 81]

    @pytest.mark.slow
    def test_smollm2_reference(self, smollm2_path: Path, smollm2_reference: list[dict[str, Any]]) -> None:
        from pyllama2.checkpoint.gguf import GgufCheckpoint

        checkpoint = GgufCheckpoint(smollm2_path)
        assert checkpoint.tokenizer is not None
        tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.config.vocab_size)
        for entry in smollm2_reference:
            assert tokenizer.encode(entry["prompt"]) == entry["ids"]
            assert tokenizer.decode(entry["greedy"]) == entry["text"].removesuffix("<|im_end|>")

    def test_what_changes_texts_is_left_out(self) -> None:
        parts = bpe_json()
        parts["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        parts["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
        parts["model"]["dropout"] = 0.9
        assert load_tokenizer(bpe_spec(parts)).encode(CORPUS[0]) == BPE.encode(CORPUS[0])

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("model",), None, "'model' is missing"),
            (("model", "type"), "Unigram", "no byte-level BPE"),
            (("model", "vocab"), [], "'vocab' is missing"),
            (("model", "merges"), [["Ġ", "no such token"]], "damaged"),
            (("model", "merges"), [1], "damaged"),
            (("model", "vocab", "a"), -1, "has the id -1"),
            (("model", "vocab", "a"), 2**40, "has the id"),
            (("model", "vocab", "a"), True, "has the id True"),
            (("model", "vocab", "a"), 5, "one id to two tokens"),
            (("model", "vocab", ""), 999, "token ''"),
            (("pre_tokenizer",), None, "'pre_tokenizer' is missing"),
            (("pre_tokenizer",), {"type": "Metaspace"}, "no byte-level BPE"),
            (("pre_tokenizer", "pretokenizers"), 7, "'pretokenizers' is missing"),
            (("normalizer",), {"type": "Lowercase"}, "normalizer 'Lowercase'"),
            (("added_tokens", 0, "id"), 77, "has two ids"),
            (("added_tokens", 0, "content"), "new", "shares its id 0"),
            (("added_tokens", 0, "content"), "\ud800", "surrogates"),
            (("added_tokens", 0, "content"), "", "token ''"),
            (("added_tokens", 0), "<s>", "'content' is missing"),
            (("added_tokens", 0, "special"), "yes", "'special'"),
        ],
    )
    def test_bad_parts_are_refused(self, path: tuple[Any, ...], value: Any, message: str) -> None:
        parts: Any = bpe_json()
        target = parts
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(bpe_spec(parts))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"\xff\xfe",
            b"<html>",
            b"[" * 100_000,
            b'{"model":' * 100_000,
            b"[" + b"0," * 1_600_000 + b"0]",
            b" " * (33 << 20),
            json.dumps(bpe_json()).encode()[:-1],
        ],
        ids=["empty", "null", "no_utf8", "html", "deep_list", "deep_object", "many_items", "long", "cut"],
    )
    def test_data_that_is_no_tokenizer(self, data: bytes) -> None:
        with pytest.raises(CheckpointError):
            load_tokenizer(bpe_spec(data=data))


# Run in a process of its own, which a crash inside of a package would end.
MUTANTS = """
import random, sys
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import TokenizerSpec
kind, base = sys.argv[1], open(sys.argv[2], "rb").read()
refused = 0
for seed in range(400):
    r = random.Random(seed)
    data = bytearray(base)
    if seed % 4 == 0:
        del data[r.randrange(len(data)) :]
    elif seed % 4 == 1:
        at = r.randrange(len(data))
        del data[at : at + r.randrange(1, 40)]
    else:
        for _ in range(r.choice([1, 1, 4, 16])):
            data[r.randrange(len(data))] = r.randrange(256)
    try:
        tokenizer = load_tokenizer(TokenizerSpec(kind, bytes(data), 1, (2,), True), 400)
        ids = tokenizer.encode("the little fox <s> \\0 é 東京 12")
        tokenizer.decode(ids), [tokenizer.piece(id) for id in range(tokenizer.vocab_size)]
    except CheckpointError:
        refused += 1
    except ValueError as error:
        assert "no token for the character" in str(error), error
print(refused)
"""


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("sentencepiece", sentencepiece_model()),
        # A normalization map is a table of offsets inside of the model, a place to hurt the package.
        ("sentencepiece", sentencepiece_model(normalization_rule_name="nmt_nfkc", byte_fallback=False, vocab_size=80)),
        ("bpe", bpe_spec().data),
    ],
    ids=["sentencepiece", "sentencepiece_nfkc", "bpe"],
)
def test_mutants_are_read_or_refused(kind: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(data)
    command = [sys.executable, "-c", MUTANTS, kind, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "panicked" not in done.stderr
    assert int(done.stdout) > 100
