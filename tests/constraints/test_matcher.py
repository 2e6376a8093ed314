"""The state of a text in its grammar."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from helpers.tiny_tokenizers import bpe_spec, sentencepiece_spec

from pyllama2 import ConstraintError
from pyllama2.constraints import Compiler
from pyllama2.constraints.matcher import LIMITS, Matcher
from pyllama2.constraints.vocabulary import Vocabulary
from pyllama2.sampling.constraint import Constraint
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.base import Tokenizer

N_TOKENS = 345  # a model may have more tokens than its tokenizer


@pytest.fixture(scope="module", params=[sentencepiece_spec, bpe_spec], ids=["sentencepiece", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.param(), N_TOKENS)


@pytest.fixture(scope="module")
def own(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer)


def allowed(matcher: Matcher) -> set[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:N_TOKENS]).tolist())


def texts(tokenizer: Tokenizer, ids: set[int]) -> set[bytes]:
    return {tokenizer.token_bytes(i) for i in ids}


def one_token(tokenizer: Tokenizer, text: bytes) -> int:
    return max(i for i in range(N_TOKENS) if tokenizer.token_bytes(i) == text)


def test_a_mask_has_what_may_come_next(own: Compiler, tokenizer: Tokenizer) -> None:
    matcher = own.compile(Constraint("regex", "[0-9]x?")).matcher(tokenizer.eos_ids)
    assert texts(tokenizer, allowed(matcher)) >= {str(digit).encode() for digit in range(10)}
    assert not allowed(matcher) & set(tokenizer.eos_ids)
    matcher.accept(one_token(tokenizer, b"7"))
    assert allowed(matcher) == {one_token(tokenizer, b"x"), *tokenizer.eos_ids} and not matcher.ended
    matcher.accept(one_token(tokenizer, b"x"))
    assert matcher.ended


def test_of_tokens_that_spell_the_same_the_tokenizers_own_is_allowed(own: Compiler, tokenizer: Tokenizer) -> None:
    matcher = own.compile(Constraint("regex", "(?s:.)*")).matcher(())
    found = allowed(matcher)
    assert len(texts(tokenizer, found)) == len(found)
    for token in tokenizer.encode("a little fox in the forest 0123456789")[1:]:
        assert token in found


def test_special_tokens_and_ids_without_a_token_are_not_allowed(own: Compiler, tokenizer: Tokenizer) -> None:
    found = allowed(own.compile(Constraint("regex", "(?s:.)*")).matcher(()))
    assert not found & {*tokenizer.special_tokens.values(), *range(340, N_TOKENS)}


def test_forced_tokens_spell_the_only_way_and_change_nothing(own: Compiler, tokenizer: Tokenizer) -> None:
    matcher = own.compile(Constraint("regex", "once upon (a|the) time")).matcher(tokenizer.eos_ids)
    before = allowed(matcher)
    found = matcher.forced(50)
    assert b"".join(map(tokenizer.token_bytes, found)) == b"once upon"  # a space, or a space and a letter, may follow
    assert allowed(matcher) == before and not matcher.ended
    assert matcher.forced(2) == found[:2] and matcher.forced(0) == []
    for token in (*found, one_token(tokenizer, b" ")):
        matcher.accept(token)
    assert matcher.forced(9) == []
    assert matcher.n_allowed([one_token(tokenizer, b"t"), one_token(tokenizer, b"h")]) == 2
    assert matcher.n_allowed([one_token(tokenizer, b"a"), one_token(tokenizer, b"h")]) == 1
    assert matcher.n_allowed([]) == 0


def test_forced_tokens_up_to_the_end(own: Compiler, tokenizer: Tokenizer) -> None:
    matcher = own.compile(Constraint("regex", "abcabc")).matcher(tokenizer.eos_ids)
    assert b"".join(map(tokenizer.token_bytes, matcher.forced(50))) == b"abcabc"
    assert not matcher.ended


def test_a_choice_is_not_forced(own: Compiler, tokenizer: Tokenizer) -> None:
    """After an a the text may end, or go on: the longer one must not be the only guess that is ever made true."""
    matcher = own.compile(Constraint("regex", "a|ab")).matcher(tokenizer.eos_ids)
    matcher.accept(one_token(tokenizer, b"a"))
    assert allowed(matcher) == {one_token(tokenizer, b"b"), *tokenizer.eos_ids}
    assert matcher.forced(5) == []


def test_a_grammar_that_cannot_go_back_guesses_nothing(own: Compiler, tokenizer: Tokenizer) -> None:
    matcher = own.compile(Constraint("grammar", "start: a\na[max_tokens=3]: /xxxxx/")).matcher(tokenizer.eos_ids)
    assert matcher.forced(5) == [] and allowed(matcher)


def test_matchers_of_one_grammar_are_apart(own: Compiler, tokenizer: Tokenizer) -> None:
    grammar = own.compile(Constraint("regex", "[ab]{4}"))
    first, second = grammar.matcher(()), grammar.matcher(())
    before = allowed(second)
    first.accept(one_token(tokenizer, b"a"))
    assert allowed(second) == before
    for _ in range(4):
        second.accept(one_token(tokenizer, b"b"))
    assert second.ended and not first.ended


def test_what_one_text_meets_does_not_concern_others(own: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that exceeds the limits, and another one of its grammar."""
    monkeypatch.setitem(LIMITS, "max_lexer_states", 1000)
    grammar = own.compile(Constraint("regex", "(?s:.*)a(?s:.){200}b(?s:.*)c(?s:.){200}d"))
    generator = random.Random(1)
    with pytest.raises(ConstraintError, match="too complex"):
        matcher = grammar.matcher(())
        while True:
            matcher.accept(generator.choice(sorted(allowed(matcher))))
    assert len(allowed(grammar.matcher(()))) > 200


