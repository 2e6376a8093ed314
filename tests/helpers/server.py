"""A server in this process, with what a test needs to talk to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn

from pyllama2.server.app import App
from pyllama2.server.run import make_config, open_socket

HOST = "127.0.0.1"


@dataclass
class Reply:
    """An answer of plain HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is checked."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        assert "Traceback" not in error["message"] and "\n" not in error["message"]
        return error


class Server:
    """A running server."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.port = port
        self.url = f"http://{HOST}:{port}/v1"

    def client(self, **options: Any) -> Any:
        """OpenAI's client, which does not try again."""
        return openai.OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options})

    def async_client(self, **options: Any) -> Any:
        return openai.AsyncOpenAI(
            **{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )

    def http(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, raw: bool = False
    ) -> Reply:
        """A request without a client of OpenAI's; body becomes JSON unless it is raw."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        data = body if raw or body is None else json.dumps(body).encode()
        usual = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**usual, **(headers or {})})
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply

    def raw(self, request: bytes) -> bytes:
        """What the server says to bytes, up to the end of the connection."""
        with socket.create_connection((HOST, self.port), timeout=60) as connection:
            connection.sendall(request)
            found = b""
            while data := connection.recv(65536):
                found += data
        return found

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        return self.http("POST", path, body, headers)

    def metric(self, name: str) -> float:
        """The sum of a metric's values over its labels."""
        lines = self.http("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name)


@contextmanager
def serving(app: App) -> Iterator[Server]:
    """The app on a free port of this machine, in a thread."""
    bound = open_socket(HOST, 0)
    server = uvicorn.Server(make_config(app, 5.0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield Server(app, bound.getsockname()[1])
    finally:
        app.service.close()
        server.should_exit = True
        thread.join(30)
        app.service.end()
        assert not thread.is_alive()
