"""Requests that wait, that are too many, too slow or abandoned, and what the log and the metrics say of them."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import openai
import pytest
from helpers.server import Server
from helpers.tiny_llama import write_tiny

from pyllama2 import Llama
from pyllama2.server.observe import LogFormatter

FOREVER = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow_llm(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A model with a context that takes long to fill."""
    path = write_tiny(tmp_path_factory.mktemp("models") / "slow.bin", max_seq_len=100_000, n_layers=4)
    with Llama(path) as llm:
        yield llm


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Client:
    """A client that sends a request, and reads only when it is told to."""

    def __init__(self, server: Server, body: dict[str, Any], path: str = "/v1/completions", receive: int = 0) -> None:
        self.socket = socket.socket()
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", server.port))
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)

    def read(self) -> bytes:
        found = b""
        while data := self.socket.recv(1 << 16):
            found += data
        return found

    def close(self) -> None:
        self.socket.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_texts(serve: Callable[..., Server], slow_llm: Llama, stream: bool) -> None:
    server = serve(slow_llm)
    clients = [Client(server, {**FOREVER, "stream": stream, "n": 3}) for _ in range(2)]
    wait_for(lambda: server.app.service.counts[0] == 6)
    for client in clients:
        client.close()
    wait_for(lambda: server.app.service.idle)
    assert server.metric("pyllama2_requests_cancelled_total") == 2
    assert server.metric("pyllama2_requests_running") == 0
    wait_for(lambda: not any(row.in_use for row in slow_llm._rows.rows))
    wait_for(lambda: not any(thread.name == "pyllama2-background" for thread in threading.enumerate()))


def test_a_client_that_leaves_while_it_waits_gives_up_its_place(serve: Callable[..., Server], slow_llm: Llama) -> None:
    server = serve(slow_llm, max_concurrent=1, max_queue=1)
    first, second = Client(server, FOREVER), None
    wait_for(lambda: server.app.service.counts == (1, 0))
    second = Client(server, FOREVER)
    wait_for(lambda: server.app.service.counts == (1, 1))
    second.close()
    wait_for(lambda: server.app.service.counts == (1, 0))
    first.close()
    wait_for(lambda: server.app.service.idle)


def test_a_full_queue_is_told_at_once(serve: Callable[..., Server], slow_llm: Llama) -> None:
    server = serve(slow_llm, max_concurrent=2, max_queue=1)
    clients = [Client(server, FOREVER) for _ in range(2)]
    wait_for(lambda: server.app.service.counts == (2, 0))
    clients.append(Client(server, {"prompt": "x", "max_tokens": 2}))
    wait_for(lambda: server.app.service.counts == (2, 1))
    with pytest.raises(openai.RateLimitError) as refused:
        server.client().completions.create(model="tiny", prompt="x")
    assert refused.value.code == "queue_full" and 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    clients[0].close()
    assert b" 200 " in clients[2].read()
    clients[1].close()
    wait_for(lambda: server.app.service.idle)
    assert server.metric("pyllama2_requests_total") >= 4


@pytest.mark.slow
def test_every_request_of_a_crowd_is_answered(serve: Callable[..., Server]) -> None:
    """Either with its text or with 429, and clients that try again get through."""
    server = serve(max_concurrent=2, max_queue=4)
    client = server.client(max_retries=10)
    alone = [client.completions.create(model="tiny", prompt="x", seed=seed, max_tokens=8).choices for seed in range(40)]
    with ThreadPoolExecutor(40) as pool:
        found = pool.map(
            lambda seed: client.completions.create(model="tiny", prompt="x", seed=seed, max_tokens=8).choices, range(40)
        )
        assert list(found) == alone


