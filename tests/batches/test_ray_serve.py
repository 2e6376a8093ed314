"""The server on a Ray cluster of three nodes: chats stay where they are cached, and replicas may be killed."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.ray_cluster import on_cluster, ray_processes
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama
from pyllama2.serve import make_settings
from pyllama2.server.run import open_socket

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from pyllama2.ray import build, deployment  # noqa: E402
from pyllama2.ray.front import Front  # noqa: E402

KEY = "a-key-of-the-tests"
AUTH = {"Authorization": f"Bearer {KEY}"}
JSON = AUTH | {"Content-Type": "application/json"}
ASK: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 20, "seed": 1}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for long."""
    path = tmp_path_factory.mktemp("models") / "talker.bin"
    return write_tiny(path, "bpe", template=CHATML, max_seq_len=8192, n_layers=4)


@pytest.fixture(scope="module")
def url(cluster: str, talker: Path) -> Iterator[str]:
    """Where two replicas are served."""
    from ray import serve

    with open_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(deployment(talker, n_replicas=2, name="tiny", api_keys=[KEY]), name="tiny")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return client_of(url)


def client_of(url: str, key: str = KEY) -> openai.OpenAI:
    """A client that does not try again."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


def text_of(model: Path, **asked: Any) -> str:
    """What the library says to ASK."""
    with Llama(model) as llm:
        return llm.generate("Once", **{"max_tokens": 20, "seed": 1, "temperature": 1, "top_p": 1, **asked}).text


@on_cluster
def test_answers_are_those_of_the_library(client: openai.OpenAI, talker: Path) -> None:
    text = text_of(talker)
    assert client.completions.create(**ASK).choices[0].text == text
    stream = client.completions.create(stream=True, **ASK)
    assert "".join(event.choices[0].text for event in stream if event.choices) == text


@on_cluster
def test_a_chat_stays_with_the_replica_that_has_it(url: str, client: openai.OpenAI) -> None:
    """Every later turn finds all of the one before in the cache, and both replicas have chats."""

    for pair in range(8):  # a replica keeps a few chats
        chats: list[list[Any]] = [[{"role": "user", "content": f"{pair}{i}{pair} tell me more. " * 9}] for i in (3, 5)]
        known = [0, 0]
        for _turn in range(4):
            for i, messages in enumerate(chats):
                answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=15, seed=i)
                usage = answer.usage
                assert usage is not None and usage.prompt_tokens_details is not None
                assert (usage.prompt_tokens_details.cached_tokens or 0) >= known[i], "the chat has moved"
                known[i] = usage.prompt_tokens
                messages.append({"role": "assistant", "content": answer.choices[0].message.content})
                messages.append({"role": "user", "content": "More."})
    name = 'pyllama2_requests_total{path="/v1/chat/completions",status="200"} '
    pages = [httpx.get(f"{url}/metrics", headers=AUTH).text for _ in range(30)]
    served = {float(line.removeprefix(name)) for page in pages for line in page.splitlines() if line.startswith(name)}
    assert served == {32} or (len(served) == 2 and sum(served) == 64), "one replica has all chats"


@on_cluster
def test_the_guard_and_ids(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=AUTH | {"X-Request-Id": "mine"})
    assert answer.status_code == 200 and answer.headers.get_list("x-request-id") == ["mine"]
    with pytest.raises(openai.AuthenticationError):
        client_of(url, "not-a-key").models.list()
    for change, status, code in (
        ({"headers": {}}, 401, "invalid_api_key"),
        ({"headers": AUTH | {"Host": "evil.example"}}, 403, "host_not_allowed"),
        ({"headers": AUTH | {"Origin": "https://evil.example"}}, 403, "origin_not_allowed"),
        ({"json": body | {"tools": [{}]}}, 400, "unsupported_field"),
        ({"json": body | {"model": "gpt-5"}}, 404, "model_not_found"),
        ({"json": {"messages": "x" * (5 << 20)}}, 413, "request_too_large"),
        ({"json": None, "content": iter([b"x" * (1 << 20)] * 5)}, 413, "request_too_large"),
        (
            {"json": None, "content": b"{", "headers": JSON},
            400,
            "invalid_json",
        ),
        ({"json": None, "content": b"{}", "headers": AUTH}, 415, "unsupported_media_type"),
    ):
        request: dict[str, Any] = {"json": body, "headers": AUTH, **change}
        if request["json"] is None and status == 413:
            request["headers"] = JSON
        answer = httpx.post(f"{url}/v1/chat/completions", timeout=60, **request)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert len(answer.headers.get_list("x-request-id")) == 1
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert "<title>" in httpx.get(f"{url}/").text


@on_cluster
def test_a_client_that_leaves_ends_its_texts(url: str, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        stream=True, **ASK | {"max_tokens": 8000, "n": 8}, extra_body={"ignore_eos": True}
    )
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    wanted = 'pyllama2_requests_cancelled_total{reason="client"} 1.0'
    while wanted not in (text := httpx.get(f"{url}/metrics", headers=AUTH).text):
        assert time.monotonic() < deadline, "no replica has seen it"
    assert "pyllama2_requests_running 0.0" in text


@on_cluster
def test_a_killed_replica_is_not_noticed(url: str, client: openai.OpenAI, talker: Path) -> None:
    """Requests that it had are given to the other one, without a retry of the client."""
    long = ASK | {"max_tokens": 300, "extra_body": {"ignore_eos": True}}
    wanted = text_of(talker, max_tokens=300, ignore_eos=True)
    prompts = [f"Once{i}" for i in range(12)]  # which go to both

    def ask(i: int) -> str:
        if i % 2:
            return client.completions.create(**long).choices[0].text
        return client.completions.create(**long | {"prompt": prompts[i // 2]}).choices[0].text

    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(ask, i) for i in range(24)]
        while not any(answer.done() for answer in answers):
            time.sleep(0.01)
        (one, _) = replicas()
        one.kill()
        texts = [answer.result() for answer in answers]
    assert texts[1::2] == [wanted] * 12
    deadline = time.monotonic() + 60
    while len(replicas()) < 2:
        assert time.monotonic() < deadline, "Ray has not replaced it"
        time.sleep(0.1)
    assert client.completions.create(**ASK).choices[0].text == text_of(talker)


def replicas() -> list[Any]:
    """The processes with a model."""
    return [
        one for one in ray_processes("ServeReplica:tiny:pyllama2") if "pyllama2-front" not in " ".join(one.cmdline())
    ]


@on_cluster
def test_what_is_under_way_is_drained(url: str, client: openai.OpenAI) -> None:
    from ray import serve

    options = ASK | {"max_tokens": 3000, "stream": True, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**options)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(serve.delete, "tiny")
        last = list(stream)[-1]
        gone.result()
    assert last.choices[0].finish_reason == "length"
    assert not replicas()


@on_cluster
def test_serve_run(cluster: str, url: str, talker: Path) -> None:
    """As Ray's documentation says. Ctrl-C ends it."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", cluster, "pyllama2.ray:build"]
    words = [
        f"model={talker}",
        "n_replicas=2",
        "name=mine",
        "route_by_prefix=true",
        "allowed_hosts=a.example,b.example",
    ]
    with subprocess.Popen([*command, *words], env={**os.environ, "PYLLAMA2_API_KEY": KEY}) as process:
        try:
            deadline = time.monotonic() + 120
            while httpx.get(f"{url}/health/ready", headers={"Host": "b.example"}, timeout=60).status_code != 200:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            assert [model.id for model in client_of(url).models.list()] == ["mine"]
            answer = client_of(url).completions.create(**ASK | {"model": "mine"})
            assert answer.choices[0].text == text_of(talker)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


