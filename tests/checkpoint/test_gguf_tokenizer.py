"""The tokenizers in GGUF files encode as those they were written from."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import helpers.gguf_files as gguf_files
import pytest
import tokenizers
from helpers.gguf_files import write_gguf
from helpers.tiny_tokenizers import SPECIAL, bpe_json, sentencepiece_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pyllama2.checkpoint.gguf import GgufCheckpoint
from pyllama2.checkpoint.gguf_header import read_header
from pyllama2.checkpoint.gguf_tokenizer import read_tokenizer
from pyllama2.errors import CheckpointError
from pyllama2.storage.mapped import MappedFile
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer, TokenizerSpec

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
VOCAB_SIZE = 400
TEXTS = st.text(max_size=40) | st.text("ab tofxs<|>[/]_im0123456789\u2581\n", max_size=60)


def read(path: Path, keys: dict[str, Any], vocab_size: int = VOCAB_SIZE) -> TokenizerSpec | None:
    write_gguf(path, {}, {"general.name": "t"} | {f"tokenizer.{key}": value for key, value in keys.items()})
    return read_tokenizer(read_header(MappedFile(path)).metadata, vocab_size)


def spec_of(path: Path, keys: dict[str, Any]) -> TokenizerSpec:
    spec = read(path, keys)
    assert spec is not None
    return spec


def sentencepiece_keys(model: bytes) -> dict[str, Any]:
    """What converters write of a SentencePiece model."""
    processor = SentencePieceProcessor(model_proto=model)
    ids = range(processor.vocab_size())
    types = []
    for id in ids:
        is_type = {UNKNOWN: processor.is_unknown, CONTROL: processor.is_control, BYTE: processor.is_byte}
        types.append(next((type for type, check in is_type.items() if check(id)), NORMAL))
    return {
        "ggml.model": "llama",
        "ggml.tokens": [processor.id_to_piece(id) for id in ids],
        "ggml.scores": [processor.get_score(id) for id in ids],
        "ggml.token_type": types,
        "ggml.bos_token_id": processor.bos_id(),
        "ggml.eos_token_id": processor.eos_id(),
        "ggml.unknown_token_id": processor.unk_id(),
    }


def bpe_keys() -> dict[str, Any]:
    """What converters write of the tiny byte-level BPE."""
    parts = bpe_json()
    vocab = parts["model"]["vocab"]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": sorted(vocab, key=vocab.__getitem__),
        "ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in sorted(vocab, key=vocab.__getitem__)],
        "ggml.merges": [" ".join(merge) for merge in parts["model"]["merges"]],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
    }


@functools.cache
def pair(kind: str, folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer read from a GGUF file, and the one it was written from."""
    keys = sentencepiece_keys(sentencepiece_model()) if kind == "sentencepiece" else bpe_keys()
    spec = spec_of(folder / kind, keys)
    data = sentencepiece_model() if kind == "sentencepiece" else json.dumps(bpe_json()).encode()
    original = TokenizerSpec(spec.kind, data, spec.bos_id, spec.eos_ids, spec.add_bos)
    return load_tokenizer(spec, VOCAB_SIZE), load_tokenizer(original, VOCAB_SIZE)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_same_tokens_as_the_original(tmp_path_factory: pytest.TempPathFactory, kind: str, text: str) -> None:
    ours, original = pair(kind, tmp_path_factory.getbasetemp())
    ids = ours.encode(text)
    assert ids == original.encode(text)
    assert ours.decode(ids) == original.decode(ids)
    assert ours.special_tokens == original.special_tokens


