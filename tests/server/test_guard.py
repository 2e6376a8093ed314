"""Who may use the server: Host, Origin, keys; and what its answers tell about the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from helpers.server import Server, serving

from pyllama2 import Llama
from pyllama2.serve import create_app

KEYS = ["sk-first-key-0001", "sk-second-key-02"]
BODY = {"prompt": "x", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(chat_llm: Llama) -> Iterator[Server]:
    with serving(create_app(chat_llm, names="tiny", api_keys=KEYS)) as server:
        yield server


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8000", "127.0.0.1:1", "localhost."])
def test_hosts_that_are_this_server(server: Server, host: str) -> None:
    assert server.http("GET", "/v1/models", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "", ":8000", "localhost:x", "localhost:1:2", "[::1", "192.168.1.5",
     "a b", "localhost@evil.example", "evil.example:8000", "[localhost]"],
)  # fmt: skip
def test_hosts_that_are_others(server: Server, host: str) -> None:
    """A page whose name was rebound to this machine sends its own name."""
    for path in ("/v1/models", "/", "/docs", "/health", "/metrics"):
        reply = server.http("GET", path, headers={"Host": host})
        assert reply.status in (400, 403)
        assert reply.status == 400 or reply.error["code"] == "host_not_allowed"


def test_requests_without_a_host_or_with_two(server: Server) -> None:
    assert b" 400 " in server.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b" 403 " in server.raw(b"GET /health HTTP/1.0\r\n\r\n")
    twice = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b" 400 " in server.raw(twice)


def test_what_is_not_http(server: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"hello\r\n\r\n"):
        reply = server.raw(nonsense)
        assert b" 400 " in reply and b'"error"' in reply
    long = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"x" * 40_000 + b"\r\n\r\n"
    reply = server.raw(long)
    assert b" 431 " in reply and b"headers_too_large" in reply


def test_further_hosts(serve: Callable[..., Server]) -> None:
    server = serve(allowed_hosts=["models.example"])
    assert server.http("GET", "/health", headers={"Host": "models.example:80"}).status == 200
    assert server.http("GET", "/health", headers={"Host": "other.example"}).status == 403


def test_addresses_are_no_names_that_could_be_rebound(serve: Callable[..., Server]) -> None:
    server = serve(host="0.0.0.0", api_keys=KEYS)
    for host in ("192.168.1.5:8000", "[fe80::1]"):
        assert server.http("GET", "/health", headers={"Host": host}).status == 200
    assert server.http("GET", "/health", headers={"Host": "evil.example"}).status == 403


def test_origins(server: Server, serve: Callable[..., Server]) -> None:
    own = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    assert server.http("POST", "/v1/completions", BODY, own).status == 200
    for origin in ("https://evil.example", "null", "http://localhost:9", "http://localhost:8000.evil.example"):
        for method, path, body in (("POST", "/v1/completions", BODY), ("GET", "/v1/models", None)):
            reply = server.http(method, path, body, {"Host": "localhost:8000", "Origin": origin})
            assert reply.status == 403 and reply.error["code"] == "origin_not_allowed"
            assert "access-control-allow-origin" not in reply.headers
    open_to_one = serve(cors_origins=["https://page.example"], api_keys=KEYS)
    origin = {"Origin": "https://page.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    reply = open_to_one.http("OPTIONS", "/v1/completions", headers=preflight)
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "https://page.example"
    refused = open_to_one.http("POST", "/v1/completions", BODY, origin)
    assert refused.status == 401 and refused.headers["access-control-allow-origin"] == "https://page.example"
    answered = open_to_one.http("POST", "/v1/completions", BODY, {**origin, "Authorization": f"Bearer {KEYS[0]}"})
    assert answered.status == 200 and "x-request-id" in answered.headers["access-control-expose-headers"].lower()
    assert open_to_one.http("GET", "/health", headers={"Origin": "https://other.example"}).status == 403
    anyone = serve(cors_origins=["*"])
    assert anyone.http("POST", "/v1/completions", BODY, {"Origin": "https://any.example"}).status == 200
    assert anyone.http("POST", "/v1/completions", BODY, {"Origin": "null"}).status == 403


def test_keys(locked: Server) -> None:
    for key in KEYS:
        assert locked.client(api_key=key).completions.create(model="tiny", prompt="x", max_tokens=1)
    with pytest.raises(openai.AuthenticationError) as refused:
        locked.client(api_key="sk-wrong-key-0001").completions.create(model="tiny", prompt="x")
    assert refused.value.code == "invalid_api_key" and "sk-" not in refused.value.message
    for header in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEYS[0]}",
        KEYS[0],
        f"Bearer {KEYS[0]}x",
        "Bearer \xff",
        "Bearer a b",
    ):
        reply = locked.http("POST", "/v1/completions", BODY, {"Authorization": header})
        assert reply.status == 401 and reply.error["type"] == "invalid_request_error"
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert locked.http("GET", path).status == 401
    for path in ("/health", "/health/live", "/docs"):
        assert locked.http("GET", path).status == 200


def test_a_wrong_key_is_refused_before_the_body_is_read(locked: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reply = locked.raw(head + b"Content-Length: 1000000\r\nConnection: close\r\n\r\n")
    assert b" 401 " in reply


@pytest.mark.parametrize(
    "options",
    [
        {"api_keys": ["short"]}, {"api_keys": ["with a space in it"]}, {"names": []}, {"names": [""]},
        {"cors_origins": ["null"]}, {"cors_origins": ["https://x.example/path"]}, {"allowed_hosts": ["http://x"]},
        {"max_concurrent": 0}, {"max_queue": -1}, {"timeout_s": 0}, {"max_body_bytes": 0}, {"temperature": 3},
        {"top_p": 2},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_are_wrong(chat_llm: Llama, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        create_app(chat_llm, **options)