def test_more_texts_than_slots_in_one_request(serve: Callable[..., Server]) -> None:
    server = serve(max_concurrent=2, max_queue=0)
    client = server.client()
    answer = client.completions.create(model="tiny", prompt=["x", "y", "z"], n=4, seed=1, max_tokens=4)
    events = list(
        client.completions.create(model="tiny", prompt=["x", "y", "z"], n=4, seed=1, max_tokens=4, stream=True)
    )
    for choice in answer.choices:
        parts = [part.text for event in events for part in event.choices if part.index == choice.index]
        assert "".join(parts) == choice.text
    assert len({choice.text for choice in answer.choices}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_time_of_a_request_is_limited(serve: Callable[..., Server], slow_llm: Llama, stream: bool) -> None:
    server = serve(slow_llm, timeout_s=1.0)
    client = server.client()
    with pytest.raises(openai.APIError, match="longer than the 1 seconds") as late:
        answer = client.completions.create(
            model="tiny", prompt="x", max_tokens=100_000, stream=stream, extra_body={"ignore_eos": True}
        )
        for _ in answer:
            pass
    assert stream or late.value.status_code == 504  # type: ignore[attr-defined]
    wait_for(lambda: server.app.service.idle)
    assert server.metric("pyllama2_requests_cancelled_total") == 1


@pytest.mark.slow
def test_a_wait_in_the_queue_counts_for_the_time(serve: Callable[..., Server], slow_llm: Llama) -> None:
    server = serve(slow_llm, timeout_s=2.0, max_concurrent=1)
    first = Client(server, FOREVER)
    wait_for(lambda: server.app.service.counts == (1, 0))
    reply = server.post("/v1/completions", {"prompt": "x"})
    assert reply.status in (200, 504)
    assert b"timeout" in first.read()


@pytest.mark.slow
def test_a_slow_reader_delays_nobody_and_is_bounded(serve: Callable[..., Server], slow_llm: Llama) -> None:
    """Its text pauses when enough waits for it, gives its slot to others, and goes on when it reads."""
    server = serve(slow_llm, max_concurrent=1)
    body = {**FOREVER, "max_tokens": 2500, "stream": True, "logprobs": 20}
    reader = Client(server, body, receive=4096)
    wait_for(lambda: server.app.service.counts[0] == 1)
    [choice] = server.app.service.desk._running
    wait_for(lambda: choice.stream.job.paused)
    assert len(choice.stream.job.queue) <= 512 + 8
    for _ in range(3):
        assert server.post("/v1/completions", {"prompt": "y", "max_tokens": 3}).status == 200
    text = reader.read()
    assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and b'"finish_reason":"length"' in text
    wait_for(lambda: server.app.service.idle)


def test_half_open_connections_are_closed(serve: Callable[..., Server]) -> None:
    server = serve(limits={"header_timeout_s": 0.5})
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(20)]
    for i, connection in enumerate(connections):
        if i % 2:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: local")
    assert server.http("GET", "/health").status == 200
    for connection in connections:
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()


def test_a_body_that_never_comes(serve: Callable[..., Server]) -> None:
    server = serve(limits={"body_timeout_s": 0.5})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b" 408 " in server.raw(head + b"Content-Length: 100\r\n\r\n{")


@pytest.mark.slow
def test_pings_keep_a_silent_stream_open(serve: Callable[..., Server], slow_llm: Llama) -> None:
    server = serve(slow_llm, {"ping_s": 0.2}, max_concurrent=1)
    first = Client(server, FOREVER)
    wait_for(lambda: server.app.service.counts == (1, 0))
    waits = Client(server, {"prompt": "x", "max_tokens": 2, "stream": True, "ignore_eos": True})
    seen = b""
    while seen.count(b": ping\n\n") < 2:
        seen += waits.socket.recv(1000)
    first.close()
    rest = waits.read()
    assert b"data: [DONE]" in rest and b" 200 " in seen


def test_closing_refuses_new_requests_and_ends_old_ones(serve: Callable[..., Server], slow_llm: Llama) -> None:
    server = serve(slow_llm)
    whole, streamed = Client(server, FOREVER), Client(server, {**FOREVER, "stream": True})
    wait_for(lambda: server.app.service.counts[0] == 2)
    first = streamed.socket.recv(1000)
    service = server.app.service
    service.close()
    assert server.http("GET", "/health").json == {"status": "ending"}
    assert server.http("GET", "/health/ready").status == 503 and server.http("GET", "/health/live").status == 200
    with pytest.raises(openai.InternalServerError) as refused:
        server.client().completions.create(model="tiny", prompt="x")
    assert refused.value.status_code == 503 and refused.value.code == "shutting_down"
    done = threading.Event()
    service.desk._loop.call_soon_threadsafe(lambda: (service.end(), done.set()))
    done.wait(30)
    assert b" 503 " in whole.read()
    text = first + streamed.read()
    assert b'"code":"shutting_down"' in text and b"[DONE]" not in text