def test_sentencepiece_spec(tmp_path: Path) -> None:
    keys = sentencepiece_keys(sentencepiece_model())
    spec = spec_of(tmp_path / "m", keys)
    assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("sentencepiece", 1, (2,), True)
    assert spec_of(tmp_path / "m", keys | {"ggml.add_bos_token": False}).add_bos is False
    assert spec_of(tmp_path / "m", keys | {"ggml.bos_token_id": None}).add_bos is False
    assert spec_of(tmp_path / "m", keys | {"ggml.eot_token_id": 5}).eos_ids == (2, 5)
    assert spec_of(tmp_path / "m", keys | {"ggml.eot_token_id": 2}).eos_ids == (2,)


def test_space_prefix(tmp_path: Path) -> None:
    keys = sentencepiece_keys(sentencepiece_model())
    for value, prepends in [(None, True), (True, True), (False, False)]:
        tokenizer = load_tokenizer(spec_of(tmp_path / "m", keys | {"ggml.add_space_prefix": value}))
        assert tokenizer.prepends_space == prepends
        assert tokenizer.piece(tokenizer.encode("the")[0]).startswith(" ") == prepends


def test_types_of_pieces_are_kept(tmp_path: Path) -> None:
    """User-defined pieces come from text, control and unused ones do not."""
    keys = sentencepiece_keys(sentencepiece_model())
    n = len(keys["ggml.tokens"])
    keys["ggml.tokens"] += ["<tool>", "<|turn|>", "<pad>", "<unused>"]
    keys["ggml.scores"] += [0.0] * 4
    keys["ggml.token_type"] += [USER_DEFINED, USER_DEFINED, CONTROL, UNUSED]
    tokenizer = load_tokenizer(spec_of(tmp_path / "m", keys))
    assert n in tokenizer.encode("a <tool> b")
    assert not {n + 1, n + 2, n + 3} & set(tokenizer.encode("<|turn|> <pad> <unused>"))
    assert tokenizer.special_tokens.items() >= {"<|turn|>": n + 1, "<pad>": n + 2}.items()


def test_unknown_piece_under_another_type(tmp_path: Path) -> None:
    """Some converters call <unk> a control token; its id then has a key."""
    keys = sentencepiece_keys(sentencepiece_model())
    original = spec_of(tmp_path / "m", keys)
    keys["ggml.token_type"][0] = CONTROL
    assert spec_of(tmp_path / "m", keys) == original
    with pytest.raises(CheckpointError, match="should have one unknown token"):
        read(tmp_path / "m", keys | {"ggml.unknown_token_id": None})
    keys["ggml.token_type"][:2] = [UNKNOWN, UNKNOWN]
    with pytest.raises(CheckpointError, match="should have one unknown token"):
        read(tmp_path / "m", keys)


def test_text_cannot_end_a_sequence(tmp_path: Path) -> None:
    """A file may list its end of text as a normal piece, which text could become."""
    keys = sentencepiece_keys(sentencepiece_model())
    keys["ggml.token_type"][2] = NORMAL
    keys["ggml.tokens"] += ["</", "s>"]
    keys["ggml.scores"] += [100.0, 100.0]
    keys["ggml.token_type"] += [NORMAL, NORMAL]
    keys["ggml.scores"][2] = 100.0
    tokenizer = load_tokenizer(spec_of(tmp_path / "m", keys))
    assert 2 not in tokenizer.encode("</s>")
    assert tokenizer.special_tokens["</s>"] == 2


def test_llama2_vocabulary(tmp_path: Path, other_models: Path) -> None:
    data = (other_models / "llama2-tokenizer.model").read_bytes()
    keys = sentencepiece_keys(data)
    write_gguf(tmp_path / "m", {}, {f"tokenizer.{key}": value for key, value in keys.items()})
    spec = read_tokenizer(read_header(MappedFile(tmp_path / "m")).metadata, 32000)
    assert spec is not None and (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), True)
    ours = load_tokenizer(spec, 32000)
    processor = SentencePieceProcessor(model_proto=data)
    for text in [
        "Hello world",
        "  two  spaces ",
        "na\u00efve \u6771\u4eac \U0001f642\n\tx",
        "[INST] hi [/INST]",
        "</s><s>",
        "",
    ]:
        assert ours.encode(text) == processor.encode(text)