@pytest.mark.slow
def test_json_words_are_one_token_where_the_model_has_one() -> None:
    """What follows in a text gets no space before it, as a whole text does with SentencePiece."""

    class Words(Tokenizer):
        prepends_space = True

        def encode(self, text: str) -> list[int]:
            raise AssertionError("nothing needs to be tokenized")

        def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
            return [b"", b"f", b"al", b"se", b"false", b" false"][token_id]

    spec = sentencepiece_spec()
    words = Words(type(spec)(spec.kind, spec.data, None, (0,), False), 6, {"</s>": 0})
    matcher = Compiler(words).compile(Constraint("json_schema", '{"const": false}')).matcher([0])
    assert matcher.forced(5) == [4]
    spaced = Compiler(words).compile(Constraint("json_schema", '{"const": false}'), after_space=True).matcher([0])
    assert spaced.forced(5) == [5]


@pytest.mark.slow
def test_vocabularies_of_any_tokens() -> None:
    """Long tokens, and tokens of bytes that are not UTF-8."""

    class Odd(Tokenizer):
        prepends_space = False
        tokens: Any = (b"", b"\xff", b"\xc3", b"\xbc", b"x" * 4096, b"\xff\xfe", b"", b"\0")

        def encode(self, text: str) -> list[int]:
            return []

        def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
            return bytes(self.tokens[token_id])

    spec = bpe_spec()
    odd = Odd(type(spec)(spec.kind, spec.data, None, (0,), False), 8, {"</s>": 0})
    assert Vocabulary(odd).n_tokens == 8
    matcher = Compiler(odd).compile(Constraint("regex", "\u00fc+")).matcher([0])
    assert matcher.mask()[0] == 1 << 2
    matcher.accept(2)
    assert matcher.mask()[0] == 1 << 3
    matcher.accept(3)
    assert matcher.mask()[0] == 1 << 2 | 1 << 0 | 1 << 8  # another one, or the end, by its token or without one
    long = Compiler(odd).compile(Constraint("regex", "\u00fcx{4096}")).matcher([0])
    for token in (2, 3):
        long.accept(token)
    with pytest.raises(ConstraintError, match="no token for what must follow"):
        long.mask()