class Lost:
    """A handle whose replicas die, after a batch of messages each; or that raises an error instead."""

    def __init__(self, *batches: list[Any] | Exception) -> None:
        self.batches = list(batches)
        self.answer = self
        self.cancelled = 0

    def options(self, **given: Any) -> Lost:
        return self

    def remote(self, *given: Any) -> Any:
        return self.Messages(self, self.batches.pop(0))

    class Messages:
        def __init__(self, lost: Lost, batch: list[Any] | Exception) -> None:
            self.lost, self.batch = lost, batch

        def cancel(self) -> None:
            self.lost.cancelled += 1

        async def __aiter__(self) -> AsyncIterator[bytes]:
            if isinstance(self.batch, Exception):
                raise self.batch
            if self.batch:
                yield pickle.dumps(self.batch)
            if not self.batch or self.batch[-1].get("more_body"):
                raise ray.exceptions.ActorDiedError


START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
FIRST = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"data: 2\n\n"}


def relayed(*batches: list[Any] | Exception) -> tuple[list[Any], Lost]:
    """The messages of a front whose replicas answer so, each after the other has died."""
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    sent: list[Any] = []
    lost = Lost(*batches)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(Front(lost, make_settings())(scope, receive, send))
    return sent, lost


def test_a_request_whose_replica_dies_is_given_to_another() -> None:
    sent, lost = relayed([], [], [START, LAST])
    assert sent == [START, LAST] and lost.cancelled == 2


def test_it_is_given_up_in_the_end() -> None:
    sent, lost = relayed([], [], [])
    assert sent[0]["status"] == 503 and b"replica_lost" in sent[1]["body"] and not lost.batches


def test_a_stream_whose_replica_dies_ends_with_an_error_event() -> None:
    sent, lost = relayed([START, FIRST], [START, LAST])
    assert sent[:2] == [START, FIRST] and len(sent) == 3 and len(lost.batches) == 1
    assert sent[2]["body"].startswith(b'data: {"error":') and not sent[2].get("more_body")


def test_a_full_queue_and_a_bug_have_errors_of_their_own() -> None:
    from ray.serve.exceptions import BackPressureError, RayServeException

    sent, _ = relayed(BackPressureError(5, 5))
    assert sent[0]["status"] == 429 and dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert b"queue_full" in sent[1]["body"]
    sent, _ = relayed(RayServeException("/a/path"))
    assert sent[0]["status"] == 500 and b"/a/path" not in sent[1]["body"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"colour": "red"}, "'colour' is no argument"), ({"n_replicas": "many"}, "invalid literal"),
        ({"route_by_prefix": "perhaps"}, "'perhaps' is neither true nor false"),
        ({"allowed_hosts": "a b"}, "'a b' is not the name of a host"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_serve_run(args: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(args)


def test_build_makes_what_its_words_say(model: Path) -> None:
    words = {"model": str(model), "min_replicas": "1", "max_replicas": "3", "n_threads": "2", "name": "mine"}
    front = build(words)._bound_deployment
    (replicas,) = front.init_args
    settings = replicas._bound_deployment
    assert settings.ray_actor_options["num_cpus"] == 2 and front.ray_actor_options["num_cpus"] == 0
    assert settings._deployment_config.autoscaling_config.max_replicas == 3
    assert "PrefixRouter" in str(settings._deployment_config.request_router_config.request_router_class)
    assert settings._deployment_config.max_queued_requests == 128
    (replicas,) = deployment(model, n_replicas=2, max_queue=0)._bound_deployment.init_args
    assert replicas._bound_deployment._deployment_config.max_queued_requests == 1  # of 0, Ray would refuse all
    for alone in ({"n_replicas": 1}, {"n_replicas": 3, "route_by_prefix": False}):  # as a configuration file has them
        assert not build({"model": str(model), **alone})._bound_deployment.init_args