def test_bpe_spec(tmp_path: Path) -> None:
    keys = bpe_keys()
    spec = spec_of(tmp_path / "m", keys)
    assert (spec.kind, spec.bos_id, spec.eos_ids, spec.add_bos) == ("bpe", 0, (1,), False)
    assert spec_of(tmp_path / "m", keys | {"ggml.add_bos_token": True}).add_bos is True
    assert spec_of(tmp_path / "m", keys | {"ggml.pre": "llama-bpe"}).add_bos is True
    assert spec_of(tmp_path / "m", keys | {"ggml.eot_token_id": 3}).eos_ids == (1, 3)
    assert spec_of(tmp_path / "m", keys | {"ggml.eos_token_id": None}).eos_ids == ()


def test_bpe_is_a_tokenizer_json(tmp_path: Path) -> None:
    """The tokenizers package reads it as it is, with the ids of the file, and decodes it."""
    keys = bpe_keys()
    package = tokenizers.Tokenizer.from_str(spec_of(tmp_path / "m", keys).data.decode())
    original = tokenizers.Tokenizer.from_str(json.dumps(bpe_json()))
    text = "Once upon a time, 1234 <s> foxes \u00e9\n"
    assert package.encode(text).ids == original.encode(text).ids
    assert package.decode(package.encode(text).ids) == original.decode(original.encode(text).ids)
    assert [package.id_to_token(id) for id in range(package.get_vocab_size())] == keys["ggml.tokens"]


def test_special_tokens_of_bpe(tmp_path: Path) -> None:
    keys = bpe_keys()
    n = len(keys["ggml.tokens"])
    keys["ggml.tokens"] += ["<tool>", "[PAD]", "<unk>"]
    keys["ggml.token_type"] += [USER_DEFINED, UNUSED, UNKNOWN]
    spec = spec_of(tmp_path / "m", keys)
    added = {token["id"]: token for token in json.loads(spec.data)["added_tokens"]}
    assert set(added) == {0, 1, 2, 3, n, n + 2}
    assert all(token["special"] == (id != n) and not token["normalized"] for id, token in added.items())
    tokenizer = load_tokenizer(spec, VOCAB_SIZE)
    ids = tokenizer.encode("<s><tool>[PAD]<unk><|im_end|>")
    assert {0, 1, 2, 3, n, n + 1, n + 2} & set(ids) == {n}  # a user-defined token is text
    assert tokenizer.decode(ids) == "<s><tool>[PAD]<unk><|im_end|>"
    assert tokenizer.token_bytes(n + 1) == b""


# What each rule makes of a text, from the regular expressions of GPT-2 and Llama-3.
PIECES = {
    "smollm": [
        "I",
        "'ll",
        "\u0120pay",
        "\u0120",
        "1",
        "2",
        "3",
        "4",
        "\u0120dollars",
        "!!",
        "\u010a\u010a\u0120",
        "\u0120ok",
    ],
    "gpt-2": ["I", "'ll", "\u0120pay", "\u01201234", "\u0120dollars", "!!", "\u010a\u010a\u0120", "\u0120ok"],
    "llama-bpe": [
        "I",
        "'ll",
        "\u0120pay",
        "\u0120",
        "123",
        "4",
        "\u0120dollars",
        "!!\u010a\u010a",
        "\u0120",
        "\u0120ok",
    ],
}


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "default", None, "llama-bpe"])
def test_pre_tokenizers(tmp_path: Path, pre: str | None) -> None:
    spec = spec_of(tmp_path / "m", bpe_keys() | {"ggml.pre": pre})
    package = tokenizers.Tokenizer.from_str(spec.data.decode())
    pieces = [piece for piece, _ in package.pre_tokenizer.pre_tokenize_str("I'll pay 1234 dollars!!\n\n  ok")]
    assert pieces == PIECES.get(pre or "", PIECES["gpt-2"])