class TestRecords:
    def test_a_request_has_an_id(self, server: Server) -> None:
        made = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).headers["x-request-id"]
        assert made.startswith("req-")
        taken = server.post("/v1/completions", {"prompt": 5}, {"X-Request-Id": "mine-1"})
        assert taken.status == 400 and taken.headers["x-request-id"] == "mine-1"
        for hostile in ("a b", "x" * 200, "\xe9", ""):
            reply = server.http("GET", "/health", headers={"X-Request-Id": hostile})
            assert reply.headers["x-request-id"].startswith("req-")

    def test_a_line_for_each_request(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        logger = logging.getLogger("pyllama2.server")
        logger.setLevel(logging.INFO)
        with caplog.at_level(logging.INFO, "pyllama2.server"):
            body = {"prompt": "a secret", "max_tokens": 5, "ignore_eos": True}
            server.post("/v1/completions", body, {"X-Request-Id": "r1", "Authorization": "Bearer sk-secret-key"})
            server.http("GET", "/nothing%0aelse")
            wait_for(lambda: any("else" in str(vars(record)) for record in caplog.records))
        [first] = [record for record in caplog.records if "r1" in str(vars(record))]
        [second] = [record for record in caplog.records if "else" in str(vars(record))]
        text = LogFormatter(as_json=False).format(first)
        assert "id=r1" in text and "status=200" in text and "tokens=5" in text and "first_token_s=" in text
        assert "tokens_per_s=" in text and "\n" not in text and "secret" not in text
        found = json.loads(LogFormatter(as_json=True).format(first))
        assert (found["id"], found["status"], found["tokens"], found["finish"]) == ("r1", 200, 5, "length")
        assert found["path"] == "/v1/completions" and found["seconds"] >= found["first_token_s"] > 0
        assert "\n" not in LogFormatter(as_json=False).format(second)
        assert "secret" not in LogFormatter(as_json=True).format(first)

    def test_metrics(self, serve: Callable[..., Server]) -> None:
        server = serve()
        for fields in ({}, {"stream": True}, {"n": 2}, {"temperature": 9}):
            server.post(
                "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": True, **fields}
            )
        n_prompt = len(server.app.service.llm.tokenize("Once upon a time"))
        wait_for(lambda: server.metric("pyllama2_requests_total") >= 4)
        assert server.metric("pyllama2_generated_tokens_total") == 16
        assert server.metric("pyllama2_prompt_tokens_total") == 3 * n_prompt
        assert server.metric("pyllama2_cached_tokens_total") > 0
        assert server.metric("pyllama2_time_to_first_token_seconds_count") == 3
        assert server.metric("pyllama2_time_per_token_seconds_count") == 3
        assert server.metric("pyllama2_kv_cache_capacity_tokens") >= server.metric("pyllama2_kv_cache_tokens") > 0
        assert 0 < server.metric("pyllama2_kv_cache_use_ratio") <= 1
        for name in ("requests_running", "requests_waiting", "requests_cancelled_total"):
            assert server.metric(f"pyllama2_{name}") == 0
        text = server.http("GET", "/metrics").body.decode()
        assert 'pyllama2_requests_total{path="/v1/completions",status="400"} 1.0' in text

    def test_an_unexpected_error_is_logged_and_answered(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("in /home/someone/secret.py")

        monkeypatch.setattr(server.app.service, "check_model", fail)
        reply = server.post("/v1/completions", {"prompt": "x"})
        assert (
            reply.status == 500 and reply.error["code"] == "internal_error" and "secret" not in reply.error["message"]
        )
        wait_for(lambda: "secret.py" in caplog.text)


def test_the_app_in_another_program(chat_llm: Llama) -> None:
    """Without uvicorn and without a lifespan: the ASGI interface alone, in two loops one after the other."""
    from pyllama2.serve import create_app

    async def ask() -> tuple[int, bytes]:
        app = create_app(chat_llm, names="tiny")
        sent: list[Any] = []
        body = iter(
            [
                {
                    "type": "http.request",
                    "body": json.dumps({"prompt": "x", "max_tokens": 2, "ignore_eos": True}).encode(),
                }
            ]
        )
        never = asyncio.Event()

        async def receive() -> Any:
            for message in body:
                return message
            await never.wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }  # fmt: skip
        await app(scope, receive, send)
        app.service.end()
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    for _ in range(2):
        status, body = asyncio.run(ask())
        assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 2


def test_answers_without_http(chat_llm: Llama) -> None:
    """What batches use."""
    from pyllama2.serve import create_app
    from pyllama2.server.errors import ApiError

    async def run() -> None:
        service = create_app(chat_llm, names="tiny", max_concurrent=2).service
        bodies = [{"prompt": "x", "seed": seed, "max_tokens": 6} for seed in range(6)]
        requests = [service.parse("/v1/completions", body) for body in bodies]
        together = await asyncio.gather(*map(service.answer, requests))
        alone = [await service.answer(request) for request in requests]
        assert [answer["choices"] for answer in together] == [answer["choices"] for answer in alone]
        with pytest.raises(ApiError) as refused:
            service.parse("/v1/chat/completions", b'{"messages": []}')
        assert refused.value.param == "messages"
        with pytest.raises(ApiError):
            service.parse("/v1/embeddings", {})
        service.end()

    asyncio.run(run())
