"""What the server refuses: each with its status, in OpenAI's form, in one sentence that names the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from helpers.server import Server
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, write_tiny

from pyllama2 import Llama

USER = [{"role": "user", "content": "Hello"}]
WRONG_CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "'user'"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "string"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "parts"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages.0.content", "image_url parts are not supported"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls", "support"),
    ({"tools": [{"type": "function"}]}, "tools", "support"),
    ({"functions": [{}]}, "functions", "support"),
    ({"tool_choice": "required"}, "tool_choice", "support"),
    ({"audio": {"voice": "x"}}, "audio", "support"),
    ({"modalities": ["text", "audio"]}, "modalities", "support"),
    ({"web_search_options": {"a": 1}}, "web_search_options", "support"),
    ({"web_search_options": {}}, "web_search_options", "support"),  # which asks for a search
    ({"moderation": {"model": "x"}}, "moderation", "support"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "support"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"temperature": 2.1}, "temperature", "2"),
    ({"temperature": "1"}, "temperature", "number"),
    ({"temperature": True}, "temperature", "number"),
    ({"top_p": -0.1}, "top_p", "0"),
    ({"max_tokens": -1}, "max_tokens", "0"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": 10**30}, None, ""),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "two names"),
    ({"n": 0}, "n", "1"),
    ({"n": 17}, "n", "at most 16"),
    ({"stop": ""}, "stop", "1 to 1000 characters"),
    ({"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"stop": [1]}, "stop", "string"),
    ({"seed": "x"}, "seed", "integer"),
    ({"seed": 2**64}, "seed", ""),
    ({"presence_penalty": 2.5}, "presence_penalty", "2"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "-2"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "100"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"logprobs": 2}, "logprobs", "boolean"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "streams"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown"),
    ({"min_p": 2}, "min_p", "1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"top_k": -2}, "top_k", "-1"),
    ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
    ({"temprature": 5}, "temprature", "did you mean temperature?"),
    ({"zzz": 5}, "zzz", "unknown"),
]  # fmt: skip
WRONG_COMPLETIONS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": []}, "prompt", "none empty"),
    ({"prompt": [[]]}, "prompt", "none empty"),
    ({"prompt": [1, "x"]}, "prompt", "string"),
    ({"prompt": {"a": 1}}, "prompt", "string"),
    ({"prompt": [True, False]}, "prompt", "string"),
    ({"prompt": [99999]}, "prompt", "99999"),
    ({"prompt": ["x", "\ud800"]}, "prompt", "prompt 1"),
    ({"prompt": ["x"] * 129}, "prompt", "at most 128"),
    ({"prompt": ["x"] * 100, "n": 3}, "n", "at most 256"),
    ({"prompt": "x", "best_of": 2}, "best_of", "support"),
    ({"prompt": "x", "suffix": "y"}, "suffix", "support"),
    ({"prompt": "x", "logprobs": True}, "logprobs", "integer"),
    ({"prompt": "x", "tools": []}, "tools", "unknown"),
    ({}, "prompt", "missing"),
]


@pytest.mark.parametrize(("fields", "param", "words"), WRONG_CHATS, ids=lambda value: str(value)[:60])
def test_wrong_fields_of_chats(server: Server, fields: dict[str, Any], param: str | None, words: str) -> None:
    reply = server.post("/v1/chat/completions", {"messages": USER, "max_tokens": 2, **fields})
    if "max_tokens" in fields and fields["max_tokens"] == 10**30:  # as many as the context holds
        assert reply.status in (200, 400)
        return
    assert reply.status == 400 and reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param and words in reply.error["message"]


@pytest.mark.parametrize(("fields", "param", "words"), WRONG_COMPLETIONS, ids=lambda value: str(value)[:60])
def test_wrong_fields_of_completions(server: Server, fields: dict[str, Any], param: str | None, words: str) -> None:
    reply = server.post("/v1/completions", fields)
    assert reply.status == 400
    assert reply.error["param"] == param and words in reply.error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_field"), (b"{", "invalid_json"), (b"[]", "invalid_value"), (b"null", None), (b"7", None),
        (b"\xff\xfe", None), (b'{"prompt": "x", "temperature": NaN}', "invalid_value"), (b"[" * 100_000, None),
        (b'{"prompt": ' + b"9" * 10_000 + b"}", None), (b'{"prompt": "x", "temperature": 1e999}', "invalid_value"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, None), (b'{"prompt": "\x00"}', None),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_hostile_bodies(server: Server, body: bytes, code: str | None) -> None:
    reply = server.http("POST", "/v1/completions", body, {"Content-Type": "application/json"}, raw=True)
    assert reply.status == 400
    assert code is None or reply.error["code"] == code
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status == 200


def test_the_clients_exceptions(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="tiny", messages=USER, temperature=9)
    assert wrong.value.param == "temperature" and wrong.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="x")
    assert missing.value.code == "model_not_found" and "tiny" in missing.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_long_prompts(server: Server, chat_llm: Llama) -> None:
    for path, fields in (
        ("/v1/completions", {"prompt": "x " * 5000}),
        ("/v1/completions", {"prompt": [5] * 5000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x " * 5000}]}),
    ):
        reply = server.post(path, fields)
        assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"
        assert str(chat_llm.n_ctx) in reply.error["message"]


def test_paths_and_methods(server: Server) -> None:
    assert server.http("GET", "/v1/nothing%1b[2J").error["message"] == r"there is no '/v1/nothing\x1b[2J'"
    missing = server.post("/v1/embeddings", {"input": "x"})
    assert missing.status == 404 and "/v1/embeddings" in missing.error["message"]
    wrong = server.http("GET", "/v1/completions")
    assert wrong.status == 405 and wrong.error["code"] == "method_not_allowed"


def test_types_and_sizes_of_bodies(serve: Callable[..., Server]) -> None:
    server = serve(max_body_bytes=1000)
    body = json.dumps({"prompt": "x"}).encode()
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": ""}, {"Content-Encoding": "gzip"}):
        reply = server.http("POST", "/v1/completions", body, headers, raw=True)
        assert reply.status == 415 and reply.error["code"] == "unsupported_media_type"
    long = {"prompt": "x" * 1000}
    assert server.post("/v1/completions", long).error["code"] == "request_too_large"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunks = 2 * (b"258\r\n" + b"x" * 600 + b"\r\n") + b"0\r\n\r\n"
    answer = server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)  # its length is not told before
    assert b" 413 " in answer and b"request_too_large" in answer
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status == 200


def test_tokens_that_are_wrong(server: Server) -> None:
    for path, body, param in (
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "x", "messages": USER}, None),
        ("/tokenize", {"prompt": "x", "model": "y"}, "model"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens.0"),
    ):
        reply = server.post(path, body)
        assert reply.status in (400, 404) and reply.error["param"] == param


def test_a_model_that_fails(one_thread: None, tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Its logits are not finite. What it says is for the log, and the server goes on."""
    weights = random_weights(CONFIG)
    weights["output.weight"][:] = np.nan
    path = write_tiny(tmp_path / "secret-place.bin", weights=weights)
    with Llama(path) as llm:
        server = serve(llm)
        for fields in ({}, {"stream": True}, {"n": 3}):
            reply = server.post("/v1/completions", {"prompt": "x", **fields})
            assert reply.status == 500 and reply.error["code"] == "generation_failed"
            assert reply.error["type"] == "server_error" and "secret" not in reply.body.decode()
        assert server.http("GET", "/health").status == 200


def test_a_bias_that_leaves_nothing(server: Server, chat_llm: Llama) -> None:
    """-100 forbids nothing for certain, so even a bias on all tokens gives a text."""
    bias = {str(token): -100 for token in range(chat_llm.config.vocab_size)}
    assert server.post("/v1/completions", {"prompt": "x", "logit_bias": bias, "max_tokens": 3}).status == 200


@pytest.mark.slow
def test_an_error_after_the_first_event_is_an_event(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllama2.generation.generation import Generation

    advance, n = Generation.advance, 0

    def fail(self: Generation, result: Any) -> Any:
        nonlocal n
        n += 1
        if n > 600:
            raise RuntimeError("/home/someone/model.bin is broken")
        return advance(self, result)

    monkeypatch.setattr(Generation, "advance", fail)
    client = server.client()
    events = client.completions.create(
        model="tiny", prompt="x", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    with pytest.raises(openai.APIError, match="could not go on") as failed:
        for _ in events:
            seen += 1
    assert seen > 0 and "home" not in str(failed.value.body)
    monkeypatch.undo()
    reply = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert reply.status == 200