def test_whole_tokens_come_first_in_llama3(tmp_path: Path) -> None:
    """llama-bpe looks a piece up before it merges; without merges, a token is found only so."""
    keys = bpe_keys()
    keys["ggml.tokens"] += ["\u0120zzz"]
    keys["ggml.token_type"] += [NORMAL]
    id = len(keys["ggml.tokens"]) - 1
    assert load_tokenizer(spec_of(tmp_path / "m", keys | {"ggml.pre": "llama-bpe"})).encode("a zzz")[-1] == id
    assert id not in load_tokenizer(spec_of(tmp_path / "m", keys)).encode("a zzz")


@pytest.mark.parametrize("model", [None, "no_vocab", "none"])
def test_no_tokenizer(tmp_path: Path, model: str | None) -> None:
    assert read(tmp_path / "m", {"ggml.model": model}) is None


BPE_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "wordpiece": ({"ggml.model": "bert"}, "a tokenizer of type 'bert' is not supported"),
    "pre": ({"ggml.pre": "deepseek-llm"}, "the pre-tokenizer 'deepseek-llm' is not supported"),
    "no_tokens": ({"ggml.tokens": None}, "lacks the key tokenizer.ggml.tokens"),
    "no_types": ({"ggml.token_type": None}, "lacks the key tokenizer.ggml.token_type"),
    "no_merges": ({"ggml.merges": None}, "lacks the key tokenizer.ggml.merges"),
    "numbers": ({"ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens should be an array of type str"),
    "fewer_types": ({"ggml.token_type": [1, 1]}, "tokens have 2 types"),
    "type_0": ({"ggml.tokens": ["a", "b"], "ggml.token_type": [1, 0]}, "token 1 is of the unknown type 0"),
    "type_7": ({"ggml.tokens": ["a", "b"], "ggml.token_type": [7, 1]}, "token 0 is of the unknown type 7"),
    "float_types": ({"ggml.tokens": ["a"], "ggml.token_type": [1.0]}, "token_type should be an array of type int"),
    "empty": ({"ggml.tokens": ["a", ""], "ggml.token_type": [1, 1]}, "token 1 is empty"),
    "twice": ({"ggml.tokens": ["a", "b", "a"], "ggml.token_type": [1, 1, 1]}, "the token 'a' appears twice"),
    "bos": ({"ggml.bos_token_id": 330}, "bos_token_id is 330, but there are 330 tokens"),
    "eos": ({"ggml.eos_token_id": 4294967295}, "eos_token_id is 4294967295, but there are 330 tokens"),
    "eot": ({"ggml.eot_token_id": 9999}, "eot_token_id is 9999"),
    "bos_is_text": ({"ggml.bos_token_id": "<s>"}, "bos_token_id should be of type int"),
    "add_bos_is_number": ({"ggml.add_bos_token": 1}, "add_bos_token should be of type bool"),
    "merge_of_one": ({"ggml.merges": ["a"]}, "the merge 'a' does not join two tokens"),
    "merge_of_nothing": ({"ggml.merges": [" a"]}, "the merge ' a' does not join two tokens"),
    "merge_of_unknown": ({"ggml.merges": ["a \u2603"]}, "does not join two tokens"),
    "merge_into_unknown": ({"ggml.merges": ["z q"]}, "the merge 'z q' does not join two tokens"),
}


@pytest.mark.parametrize("case", BPE_REFUSALS)
def test_refused_bpe(tmp_path: Path, case: str) -> None:
    changes, message = BPE_REFUSALS[case]
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "m", bpe_keys() | changes)


