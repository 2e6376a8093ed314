"""SentencePiece tokenizers: equal to the package, special pieces never out of text, what explodes is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from helpers.tiny_tokenizers import CORPUS, sentencepiece_model, sentencepiece_spec, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer, TokenizerSpec
from pyllama2.tokenizer.sentencepiece_proto import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    build_model,
    read_model_proto,
)

SENTENCEPIECE = tiny_tokenizer("sentencepiece")
CORPUS_TEXT = st.lists(st.sampled_from([*" ".join(CORPUS).split(" "), " ", "\n"])).map(" ".join)


class TestSentencePiece:
    PACKAGE = SentencePieceProcessor(model_proto=sentencepiece_model())

    @settings(deadline=None)
    @given(st.text() | CORPUS_TEXT)
    def test_encodes_as_the_package(self, text: str) -> None:
        assert SENTENCEPIECE.encode(text) == self.PACKAGE.encode(text)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 339)))
    def test_decodes_as_the_package(self, ids: list[int]) -> None:
        text, expected = SENTENCEPIECE.decode(ids), self.PACKAGE.decode(ids)
        if "\ufffd" not in text + expected:  # of which the two put different numbers
            assert text == expected

    def test_llama2(self, other_models: Path) -> None:
        data = (other_models / "llama2-tokenizer.model").read_bytes()
        tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2,), True), 32000)
        package = SentencePieceProcessor(model_proto=data)
        assert tokenizer.encode("Hello world") == [15043, 3186]
        assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}
        assert tokenizer.prepends_space

        @settings(deadline=None)
        @given(st.text() | CORPUS_TEXT | st.text("<>s/[]INT 0x41"))
        def check(text: str) -> None:
            assert tokenizer.encode(text) == package.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == package.decode(package.encode(text))

        check()

    def test_user_defined_pieces_are_text_unless_they_are_markers(self) -> None:
        data = sentencepiece_model(user_defined=("<h1>", "<|im_start|>", "<end>"))
        package = SentencePieceProcessor(model_proto=data)
        end = package.piece_to_id("<end>")
        tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2, end), True))
        assert set(tokenizer.special_tokens) == {"<s>", "</s>", "<|im_start|>", "<end>"}
        text = "a<h1>b<|im_start|>c<end>"
        assert package.piece_to_id("<|im_start|>") in package.encode(text)
        ids = tokenizer.encode(text)
        assert package.piece_to_id("<h1>") in ids
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == text

    def test_without_a_dummy_prefix(self) -> None:
        data = sentencepiece_model(add_dummy_prefix=False)
        tokenizer = load_tokenizer(sentencepiece_spec(data))
        assert not tokenizer.prepends_space
        assert tokenizer.decode(tokenizer.encode(" fox")) == " fox"

    def test_only_the_first_space_of_a_text_is_dropped(self) -> None:
        fox = SENTENCEPIECE.encode("fox")
        assert SENTENCEPIECE.decode([1, *fox, 2, 1, *fox]) == "fox fox"

    def test_unknown_characters(self) -> None:
        data = sentencepiece_model(byte_fallback=False, vocab_size=80)
        tokenizer = load_tokenizer(sentencepiece_spec(data))
        package = SentencePieceProcessor(model_proto=data)
        ids = tokenizer.encode("東 fox")
        assert package.unk_id() in ids
        assert tokenizer.decode(ids) == package.decode(ids)

    def test_number_of_pieces(self) -> None:
        assert read_model_proto(sentencepiece_model()).n_pieces == self.PACKAGE.get_piece_size() == 340

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "no pieces"),
            (b"<!DOCTYPE html><html>", "SentencePiece model"),
            (b"\x0a\xff\xff\xff\xff\x0f", "is longer than"),
            (b"\x0a\x05abc", "is longer than"),
            (b"\x0a", "bad number at byte 1"),
            (b"\x0a" + b"\xff" * 10, "bad number at byte 1"),
            (b"\x0a\x80\x00", "bad number at byte 1"),
            (b"\x0b", "wire type 3"),
            (b"\x8a\x80\x80\x80\x10\x00", "bad field number at byte 0"),  # 1 in 32 bits, as some readers see it
            (b"\x0a\x03\x18\x84\x02", "piece of unknown type at byte 3"),
            (bytes(17 << 20), "too many"),
            (b"\x0a\x00" * 270_001, "more than 270000 pieces"),
        ],
    )
    def test_malformed_protobuf(self, data: bytes, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_model_proto(data)
        with pytest.raises(CheckpointError):
            load_tokenizer(sentencepiece_spec(data))

    @settings(deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        with contextlib.suppress(ValueError):
            assert read_model_proto(data).n_pieces > 0

    def test_special_pieces_are_few_and_short(self) -> None:
        pieces = [("<unk>", 0.0, UNKNOWN), ("a", 0.0, NORMAL)]

        def load(*more: tuple[str, float, int]) -> Tokenizer:
            data = build_model([*pieces, *more], unk_id=0, bos_id=None, eos_id=None)
            return load_tokenizer(TokenizerSpec("sentencepiece", data, None, (), False))

        for kind in (CONTROL, USER_DEFINED):
            names = [(f"<{i}>", 0.0, kind) for i in range(10_001)]
            with pytest.raises(CheckpointError, match="10001 special tokens are more than 10000"):
                load(*names)
            assert load(*names[:-1]).vocab_size == 10_002
            with pytest.raises(CheckpointError, match=r"the special token 'x+'\.\.\. has 129 characters"):
                load(("x" * 129, 0.0, kind))
            assert load(("x" * 128, 0.0, kind)).vocab_size == 3
        with pytest.raises(CheckpointError, match=r"the piece 'x+'\.\.\. of 1025 characters is longer than 1024"):
            load(("x" * 1025, 0.0, NORMAL))

    def test_a_normalizer_that_explodes_is_refused(self, tmp_path: Path) -> None:
        """One character of a text could become megabytes, of which a thousand fill all memory."""
        rules = tmp_path / "rules.tsv"
        for length, message in [(60, None), (65, "makes 65 bytes of one character, more than 64")]:
            rules.write_text("61\t" + " ".join(["62"] * length) + "\n")
            data = sentencepiece_model(normalization_rule_tsv=str(rules))
            sentencepiece_model.cache_clear()  # the file has another content next time
            if message is None:
                assert load_tokenizer(sentencepiece_spec(data)).encode("a")
                continue
            with pytest.raises(CheckpointError, match=message):
                load_tokenizer(sentencepiece_spec(data))

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            (b"\x12\x84\x02\xe2\x02\x80\x02" + b"x" * 256, "unk_surface of 256 bytes"),
            (b"\x22\x81\x80\x04" + b"\0" * 65537, "self_test_data of 65537 bytes"),
        ],
    )
    def test_other_fields_that_explode(self, field: bytes, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(sentencepiece_spec(sentencepiece_model() + field))

    def test_a_vocabulary_too_large_is_refused_before_the_package_sees_it(self) -> None:
        piece = b"\x0a\x03\x0a\x01a"  # the same piece again and again: the package would say "already defined"
        with pytest.raises(CheckpointError, match="has 100000 tokens, the model only 32000"):
            load_tokenizer(sentencepiece_spec(piece * 100_000), 32000)
