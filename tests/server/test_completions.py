"""/v1/completions and /v1/chat/completions through OpenAI's client: every field, whole and streamed."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Any, get_type_hints

import openai
import pytest
from helpers.server import Server
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from pyllama2 import Llama
from pyllama2.server.requests import ChatRequest, CompletionRequest

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
PROMPT = "Once upon a time"


def complete(client: Any, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": prompt, "max_tokens": 12, "seed": 3, **fields})


def chat(client: Any, messages: Any = MESSAGES, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "max_tokens": 12, "seed": 3, **fields}
    )


class TestCompletions:
    def test_is_the_text_of_the_library(self, client: Any, chat_llm: Llama) -> None:
        answer = complete(client, temperature=0.8, top_p=0.7)
        expected = chat_llm.generate(PROMPT, seed=3, max_tokens=12, temperature=0.8, top_p=0.7)
        [choice] = answer.choices
        assert (choice.text, choice.finish_reason) == (expected.text, "length")
        assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
        assert answer.object == "text_completion" and answer.model == "tiny" and answer.id.startswith("cmpl-")
        assert answer.system_fingerprint.startswith("fp_")

    def test_defaults_are_openais(self, server: Server, chat_llm: Llama) -> None:
        [choice] = server.post("/v1/completions", {"prompt": PROMPT, "seed": 3}).json["choices"]
        expected = chat_llm.generate(PROMPT, seed=3, max_tokens=16, temperature=1, top_p=1)
        assert choice["text"] == expected.text

    def test_every_kind_of_prompt(self, client: Any, chat_llm: Llama) -> None:
        ids = chat_llm.tokenize("One day")
        texts = [
            chat_llm.generate(prompt, seed=3, max_tokens=12, temperature=1, top_p=1).text for prompt in (PROMPT, ids)
        ]
        assert [choice.text for choice in complete(client, ids).choices] == texts[1:]
        assert [choice.text for choice in complete(client, [PROMPT, "One day"]).choices] == texts
        assert [choice.text for choice in complete(client, [ids, chat_llm.tokenize(PROMPT)]).choices] == texts[::-1]

    def test_n_choices_have_seeds_one_after_the_other(self, client: Any, chat_llm: Llama) -> None:
        answer = complete(client, [PROMPT, "One day"], n=3)
        expected = [
            chat_llm.generate(prompt, seed=seed, max_tokens=12, temperature=1, top_p=1).text
            for prompt in (PROMPT, "One day")
            for seed in (3, 4, 5)
        ]
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == list(range(6))
        n_prompt = len(chat_llm.tokenize(PROMPT)) + len(chat_llm.tokenize("One day"))
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_prompt, 72)

    def test_negative_seeds_repeat_too(self, client: Any) -> None:
        assert complete(client, seed=-5).choices == complete(client, seed=-5).choices

    @pytest.mark.parametrize(
        "fields",
        [
            {"temperature": 0}, {"top_p": 0.5}, {"presence_penalty": 1.5}, {"frequency_penalty": -1.0},
            {"logit_bias": {"70": 50}}, {"stop": "e"}, {"stop": ["e", "a"]}, {"extra_body": {"top_k": 3}},
            {"extra_body": {"min_p": 0.2}}, {"extra_body": {"repetition_penalty": 1.7}}, {"max_tokens": 1},
            {"extra_body": {"ignore_eos": True}},
        ],
        ids=str,
    )  # fmt: skip
    def test_fields_are_the_librarys(self, client: Any, chat_llm: Llama, fields: dict[str, Any]) -> None:
        answer = complete(client, **{"max_tokens": 40, **fields})
        sampling = {"max_tokens": 40, "temperature": 1, "top_p": 1, **fields, **fields.get("extra_body", {})}
        sampling.pop("extra_body", None)
        if "logit_bias" in sampling:
            sampling["logit_bias"] = {70: 50}
        expected = chat_llm.generate(PROMPT, seed=3, **sampling)
        assert answer.choices[0].text == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage.completion_tokens == expected.usage.completion_tokens

    def test_top_p_of_0_is_greedy(self, client: Any) -> None:
        assert complete(client, top_p=0).choices[0].text == complete(client, temperature=0).choices[0].text

    def test_top_k_of_minus_1_is_off(self, client: Any) -> None:
        assert complete(client, extra_body={"top_k": -1}).choices == complete(client).choices

    def test_logprobs(self, client: Any, chat_llm: Llama) -> None:
        [choice] = complete(client, logprobs=3).choices
        expected = chat_llm.generate(PROMPT, seed=3, max_tokens=12, temperature=1, top_p=1, logprobs=3)
        assert expected.logprobs is not None
        assert choice.logprobs.tokens == [entry.token for entry in expected.logprobs]
        assert choice.logprobs.token_logprobs == pytest.approx([entry.logprob for entry in expected.logprobs])
        for entry, top in zip(expected.logprobs, choice.logprobs.top_logprobs, strict=True):
            assert top[entry.token] == pytest.approx(entry.logprob)
            assert {token for _, token, _ in entry.top} <= set(top)
        assert choice.logprobs.text_offset[0] == 0
        assert all(0 <= offset <= len(choice.text) for offset in choice.logprobs.text_offset)

    def test_echo_scores_the_prompt(self, client: Any, chat_llm: Llama) -> None:
        """What evaluation harnesses ask for: nothing generated, each token of the prompt with its log-probability."""
        [choice] = complete(client, echo=True, logprobs=2, max_tokens=0).choices
        ids = chat_llm.tokenize(PROMPT)
        assert choice.text == PROMPT and choice.finish_reason == "length"
        assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(chat_llm.score(ids).tolist(), abs=1e-4)
        pieces = [chat_llm.tokenizer.token_bytes(token) for token in ids]
        assert choice.logprobs.text_offset == list(accumulate(map(len, pieces[:-1]), initial=0))

    def test_echo_goes_before_the_text(self, client: Any) -> None:
        plain = complete(client, logprobs=0).choices[0]
        echoed = complete(client, logprobs=0, echo=True).choices[0]
        assert echoed.text == PROMPT + plain.text
        n = len(plain.logprobs.tokens)
        assert echoed.logprobs.tokens[-n:] == plain.logprobs.tokens
        assert [offset - len(PROMPT) for offset in echoed.logprobs.text_offset[-n:]] == plain.logprobs.text_offset

    def test_a_stream_adds_up(self, client: Any) -> None:
        options = {"logprobs": 1, "n": 2, "echo": True}
        whole = complete(client, [PROMPT, "One day"], **options)
        events = list(
            complete(client, [PROMPT, "One day"], stream=True, stream_options={"include_usage": True}, **options)
        )
        for choice in whole.choices:
            parts = [part for event in events for part in event.choices if part.index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
            tokens = [token for part in parts for token in part.logprobs.tokens]
            offsets = [offset for part in parts for offset in part.logprobs.text_offset]
            assert (tokens, offsets) == (choice.logprobs.tokens, choice.logprobs.text_offset)
        assert events[-1].choices == [] and events[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert all(event.usage is None for event in events[:-1])

    def test_cached_tokens_are_counted(self, client: Any) -> None:
        long = "There was a fox in the forest who wanted to see the sea, and nobody could tell it the way. " * 3
        complete(client, long)
        usage = complete(client, long).usage
        assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens

    def test_harmless_fields_are_ignored(self, client: Any) -> None:
        fields = {"user": "u", "best_of": 1, "suffix": "", "response_format": {"type": "text"}, "store": True}
        assert complete(client, extra_body=fields).choices == complete(client).choices
        nothing = dict.fromkeys(("n", "stop", "logprobs", "echo", "stream", "logit_bias", "top_k", "stream_options"))
        assert complete(client, extra_body=nothing).choices == complete(client).choices


class TestChats:
    def test_is_the_text_of_the_library(self, client: Any, chat_llm: Llama) -> None:
        answer = chat(client, temperature=0.8)
        expected = chat_llm.chat(MESSAGES, seed=3, max_tokens=12, temperature=0.8, top_p=1)
        [choice] = answer.choices
        assert choice.message.content == expected.text and choice.message.role == "assistant"
        assert choice.finish_reason == expected.finish_reason and choice.logprobs is None
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        assert answer.usage.prompt_tokens == len(chat_llm.chat_tokens(MESSAGES))

    def test_without_a_limit_it_goes_on_to_the_end(self, client: Any, chat_llm: Llama) -> None:
        answer = chat(client, max_tokens=None)
        expected = chat_llm.chat(MESSAGES, seed=3, max_tokens=None, temperature=1, top_p=1)
        assert answer.choices[0].message.content == expected.text

    def test_both_names_of_the_limit(self, client: Any) -> None:
        assert chat(client, max_tokens=None, max_completion_tokens=5).usage.completion_tokens <= 5
        assert chat(client, max_tokens=5, max_completion_tokens=5).usage.completion_tokens <= 5

    def test_parts_and_roles(self, client: Any) -> None:
        parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sky blue?"}]
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is\nthe sky blue?"}]
        assert chat(client, messages).choices == chat(client, plain).choices

    def test_an_answer_can_be_sent_back(self, client: Any) -> None:
        answer = chat(client).choices[0].message
        usual = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "And?"}]
        whole = [*MESSAGES, answer.model_dump(), {"role": "user", "content": "And?"}]
        assert chat(client, whole).choices == chat(client, usual).choices

    def test_logprobs_have_bytes(self, client: Any, chat_llm: Llama) -> None:
        [choice] = chat(client, logprobs=True, top_logprobs=2).choices
        content = choice.logprobs.content
        assert (
            b"".join(bytes(entry.bytes or []) for entry in content).decode(errors="replace") == choice.message.content
        )
        assert all(len(entry.top_logprobs) == 2 for entry in content)
        expected = chat_llm.chat(MESSAGES, seed=3, max_tokens=12, temperature=1, top_p=1, logprobs=2)
        assert [entry.token for entry in content] == [entry.token for entry in expected.logprobs or ()]

    def test_the_form_of_a_stream(self, client: Any) -> None:
        events = list(chat(client, stream=True, stream_options={"include_usage": True}))
        deltas = [event.choices[0].delta for event in events[:-1]]
        assert deltas[0].role == "assistant" and deltas[0].content == ""
        assert all(delta.role is None for delta in deltas[1:])
        assert events[-2].choices[0].finish_reason in ("stop", "length") and deltas[-1].content is None
        whole = chat(client)
        assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
        assert events[-1].usage.total_tokens == whole.usage.total_tokens
        assert len({event.id for event in events}) == 1
        assert {event.object for event in events} == {"chat.completion.chunk"}

    def test_a_stream_with_choices_and_logprobs_adds_up(self, client: Any) -> None:
        whole = chat(client, n=3, logprobs=True, top_logprobs=1)
        events = list(chat(client, n=3, logprobs=True, top_logprobs=1, stream=True))
        for choice in whole.choices:
            parts = [part for event in events for part in event.choices if part.index == choice.index]
            assert "".join(part.delta.content or "" for part in parts) == choice.message.content
            entries = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
            assert entries == choice.logprobs.content

    def test_a_stream_without_options_has_no_usage(self, server: Server) -> None:
        reply = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": True})
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store" and reply.headers["x-accel-buffering"] == "no"
        assert b"usage" not in reply.body and reply.body.endswith(b"data: [DONE]\n\n")

    def test_harmless_fields_are_ignored(self, client: Any) -> None:
        fields = {
            "tools": [], "tool_choice": "none", "functions": None, "modalities": ["text"], "metadata": {"a": "b"},
            "service_tier": "auto", "parallel_tool_calls": True, "user": "u", "response_format": {"type": "text"},
            "prompt_cache_options": {"ttl": "30m"},
        }  # fmt: skip
        assert chat(client, extra_body=fields).choices == chat(client).choices

    def test_every_field_of_the_client_is_known(self) -> None:
        """Each is understood, ignored or refused as unsupported, rather than as a misspelling."""
        for module, body in ((chat_params, ChatRequest), (completion_params, CompletionRequest)):
            kinds = ("CompletionCreateParamsNonStreaming", "CompletionCreateParamsStreaming")
            fields = {name for kind in kinds for name in get_type_hints(getattr(module, kind))}
            assert len(fields) > 15 and fields <= set(body.model_fields)

    def test_the_async_client(self, server: Server, client: Any) -> None:
        async def run() -> None:
            async with server.async_client() as mine:
                answers = await asyncio.gather(*(chat(mine, seed=seed) for seed in range(5)))
                events = [event async for event in await chat(mine, stream=True)]
            assert [answer.choices for answer in answers] == [chat(client, seed=seed).choices for seed in range(5)]
            text = "".join(event.choices[0].delta.content or "" for event in events)
            assert text == chat(client).choices[0].message.content

        asyncio.run(run())


def test_answers_have_the_clients_types(client: Any) -> None:
    """The client does not check what it reads; pydantic does here, strictly."""
    for answer, kind in (
        (complete(client, logprobs=2), openai.types.Completion),
        (chat(client, logprobs=True, top_logprobs=2), openai.types.chat.ChatCompletion),
        (client.models.retrieve("tiny"), openai.types.Model),
    ):
        kind.model_validate(answer.model_dump(), strict=True)
    for event in chat(client, stream=True, logprobs=True, stream_options={"include_usage": True}):
        openai.types.chat.ChatCompletionChunk.model_validate(event.model_dump(), strict=True)


def test_models(client: Any, chat_llm: Llama) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o"]
    assert client.models.retrieve("gpt-4o").owned_by == "pyllama2"
    assert complete(client, model="gpt-4o").model == "gpt-4o"


def test_tokens(server: Server, chat_llm: Llama) -> None:
    reply = server.post("/tokenize", {"prompt": PROMPT, "return_token_strs": True}).json
    ids = chat_llm.tokenize(PROMPT)
    assert reply["tokens"] == ids and reply["count"] == len(ids) and reply["max_model_len"] == chat_llm.n_ctx
    assert "".join(reply["token_strs"]).endswith(PROMPT)
    assert server.post("/tokenize", {"messages": MESSAGES}).json["tokens"] == chat_llm.chat_tokens(MESSAGES)
    bare = server.post("/tokenize", {"prompt": PROMPT, "add_special_tokens": False}).json["tokens"]
    assert bare == chat_llm.tokenize(PROMPT, bos=False)
    assert server.post("/detokenize", {"tokens": ids}).json == {"prompt": chat_llm.detokenize(ids)}


def test_the_rest(server: Server) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert server.http("GET", path).json == {"status": "ok"}
    page = server.http("GET", "/docs")
    assert page.status == 200 and b"/v1/chat/completions" in page.body and b"<script" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    description = server.http("GET", "/openapi.json").json
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"} <= set(
        description["paths"]
    )
    fields = description["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "top_k", "min_p", "stream_options", "logit_bias"} <= set(fields)
