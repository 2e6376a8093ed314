"""What of a tokenizer.json reaches the tokenizers package, and what is too much of it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from helpers.tiny_tokenizers import bpe_json, bpe_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as PackageTokenizer

from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer

N_TOKENS = len(bpe_json()["model"]["vocab"])


def with_added(*tokens: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The tiny tokenizer with more added tokens behind its own."""
    parts = bpe_json() | changes
    added = [{"id": N_TOKENS + i, "special": False} | token for i, token in enumerate(tokens)]
    return parts | {"added_tokens": [*parts["added_tokens"], *added]}


def refuse(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(bpe_spec(parts))
    assert len(str(caught.value)) < 320


class TestBounds:
    @pytest.mark.slow
    @pytest.mark.parametrize("special", [True, False])
    def test_added_tokens(self, special: bool) -> None:
        own = len(bpe_json()["added_tokens"])
        tokens = [{"content": f"<{i}>", "special": special} for i in range(10_001 - own)]
        refuse(with_added(*tokens), "10001 special tokens are more than 10000")
        assert load_tokenizer(bpe_spec(with_added(*tokens[:-1]))).vocab_size == N_TOKENS + 10_000 - own

    def test_length_of_added_tokens(self) -> None:
        refuse(with_added({"content": "x" * 129}), "the special token 'x+'... has 129 characters, more than 128")
        assert load_tokenizer(bpe_spec(with_added({"content": "x" * 128}))).encode("x" * 128) == [N_TOKENS]

    def test_length_of_tokens(self) -> None:
        parts = bpe_json()
        parts["model"]["vocab"]["x" * 1025] = N_TOKENS
        refuse(parts, "token 'x+'... of 1025 characters is longer than 1024")

    def test_characters_of_all_tokens(self) -> None:
        parts = bpe_json()
        parts["model"]["vocab"] |= {f"{i:01000}": N_TOKENS + i for i in range(4200)}
        refuse(parts, "characters in all, more than 4194304")

    @pytest.mark.slow
    def test_number_of_tokens_and_merges(self) -> None:
        parts = bpe_json()
        parts["model"]["vocab"] = {str(i): i for i in range(300_001)}
        refuse(parts | {"added_tokens": []}, "300001 tokens are more than 270000")
        parts = bpe_json()
        parts["model"]["merges"] = ["a b"] * 450_001
        refuse(parts, "450001 merges are more than 450000")

    def test_steps_of_the_normalizer(self) -> None:
        steps = {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5}
        refuse(bpe_json() | {"normalizer": steps}, "its normalizer has 5 steps, of which at most 4 are supported")

    def test_ends_of_text(self) -> None:
        with pytest.raises(CheckpointError, match="10001 tokens that end a text are more than 10000"):
            load_tokenizer(bpe_spec(eos_ids=(1,) * 10_001))

    @pytest.mark.slow
    def test_a_word_that_would_make_an_expression_panic(self, capfd: pytest.CaptureFixture[str]) -> None:
        """At ten million spaces the package's library for regular expressions gives up, with a panic."""
        tokenizer = load_tokenizer(bpe_spec())
        for text in (" " * 12_000_000, "x " + "a" * 1_000_001):
            with pytest.raises(ValueError, match="without a space between them, or spaces only, are too many"):
                tokenizer.encode(text)
        assert tokenizer.encode("a " * 600_000)
        assert capfd.readouterr().err == ""


class TestWhatIsLeftOut:
    def test_truncation_padding_and_dropout_change_nothing(self) -> None:
        parts = bpe_json()
        expected = load_tokenizer(bpe_spec(parts)).encode("Once upon a time there was a fox.")
        parts["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        parts["padding"] = {"strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                            "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
        parts["model"] |= {"dropout": 0.9, "unk_token": "<s>", "fuse_unk": True, "byte_fallback": True}
        parts["decoder"] = {"type": "no such decoder"}
        assert load_tokenizer(bpe_spec(parts)).encode("Once upon a time there was a fox.") == expected

    @pytest.mark.parametrize("name", ["continuing_subword_prefix", "end_of_word_suffix"])
    def test_prefixes_and_suffixes(self, name: str) -> None:
        parts = bpe_json()
        for value in (None, ""):
            parts["model"][name] = value
            assert load_tokenizer(bpe_spec(parts)).encode("fox")
        parts["model"][name] = "##"
        refuse(parts, "prefixes or suffixes of parts of words are not supported")

    def test_merges_of_a_special_token(self) -> None:
        """Where a file makes a merged token the end of text, no text becomes it, nor is the file refused."""
        parts = bpe_json()
        left, right = parts["model"]["merges"][0]
        token_id = parts["model"]["vocab"][left + right]
        tokenizer = load_tokenizer(bpe_spec(parts))
        text = tokenizer.token_bytes(token_id).decode()
        assert token_id in tokenizer.encode(text)
        parts["added_tokens"].append({"id": token_id, "content": left + right, "special": True})
        tokenizer = load_tokenizer(bpe_spec(parts))
        assert token_id not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize("merge", ["a", "a b c", " a", ["a"], ["a", "b", "c"], ["a", 1], [["a"], "b"], 7, None, {}])
    def test_damaged_merges(self, merge: Any) -> None:
        parts = bpe_json()
        parts["model"]["merges"].append(merge)
        refuse(parts, "it is damaged: its merge .* does not join two tokens into a third")


NAMES = st.text(
    st.sampled_from("ab |<>\u0301é \0\n\u2028😀ﷺ가'1") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=5,
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
ADDED = st.lists(
    st.fixed_dictionaries({"content": NAMES, **{name: st.booleans() for name in FLAGS}}).filter(
        lambda token: token["content"] == token["content"].strip() or not (token["lstrip"] or token["rstrip"])
    ),
    max_size=5,
    unique_by=lambda token: token["content"],
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(added=ADDED, nfc=st.booleans(), seed=st.integers(0, 2**32))
def test_added_tokens_are_found_as_the_package_finds_them(added: list[dict[str, Any]], nfc: bool, seed: int) -> None:
    vocab = bpe_json()["model"]["vocab"]
    added = [token for token in added if token["content"] not in vocab]
    parts = with_added(*added, normalizer={"type": "NFC"} if nfc else None)
    ours, package = load_tokenizer(bpe_spec(parts)), PackageTokenizer.from_str(json.dumps(parts))
    rng = random.Random(seed)
    pieces = [*(token["content"] for token in added), "fox", " ", "  ", "e\u0301", "\n", "1", "é", "b"]
    for _ in range(5):
        text = "".join(rng.choice(pieces) for _ in range(12))
        if not any(name in text for name in ours.special_tokens):
            assert ours.encode(text) == package.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
@pytest.mark.parametrize("content", [" ", "\n", " a", "a\u3000"])
def test_tokens_that_take_spaces_from_each_other(content: str, flag: str) -> None:
    """The package panics on a text where one follows another, and says so on stderr."""
    refuse(with_added({"content": content, flag: True}), "begins or ends with a space, and takes more of them")
    assert load_tokenizer(bpe_spec(with_added({"content": content}))).encode(f"a{content}b")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"normalized": True}])
def test_long_texts_take_linear_time(flags: dict[str, bool]) -> None:
    tokenizer: Tokenizer = load_tokenizer(bpe_spec(with_added({"content": "||", **flags}, normalizer={"type": "NFC"})))
    for text in (" " * 100_000, "|| " * 50_000, "|" * 100_000, (" " * 50_000 + "||") * 3, "a" + "\u0301" * 200_000):
        assert tokenizer.encode(text)  # seconds, were it quadratic
