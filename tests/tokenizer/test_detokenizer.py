"""Streamed text equals the text decoded at once, whatever the tokens; no character is torn."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_tokenizers import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer, TokenizerSpec
from pyllama2.tokenizer.detokenizer import Detokenizer

# SentencePiece spells a space as U+2581, so that it cannot tell the two apart.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("sentencepiece", "bpe")}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def stream(tokenizer: Tokenizer, ids: list[int], prompt_ids: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt_ids or [])
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.slow
@kinds
@settings(deadline=None)
@given(data=st.data())
def test_any_ids_stream_to_their_decoded_text(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@kinds
@settings(deadline=None)
@given(text=TEXT, split=st.integers(0, 99))
def test_prompt_and_continuation_join_to_the_whole(kind: str, text: str, split: int) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    prompt, rest = ids[: split % (len(ids) + 1)], ids[split % (len(ids) + 1) :]
    prompt_detokenizer = Detokenizer(tokenizer)
    prompt_text = "".join(map(prompt_detokenizer.push, prompt))  # without finish(): a torn character waits
    assert prompt_text + "".join(stream(tokenizer, rest, prompt)) == text


@kinds
def test_a_character_comes_whole_with_its_last_byte(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("🙂東")
    pieces = stream(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["🙂", "東"]
    assert len(ids) >= 7  # four and three bytes: the vocabulary has neither character


@kinds
def test_an_incomplete_character_ends_as_a_replacement(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("a🙂")[:-1]
    assert stream(tokenizer, ids)[-1] == "\ufffd"
    assert tokenizer.decode(ids) == "a\ufffd"


def test_only_a_whole_text_drops_the_leading_space() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode("the fox")
    assert "".join(stream(tokenizer, ids)) == "the fox"
    assert "".join(stream(tokenizer, [1, *ids])) == "the fox"  # BOS is no text
    assert "".join(stream(tokenizer, ids, [1])) == "the fox"  # nor is an empty prompt
    assert "".join(stream(tokenizer, ids, tokenizer.encode("a"))) == " the fox"
    assert "".join(stream(tokenizer, tokenizer.encode("  two"))) == "  two"


def test_special_tokens_add_no_text() -> None:
    tokenizer = TOKENIZERS["bpe"]
    ids = [2, *tokenizer.encode("a"), 3, *tokenizer.encode("b"), 1]
    assert "".join(stream(tokenizer, ids)) == "ab"


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        Detokenizer(TOKENIZERS["bpe"]).push(10**6)


def test_llama2_streams_like_sentencepiece_decodes(other_models: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    data = (other_models / "llama2-tokenizer.model").read_bytes()
    tokenizer = load_tokenizer(TokenizerSpec("sentencepiece", data, 1, (2,), True))
    package = SentencePieceProcessor(model_proto=data)

    @settings(deadline=None)
    @given(TEXT)
    def check(text: str) -> None:
        ids = package.encode(text)
        assert "".join(stream(tokenizer, ids)) == package.decode(ids) == text

    check()
