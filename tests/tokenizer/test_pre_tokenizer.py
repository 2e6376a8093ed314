"""Rules that cut a text: those of published tokenizers cut as the package cuts, and no others are accepted."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from typing import Any

import pytest
from helpers.tiny_tokenizers import CORPUS, bpe_json, bpe_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers import Tokenizer as PackageTokenizer
from tokenizers.pre_tokenizers import Split

from pyllama2.checkpoint.gguf_tokenizer import PRE_TOKENIZERS
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.pre_tokenizer import _CASED, _PART_PATTERNS, _WHOLE_PATTERNS, known_steps


def byte_level(use_regex: bool = False, **fields: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex} | fields


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}
# "pre_tokenizer" as it stands in the tokenizer.json of published models.
PUBLISHED = {
    "gpt-2, NeoX": byte_level(use_regex=True),
    "older files": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "prefix": byte_level(use_regex=True, add_prefix_space=True),
    "smollm2, starcoder": sequence(DIGITS, byte_level(use_regex=True)),
    "llama-3": sequence(split(LLAMA3), byte_level()),
    "gpt-4, phi-4": sequence(split(LLAMA3, "Removed", True), byte_level()),
    "qwen2": sequence(split(QWEN2), byte_level()),
    "mistral-nemo": sequence(split(NEMO), byte_level()),
    "gpt-4o, llama-4": sequence(split(GPT4O), byte_level()),
    "isolated what is no match": sequence(split(LLAMA3, "Isolated", True), byte_level()),
    "deepseek-llm, deepseek-coder-v1.5": sequence(
        split("[\r\n]"),
        split(rf"\s?[{_CASED}]+"),
        split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"),
        split("[一-龥ࠀ-一가-퟿]+"),
        DIGITS,
        byte_level(),
    ),
    "deepseek-coder": sequence(
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, byte_level()
    ),
    "deepseek-v3": sequence(
        split(r"\p{N}{1,3}"),
        split("[一-龥぀-ゟ゠-ヿ]+"),
        split(
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
        ),
        byte_level(),
    ),
    "bloom": sequence(split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), byte_level()),
    "viking": sequence(split(r" ?[^(\s|.,!?…。，、।۔،)]+"), DIGITS, byte_level()),
    "falcon3": sequence({"type": "Punctuation", "behavior": "Contiguous"}, byte_level(use_regex=True), DIGITS),
    "falcon": sequence(
        {"type": "Punctuation", "behavior": "Contiguous"},
        byte_level(use_regex=True),
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ),
}
TEXTS = st.text(st.sampled_from("ab AZ'sT 019\n\r\t!?.-_/é\u0301ſ漢あ한😀ﷺ") | st.characters(exclude_categories=["Cs"]))


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}], ids=["plain", "NFC"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rules_encode_as_the_package(name: str, normalizer: Any) -> None:
    parts = bpe_json() | {"pre_tokenizer": PUBLISHED[name], "normalizer": normalizer}
    ours, package = load_tokenizer(bpe_spec(parts)), PackageTokenizer.from_str(json.dumps(parts))

    @settings(deadline=None, max_examples=60)
    @given(TEXTS | st.sampled_from(CORPUS))
    def check(text: str) -> None:
        if not any(name in text for name in ours.special_tokens):
            assert ours.encode(text) == package.encode(text, add_special_tokens=False).ids

    check()


def test_letters_with_upper_and_lower_case_are_what_unicode_says() -> None:
    for char in re.findall(f"[{_CASED}]", "".join(map(chr, range(0x20000)))):
        assert unicodedata.category(char) in ("Lu", "Ll", "Lt"), hex(ord(char))
    assert len(re.findall(f"[{_CASED}]", "".join(map(chr, range(0x20000))))) > 2500


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_rules_of_gguf_files_are_of_the_same_table(name: str) -> None:
    assert known_steps({"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[name]}) == PRE_TOKENIZERS[name]


REFUSED = {
    "forty_byte_levels": (sequence(*[byte_level()] * 40), "has 40 steps, of which at most 8 are supported"),
    "two_byte_levels": (sequence(byte_level(), byte_level()), "ByteLevel, ByteLevel, an order that no known"),
    "cut_after_byte_level": (sequence(byte_level(), DIGITS), "ByteLevel, Digits, an order that no known"),
    "nested": (sequence(sequence(byte_level()), byte_level()), "the step 'Sequence', which is not supported"),
    "unknown_step": (sequence({"type": "FixedLength", "length": 0}, byte_level()), "the step 'FixedLength'"),
    "step_without_type": (sequence({}, byte_level()), "the step 'None'"),
    "no_step": (sequence(), "no byte-level BPE"),
    "name": (sequence("ByteLevel"), "no byte-level BPE"),
    "name_beside": (sequence("ByteLevel", byte_level()), "the step .*ByteLevel.*, which is not supported"),
    "number": (sequence(7, byte_level()), "the step '7'"),
    "exponential": (
        sequence(split("(a+)+$"), byte_level()),
        r"splits at '\(a\+\)\+\$', which is not the rule of a known",
    ),
    "polynomial": (sequence(split(r"[^\n]*[^\n]*[^\n]*\p{Sc}"), byte_level()), "which is not the rule of a known"),
    "string": (sequence(split("x") | {"pattern": {"String": ""}}, byte_level()), "splits at .*String"),
    "no_pattern": (sequence({"type": "Split"}, byte_level()), "splits at 'None'"),
    "removed": (sequence(split(LLAMA3, "Removed"), byte_level()), r"behavior 'Removed' \(invert False\)"),
    "digits_removed": (sequence(split(r"\p{N}", "Removed", True), byte_level()), r"behavior 'Removed' \(invert True\)"),
    "merged": (sequence(split(LLAMA3, "MergedWithNext"), byte_level()), "behavior 'MergedWithNext'"),
    "punctuation": (sequence({"type": "Punctuation", "behavior": "Removed"}, byte_level()), "'Removed'"),
    "flag": (byte_level(use_regex="yes"), "'use_regex' is not a bool"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_rules_are_refused_by_name(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    node, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(bpe_spec(bpe_json() | {"pre_tokenizer": node}))
    assert len(str(caught.value)) < 320 and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_WHOLE_PATTERNS, *_PART_PATTERNS])
def test_known_expressions_take_linear_time(name: str) -> None:
    """Of the processor's time, with room for a slow machine: a quadratic one would take a minute."""
    step = Split(Regex((_WHOLE_PATTERNS | _PART_PATTERNS)[name]), "isolated")
    n = 40_000
    runs = [" ", "\n", "\n ", "a", "A", "A\u0301", "漢", "1", "!", "'", "\x01"]
    start = time.process_time()
    for run in runs:
        step.pre_tokenize_str(run * (n // len(run)) + "x")
    assert time.process_time() - start < 10
