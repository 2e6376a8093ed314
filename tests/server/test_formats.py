"""What the text must be, through OpenAI's client: response_format, and vLLM's fields."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest
from helpers.schemas import SCHEMAS, check
from helpers.server import Server
from pydantic import BaseModel

from pyllama2.constraints.matcher import LIMITS

USER = [{"role": "user", "content": "Hello"}]
PERSON = SCHEMAS["person"]


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": USER, "max_tokens": 300, **fields})


class TestResponseFormat:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["person", "anyOf", "array", "formats"])
    def test_a_json_schema(self, client: Any, name: str) -> None:
        answer = ask(client, response_format=schema_format(SCHEMAS[name]), n=3, seed=1)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            check(choice.message.content, SCHEMAS[name])

    def test_a_json_object(self, client: Any) -> None:
        answers = [ask(client, response_format={"type": "json_object"}, seed=seed, max_tokens=40) for seed in range(8)]
        ended = [answer.choices[0] for answer in answers if answer.choices[0].finish_reason == "stop"]
        assert all(answer.choices[0].message.content.startswith("{") for answer in answers)
        for choice in ended:
            assert isinstance(json.loads(choice.message.content), dict)

    def test_pydantics_models(self, client: Any) -> None:
        class Event(BaseModel):
            day: bool
            hours: list[bool]

        answer = client.chat.completions.parse(
            model="tiny", messages=USER, response_format=Event, max_tokens=300, seed=2, logit_bias={str(93 + 3): 5}
        )
        assert isinstance(answer.choices[0].message.parsed, Event)

    def test_streams(self, client: Any) -> None:
        whole = ask(client, response_format=schema_format(PERSON), seed=5)
        events = list(ask(client, response_format=schema_format(PERSON), seed=5, stream=True))
        text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
        check(text, PERSON)
        assert text == whole.choices[0].message.content
        assert [e.choices[0].finish_reason for e in events if e.choices and e.choices[0].finish_reason] == ["stop"]

    def test_text_is_free(self, client: Any) -> None:
        options = {"seed": 1, "max_tokens": 20}
        with_format = ask(client, response_format={"type": "text"}, **options)
        assert with_format.choices[0].message.content == ask(client, **options).choices[0].message.content

    def test_max_tokens_cuts(self, client: Any) -> None:
        choice = ask(client, response_format=schema_format(PERSON), max_tokens=4).choices[0]
        assert choice.finish_reason == "length" and choice.message.content.startswith("{")

    @pytest.mark.slow
    def test_many_at_once(self, server: Server) -> None:
        """Each of its own schema, and free texts between them."""
        names = ["person", "tuple", "enum", "oneOf", "lengths"]

        async def run() -> list[Any]:
            client = server.async_client()
            constrained = [
                client.chat.completions.create(
                    model="tiny", messages=USER, response_format=schema_format(SCHEMAS[name]), max_tokens=300, seed=1
                )
                for name in names
            ]
            free = [client.completions.create(model="tiny", prompt="Once", max_tokens=30, seed=i) for i in range(5)]
            return list(await asyncio.gather(*constrained, *free))

        answers = asyncio.run(run())
        for name, answer in zip(names, answers[: len(names)], strict=True):
            check(answer.choices[0].message.content, SCHEMAS[name])
        client = server.client()
        for i, answer in enumerate(answers[len(names) :]):
            alone = client.completions.create(model="tiny", prompt="Once", max_tokens=30, seed=i)
            assert answer.choices[0].text == alone.choices[0].text


class TestOtherFields:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("fields", "pattern"),
        [
            ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
            ({"guided_choice": ["yes", "no", 'per"haps\n']}, 'yes|no|per"haps\n'),
            ({"guided_grammar": "start: /x{2}/ | /y{3}/"}, "xx|yyy"),
            ({"guided_json": {"enum": ["a", "b"]}}, '"a"|"b"'),
            ({"guided_json": '{"type": "boolean"}'}, "true|false"),
            ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
            ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
            ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
            ({"structured_outputs": {"grammar": "start: /x{2}/ | /y{3}/"}}, "xx|yyy"),
            ({"structured_outputs": {"json_object": True}}, r"\{.*"),
        ],
        ids=str,
    )
    def test_of_vllm(self, client: Any, fields: dict[str, Any], pattern: str) -> None:
        chat = ask(client, extra_body=fields, max_tokens=30).choices[0].message.content
        completion = client.completions.create(model="tiny", prompt="Say ", max_tokens=30, extra_body=fields)
        for text in (chat, completion.choices[0].text):
            assert re.fullmatch(pattern, text, re.DOTALL), text


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": schema_format({"type": "strnig"})}, "response_format", "Invalid type: strnig"),
    ({"response_format": schema_format(False)}, "response_format", "no text can match it"),
    ({"response_format": schema_format({"type": "array", "uniqueItems": True})}, "response_format", "uniqueItems"),
    ({"response_format": schema_format({"$ref": "http://127.0.0.1/x"})}, "response_format", "127.0.0.1"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema goes with"),
    ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format", "goes with"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema",
     "missing"),
    ({"response_format": schema_format([1])}, "response_format.json_schema.schema", ""),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "", "cannot be combined"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_regex": 5}, "guided_regex", "string"),
    ({"guided_choice": []}, "guided_choice", "1 item"),
    ({"guided_choice": [""]}, "guided_choice", "1 to 1000 characters"),
    ({"guided_grammar": "x"}, "guided_grammar", "cannot be used"),
    ({"guided_json": "{"}, "guided_json", "not valid JSON"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "at most one"),
    ({"structured_outputs": {"json_object": True, "json": {}}}, "structured_outputs", "at most one"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "unknown"),
    ({"guided_regex": "a" * 300_000}, "guided_regex", "262144"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_used_is_refused(server: Server, fields: dict[str, Any], param: str, message: str) -> None:
    reply = server.post("/v1/chat/completions", {"messages": USER, **fields})
    assert reply.status == 400 and (reply.error["param"] or "") == param and message in reply.error["message"]
    assert server.http("GET", "/health/ready").status == 200


def test_the_client_says_which_field(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, response_format=schema_format({"type": "strnig"}))
    assert wrong.value.param == "response_format"


def test_what_becomes_too_complex_is_an_error_after_what_came_before_it(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole answer, and a stream, which has begun."""
    monkeypatch.setitem(LIMITS, "max_lexer_states", 1000)
    regex = "(?s:.*)a(?s:.){200}b(?s:.*)c(?s:.){200}d"
    fields: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "temperature": 2, "seed": 1}
    with pytest.raises(openai.BadRequestError, match="too complex"):
        client.completions.create(**fields, extra_body={"guided_regex": regex})
    texts = []
    with pytest.raises(openai.APIError, match="too complex"):
        for event in client.completions.create(**fields, stream=True, extra_body={"guided_regex": regex}):
            texts.append(event.choices[0].text)
    assert len("".join(texts)) > 20
