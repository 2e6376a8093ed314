"""Texts by 20 JSON schemas: each that ends by itself is valid. PYLLAMA2_SCHEMA_SEEDS=300 takes as many seeds each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.schemas import SCHEMAS, check

from pyllama2 import Completion, ConstraintError, Llama
from pyllama2.constraints import Compiler
from pyllama2.model_names import find_model
from pyllama2.sampling.constraint import Constraint

N_SEEDS = int(os.environ.get("PYLLAMA2_SCHEMA_SEEDS", "4"))
ALL = N_SEEDS > 4
PROMPT = "Here is the JSON: "


@pytest.fixture(scope="module")
def stories() -> Iterator[Llama]:
    """The bundled model, whose tokenizer is SentencePiece's."""
    with Llama(find_model(None)) as llm:
        yield llm


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[Llama]:
    """A chat model, whose tokenizer is byte-level BPE."""
    with Llama(smollm2_path, quant="q4") as llm:
        yield llm


def check_all(completions: list[Completion], schema: Any, least: float = 0.4) -> None:
    """This part of the texts must end, and those that end must be valid."""
    ended = [completion for completion in completions if completion.finish_reason == "stop"]
    for completion in ended:
        check(completion.text, schema)
    assert len(ended) >= least * len(completions)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_bundled_model(stories: Llama, name: str) -> None:
    options: dict[str, Any] = {"json_schema": SCHEMAS[name], "max_tokens": 300}
    sampled = [stories.generate(PROMPT, temperature=1, top_p=1, seed=seed, **options) for seed in range(N_SEEDS)]
    check_all(sampled, SCHEMAS[name])
    greedy = stories.generate(["", "Once", "It says: ", "{"], temperature=0, **options)
    check_all(greedy, SCHEMAS[name], least=0)  # it repeats a digit, or tells a story in a string, for ever


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS if ALL else ["person", "optional", "enum"])
def test_smollm2(smollm2: Llama, name: str) -> None:
    messages = [{"role": "user", "content": f"Write JSON for this schema: {json.dumps(SCHEMAS[name])}"}]
    options: dict[str, Any] = {"json_schema": SCHEMAS[name], "max_tokens": 200}
    completions = [smollm2.chat(messages, seed=seed, **options) for seed in range(N_SEEDS if ALL else 1)]
    check_all(completions, SCHEMAS[name])
    check_all([smollm2.chat(messages, temperature=0, **options)], SCHEMAS[name], least=0)


@pytest.mark.slow
def test_any_json(stories: Llama) -> None:
    """true and {} allow every value; and what an object may hold is free."""
    for schema in (True, {}, "{}", {"type": "object"}):
        texts = [stories.generate(PROMPT, json_schema=schema, seed=seed, max_tokens=60) for seed in range(6)]
        ended = [json.loads(text.text) for text in texts if text.finish_reason == "stop"]
        if schema == {"type": "object"}:
            assert all(isinstance(value, dict) for value in ended)


def test_properties_come_in_the_schemas_order(stories: Llama) -> None:
    names = ["zeta", "alpha", "mu"]
    schema = {"type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": names}
    for given in (schema, json.dumps(schema)):
        text = stories.generate(PROMPT, json_schema={**schema, "additionalProperties": False}, max_tokens=60).text
        assert list(json.loads(text)) == names, given


@pytest.mark.slow
def test_a_text_is_laid_out_as_json_dumps_does_unless_the_schema_says_otherwise(stories: Llama) -> None:
    schema = SCHEMAS["person"]
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 1, "max_tokens": 300}
    for seed in range(4):
        text = stories.generate(PROMPT, json_schema=schema, seed=seed, **options).text
        assert text == json.dumps(json.loads(text), ensure_ascii="\\u" in text)
    compact = {**schema, "x-guidance": {"item_separator": ",", "key_separator": ":"}}
    text = stories.generate(PROMPT, json_schema=compact, seed=1, **options).text
    assert text.startswith('{"name":"') and '","age":' in text


def refusal(llm: Llama, schema: Any) -> str:
    """The message of the error for a schema; "" if there is none."""
    try:
        Compiler(llm.tokenizer).compile(Constraint("json_schema", json.dumps(schema)))
    except ConstraintError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_names_that_may_come_twice_are_refused_where_it_matters(stories: Llama) -> None:
    """Properties may be called as keywords are, whose values are no schemas."""
    schema = {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 3}
    refused = [{"type": "array", "items": schema}, {"anyOf": [{"type": "null"}, schema]}]
    refused += [
        {keyword: {name: schema}}
        for keyword in ("properties", "patternProperties", "$defs")
        for name in ("other", "default", "const", "enum", "examples", "properties")
    ]
    for one in refused:
        assert "minProperties may be at most one more" in refusal(stories, one), one
    for keyword in ("default", "examples"):
        assert not refusal(stories, {"type": "object", keyword: [schema]}), keyword


@pytest.mark.slow
def test_dates_exist(stories: Llama) -> None:
    """No 29th of February outside of leap years, nor a year 0."""
    tokens = {stories.tokenizer.token_bytes(i): i for i in range(stories.config.vocab_size)}

    compiler = Compiler(stories.tokenizer)

    def fits(schema: dict[str, Any], value: Any) -> bool:
        matcher = compiler.compile(Constraint("json_schema", json.dumps(schema))).matcher(())
        text = [tokens[bytes([byte])] for byte in json.dumps(value).encode()]
        return matcher.n_allowed(text) == len(text)

    date: dict[str, Any] = {"format": "date"}
    nullable = {"type": ["string", "null"], **date}
    several = [date, nullable, {"type": "string", **date}, {"pattern": "2", **date}]
    several += [{"pattern": "2", "allOf": [{"minLength": 3}], **date}, {"$ref": "#/$defs/a", "$defs": {"a": date}}]
    for schema in several:
        assert fits(schema, "2023-02-28") and fits(schema, "2024-02-29") and fits(schema, "2000-02-29"), schema
        assert not any(fits(schema, text) for text in ("2023-02-29", "1900-02-29", "0000-12-12", "2023-04-31")), schema
    named = {"properties": {"default": date}}
    assert fits(named, {"default": "2023-02-28"}) and not fits(named, {"default": "2023-02-29"})
    assert fits(date, 5) and fits(nullable, None) and not fits({"pattern": "3", **date}, "2024-02-29")
    assert fits({"format": "date-time"}, "2024-02-29T10:00:00Z")
    assert not fits({"format": "date-time"}, "2023-02-29T10:00:00Z")
    assert "Unsatisfiable" in refusal(stories, {"pattern": "x", **date, "type": "string"})
    assert refusal(stories, {"pattern": "x", **date, "allOf": 1})
