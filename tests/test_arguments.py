"""Every public argument: another kind of thing is a TypeError, one out of range a ValueError, and both name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import CHATML, PROMPT, write_tiny

from pyllama2 import ClosedError, Llama, Pyllama2Error, SamplingParams, arguments, export, perplexity, quantize

pytestmark = pytest.mark.usefixtures("one_thread")

# By what is wanted; and what is of the right kind, but never right.
NO_INTEGERS: list[Any] = [1.0, 1.5, True, np.True_, "2", b"2", "", [2], {}, object(), np.float64(2), np.array([2]), 2j]
NO_NUMBERS: list[Any] = [True, np.True_, "2", b"2", [2.0], {}, object(), np.array([2.0]), 2j]
NO_BOOLEANS: list[Any] = [0, 1, 1.0, "True", b"", "", [], object(), np.int64(1), np.array([True, False])]
NO_STRINGS: list[Any] = [b"q8", 1, 0, 1.5, True, [], ["q8"], {}, object(), np.int64(1), np.array(["q8", "q4"])]
NO_PATHS: list[Any] = [b"m.bin", b"", 1, 1.5, True, [], ["m.bin"], {}, object(), np.int64(1)]
NO_FUNCTIONS: list[Any] = [0, 1, "print", b"", [], {}, object(), True]
NO_IDS: list[Any] = [b"ab", b"", bytearray(b"a"), memoryview(b"ab"), 1, 1.5, True, {1: 2}, {1}, object(), np.int64(1),
                     [1.0], [None], [True], ["1"], [b"1"], [[1]], [1, "a"], np.array([1.0]), np.array(1),
                     np.array([True])]  # fmt: skip
NO_PROMPTS: list[Any] = [None, *NO_IDS]
HUGE: list[Any] = [2**70, 10**5000, -(2**70), -1, np.int64(-1)]
IMPOSSIBLE_PATHS: list[Any] = ["a\0b", "\ud800"]

MESSAGES = [{"role": "user", "content": "What?"}]
TEXT = "Once upon a time there was a fox"


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    with Llama(write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML)) as llm:
        yield llm


def assert_refused(error: type[Exception], name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert name in message and len(message) < 700 and message.isprintable(), message
    assert not isinstance(caught.value, UnicodeError)


def each(names: str, values: list[Any]) -> dict[str, list[Any]]:
    """The same values for several arguments."""
    return dict.fromkeys(names.split(), values)


LLAMA = {
    "model": NO_PATHS, "device": NO_STRINGS, "n_ctx": NO_INTEGERS, "n_threads": NO_INTEGERS,
    "quant": NO_STRINGS, "kv_dtype": NO_STRINGS, "tokenizer": NO_PATHS, "seed": NO_INTEGERS,
    "context": [None, *NO_STRINGS], "prompt_lookup": [None, *NO_BOOLEANS], "verbose": [None, *NO_BOOLEANS],
    "progress": NO_FUNCTIONS,
}  # fmt: skip
LLAMA_VALUES = {
    "model": IMPOSSIBLE_PATHS, "device": ["", "tpu", "\x1b" * 10**5], "n_ctx": [0, *HUGE], "n_threads": [0, *HUGE],
    "quant": ["", "q5"], "kv_dtype": ["", "int3"], "tokenizer": IMPOSSIBLE_PATHS, "seed": [2**64, *HUGE],
    "context": ["", "go"],
}  # fmt: skip


@pytest.mark.parametrize("name", LLAMA)
def test_llama(path: Path, name: str) -> None:
    for value in LLAMA[name]:
        assert_refused(TypeError, name, lambda value=value: Llama(**{"model": path, name: value}))
    for value in LLAMA_VALUES.get(name, []):
        assert_refused(ValueError, name, lambda value=value: Llama(**{"model": path, name: value}))


SAMPLING = {
    **each("temperature top_p min_p repetition_penalty presence_penalty frequency_penalty", [None, *NO_NUMBERS]),
    **each("top_k repetition_window", [None, *NO_INTEGERS]),
    **each("max_tokens logprobs seed", NO_INTEGERS),
    **each("ignore_eos echo", [None, *NO_BOOLEANS]),
    "stop": [None, b"a", 5, [1], [b"a"], {}, ["a", None]],
    "stop_token_ids": [None, b"a", 5, "1", ["1"], [1.0], [True], {}],
    "logit_bias": [[(1, 2.0)], 5, "a", {"1": 1.0}, {1.0: 1.0}, {True: 1.0}, {1: "1"}, {1: True}, {1: None}],
    "logits_processors": [None, print, 5, "a", [3], ["print"], [None]],
    "logits_processor_factories": [None, print, 5, "a", [3], ["print"], [None]],
    "json_schema": [5, b"{}", [{}], [], 1.5, {"const": b"a"}, {"const": object()}, {"enum": {1, 2}}, {b"a": 1}],
    **each("regex grammar", [5, b"a", ["a"], {}, True]),
}  # fmt: skip
SAMPLING_VALUES = {
    **each("temperature repetition_penalty", [-1, float("nan"), float("inf"), 10**400, -(10**5000)]),
    **each("top_p min_p", [-0.1, 1.1, float("nan"), 2**70]),
    **each("presence_penalty frequency_penalty", [float("nan"), float("inf"), 10**400]),
    **each("top_k repetition_window max_tokens logprobs", [-1, -(2**70), -(10**5000)]),
    "seed": [2**64, *HUGE],
    "stop": ["", ["a", ""]],
    "json_schema": ["", "a", "[]", "5", '"a"', "null", {"const": float("nan")}, {"const": 10**5000}, "[" * 10**5],
    **each("regex grammar", ["\ud800", "a" * 10**6]),
    "stop_token_ids": [[-1], [-(10**5000)]],
    "logit_bias": [{-1: 1.0}, {-(10**5000): 1.0}, {1: float("nan")}, {1: float("inf")}, {10**5000: float("nan")}],
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_sampling_params(llm: Llama, name: str) -> None:
    for value in SAMPLING[name]:
        assert_refused(TypeError, name, lambda value=value: SamplingParams(**{name: value}))
        assert_refused(TypeError, name, lambda value=value: llm.stream(PROMPT, **{name: value}))
    for value in SAMPLING_VALUES.get(name, []):
        assert_refused(ValueError, name, lambda value=value: SamplingParams(**{name: value}))
        assert_refused(ValueError, name, lambda value=value: llm.stream(PROMPT, **{name: value}))


@pytest.mark.parametrize("name", ["top_k", "repetition_window", "max_tokens", "logprobs"])
@pytest.mark.parametrize("value", [2**31, 2**63, 2**70, 10**5000], ids=["31", "63", "70", "5000"])
def test_counts_without_a_limit(llm: Llama, name: str, value: int) -> None:
    """More than there is, whatever the number, is all that there is."""
    more = {"max_tokens": 3, "repetition_penalty": 1.1, "seed": 1} | {name: value}
    assert llm.generate(PROMPT, **more).token_ids


@pytest.mark.parametrize("value", [340, 2**31, 2**70, 10**5000], ids=["340", "31", "70", "5000"])
def test_ids_outside_the_vocabulary(llm: Llama, value: int) -> None:
    for name, given in (("logit_bias", {value: 1.0}), ("stop_token_ids", [value])):
        assert_refused(ValueError, name, lambda name=name, given=given: llm.generate(PROMPT, **{name: given}))
    for call in (llm.generate, llm.stream, llm.score, llm.logits, llm.detokenize):
        assert_refused(ValueError, "token id", lambda call=call: call([1, value]))


def test_params(llm: Llama, chatml: Llama) -> None:
    for value in (5, "x", {"seed": 1}, b"", True, SamplingParams):
        for call in (llm.generate, llm.stream):
            assert_refused(TypeError, "params", lambda call=call, value=value: call(PROMPT, value))
        assert_refused(TypeError, "params", lambda value=value: chatml.chat(MESSAGES, value))


def test_prompts_and_ids(llm: Llama) -> None:
    for value in NO_PROMPTS:
        if not isinstance(value, list) or value not in ([[1]], ["1"]):  # lists of prompts
            assert_refused(TypeError, "prompt", lambda value=value: llm.generate(value, max_tokens=1))
        assert_refused(TypeError, "prompt", lambda value=value: llm.stream(value))
        assert_refused(TypeError, "prompt", lambda value=value: llm.astream(value))
        assert_refused(TypeError, "prompt", lambda value=value: llm.generate(["a", value]))
        assert_refused(TypeError, "text_or_tokens", lambda value=value: llm.score(value))
        assert_refused(TypeError, "tokens", lambda value=value: llm.logits(value))
        assert_refused(TypeError, "ids", lambda value=value: llm.detokenize(value))
    for call in (llm.logits, llm.detokenize):
        assert_refused(TypeError, "", lambda call=call: call("12"))
    for ids in ([1, 5], (1, 5), np.array([1, 5]), [np.int32(1), np.uint8(5)], iter([1, 5]), range(1, 6, 4)):
        expected = llm.detokenize([1, 5])
        assert llm.detokenize(ids) == expected  # type: ignore[arg-type]
    assert llm.generate(np.array([[1, 5], [1, 6]]), max_tokens=1)[1].token_ids  # type: ignore[call-overload]


def test_texts(llm: Llama, chatml: Llama) -> None:
    for value in (None, *NO_STRINGS):
        assert_refused(TypeError, "text", lambda value=value: llm.tokenize(value))
        if not isinstance(value, list):
            assert_refused(TypeError, "text", lambda value=value: perplexity(llm, value))
    for value in NO_STRINGS:
        assert_refused(TypeError, "text", lambda value=value: perplexity(llm, ["a text", value]))
    assert_refused(ValueError, "text", lambda: perplexity(llm, []))
    for value in (None, *NO_BOOLEANS):
        assert_refused(TypeError, "bos", lambda value=value: llm.tokenize("a", bos=value))
        for call in (chatml.chat, chatml.stream_chat, chatml.chat_tokens):
            assert_refused(
                TypeError, "allow_markers", lambda call=call, value=value: call(MESSAGES, allow_markers=value)
            )
    for call in (chatml.chat, chatml.stream_chat, chatml.astream_chat, chatml.chat_tokens):
        for value in NO_STRINGS:
            assert_refused(TypeError, "template", lambda call=call, value=value: call(MESSAGES, template=value))
        for value in (None, "a", b"a", 1, 1.5, object(), MESSAGES[0], ["a"], [b"a"], [None], iter(MESSAGES)):
            assert_refused(TypeError, "message", lambda call=call, value=value: call(value))


def test_states(llm: Llama, tmp_path: Path) -> None:
    for call in (llm.save_state, llm.load_state):
        for value in (None, *NO_PATHS):
            assert_refused(TypeError, "path", lambda call=call, value=value: call(value))
        for value in IMPOSSIBLE_PATHS:
            assert_refused(ValueError, "path", lambda call=call, value=value: call(value))


EXPORT = {
    "checkpoint": [None, *NO_PATHS], "out": [None, *NO_PATHS], "dtype": [None, *NO_STRINGS], "tokenizer": NO_PATHS,
    "max_seq_len": NO_INTEGERS, "norm_eps": NO_NUMBERS, "progress": NO_FUNCTIONS,
}  # fmt: skip
EXPORT_VALUES = {
    "checkpoint": IMPOSSIBLE_PATHS, "out": IMPOSSIBLE_PATHS, "dtype": ["q8", ""], "tokenizer": IMPOSSIBLE_PATHS,
    "max_seq_len": [0, *HUGE], "norm_eps": [-1, float("nan"), 10**5000],
}  # fmt: skip
QUANTIZE = {
    "source": [None, *NO_PATHS], "out": [None, *NO_PATHS], "type": [None, *NO_STRINGS],
    "group_size": [None, *NO_INTEGERS], "output_type": NO_STRINGS, "progress": NO_FUNCTIONS,
}  # fmt: skip
QUANTIZE_VALUES = {
    "source": IMPOSSIBLE_PATHS, "out": IMPOSSIBLE_PATHS, "type": ["float32", ""], "group_size": [0, 48, *HUGE],
    "output_type": ["float32", ""],
}  # fmt: skip
PERPLEXITY = {
    "model": NO_PATHS, "against": NO_PATHS, "window": NO_INTEGERS, "stride": NO_INTEGERS, "progress": NO_FUNCTIONS,
}  # fmt: skip
PERPLEXITY_VALUES = {
    "model": IMPOSSIBLE_PATHS, "against": IMPOSSIBLE_PATHS, "window": [1, 65, *HUGE], "stride": [0, 64, *HUGE],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORT)
def test_export(path: Path, tmp_path: Path, name: str) -> None:
    for error, values in ((TypeError, EXPORT[name]), (ValueError, EXPORT_VALUES.get(name, []))):
        for value in values:
            given = {"checkpoint": path, "out": tmp_path / "out", name: value}
            assert_refused(error, name, lambda given=given: export(**given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize(path: Path, tmp_path: Path, name: str) -> None:
    for error, values in ((TypeError, QUANTIZE[name]), (ValueError, QUANTIZE_VALUES.get(name, []))):
        for value in values:
            given = {"source": path, "out": tmp_path / "out", "type": "q8", name: value}
            assert_refused(error, name, lambda given=given: quantize(**given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PERPLEXITY)
def test_perplexity(llm: Llama, name: str) -> None:
    for error, values in ((TypeError, PERPLEXITY[name]), (ValueError, PERPLEXITY_VALUES.get(name, []))):
        for value in values:
            given = {"model": llm, "text": TEXT, name: value}
            assert_refused(error, name, lambda given=given: perplexity(**given))


def test_numbers_of_other_kinds(path: Path) -> None:
    """What is an integer, or a number, is one."""
    with Llama(path, n_ctx=np.int64(32), n_threads=np.uint8(1), seed=np.uint64(2**64 - 1)) as llm:  # type: ignore[arg-type]
        assert llm.n_ctx == 32 and type(llm.n_ctx) is int
        llm.generate(PROMPT, max_tokens=np.int8(2), temperature=np.float32(0.5), top_p=Fraction(1, 2))
    assert arguments.real("a", Fraction(1, 4)) == 0.25 and arguments.integer("a", np.uint64(7)) == 7


def test_closed(path: Path) -> None:
    """Whatever is asked of it then, that it is closed is the answer."""
    llm = Llama(path)
    stream = llm.stream(PROMPT)
    llm.close()
    calls: list[Callable[[], Any]] = [
        lambda: llm.tokenize("a"), lambda: llm.detokenize([1]), lambda: llm.generate("a"), lambda: llm.stream("a"),
        lambda: llm.astream("a"), lambda: llm.score("a"), lambda: llm.logits([1]), lambda: llm.chat(MESSAGES),
        lambda: llm.chat_tokens(MESSAGES, template="chatml"), lambda: llm.save_state("state"), lambda: llm.tokenizer,
        lambda: llm.load_state("state"), llm.describe, llm.profile, lambda: next(stream),
        lambda: llm.generate(["a", "b"]), lambda: perplexity(llm, TEXT),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ClosedError, match="this Llama is closed"):
            call()
    llm.close()
    assert "closed" in repr(llm)
    assert issubclass(ClosedError, Pyllama2Error) and issubclass(ClosedError, RuntimeError)
    assert not issubclass(ClosedError, ValueError)