SENTENCEPIECE_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no_scores": ({"ggml.scores": None}, "lacks the key tokenizer.ggml.scores"),
    "fewer_scores": ({"ggml.scores": [0.0]}, "340 tokens have 1 scores"),
    "nan_score": ({"ggml.scores": [float("nan")] * 340}, "token 0 has the score nan"),
    "infinite_score": ({"ggml.scores": [0.0] * 339 + [float("-inf")]}, "token 339 has the score -inf"),
    "unknown_id": (
        {"ggml.unknown_token_id": 340, "ggml.token_type": [NORMAL] * 340},
        "unknown_token_id is 340, but there are 340 tokens",
    ),
}


@pytest.mark.parametrize("case", SENTENCEPIECE_REFUSALS)
def test_refused_sentencepiece(tmp_path: Path, case: str) -> None:
    changes, message = SENTENCEPIECE_REFUSALS[case]
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "m", sentencepiece_keys(sentencepiece_model()) | changes)


def test_scores_beyond_float32(tmp_path: Path) -> None:
    """float64 scores are read, but a SentencePiece model cannot hold all of them."""
    for score in (1e38, -1e39):
        pairs = [
            gguf_files.pair("tokenizer.ggml.model", "llama"),
            gguf_files.array_pair("tokenizer.ggml.tokens", 8, 1, gguf_files.string("<unk>")),
            gguf_files.array_pair("tokenizer.ggml.token_type", 4, 1, struct.pack("<I", UNKNOWN)),
            gguf_files.array_pair("tokenizer.ggml.scores", 12, 1, struct.pack("<d", score)),
        ]
        (tmp_path / "m").write_bytes(gguf_files.file_bytes(pairs))
        metadata = read_header(MappedFile(tmp_path / "m")).metadata
        if score == 1e38:
            spec = read_tokenizer(metadata, 1)
            assert spec is not None
            assert SentencePieceProcessor(model_proto=spec.data).get_score(0) == pytest.approx(1e38)
        else:
            with pytest.raises(CheckpointError, match=r"token 0 has the score -1e\+39"):
                read_tokenizer(metadata, 1)


def test_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 330 strings, at most 329 are possible"):
        read(tmp_path / "m", bpe_keys(), vocab_size=329)
    spec = read(tmp_path / "m", bpe_keys(), vocab_size=330)
    assert spec is not None and len(json.loads(spec.data)["model"]["vocab"]) == 330


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_too_many_special_tokens(tmp_path: Path, kind: str) -> None:
    count = 10_001
    keys = sentencepiece_keys(sentencepiece_model()) if kind == "sentencepiece" else bpe_keys()
    keys |= {"ggml.tokens": [str(i) for i in range(count)], "ggml.token_type": [CONTROL] * count}
    with pytest.raises(CheckpointError, match="10001 special tokens are more than 10000"):
        read(tmp_path / "m", keys, vocab_size=count)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_special_tokens_of_any_length(tmp_path: Path, kind: str) -> None:
    keys = sentencepiece_keys(sentencepiece_model()) if kind == "sentencepiece" else bpe_keys()
    keys["ggml.tokens"][3], keys["ggml.token_type"][3] = "x" * 129, USER_DEFINED
    with pytest.raises(CheckpointError, match="has 129 characters, more than 128"):
        read(tmp_path / "m", keys)


@pytest.mark.slow
def test_smollm2(smollm2_path: Path, smollm2_reference: list[dict[str, Any]]) -> None:
    checkpoint = GgufCheckpoint(smollm2_path)
    spec = checkpoint.tokenizer
    assert spec is not None and (spec.bos_id, spec.eos_ids, spec.add_bos) == (1, (2,), False)
    package = tokenizers.Tokenizer.from_str(spec.data.decode())
    ours = load_tokenizer(spec, checkpoint.config.vocab_size)
    assert ours.special_tokens["<|im_end|>"] == 2 and len(ours.special_tokens) == 17
    for case in smollm2_reference:
        assert package.encode(case["prompt"]).ids == case["ids"]
        assert ours.encode(case["prompt"]) == case["ids"]
