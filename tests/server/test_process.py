"""python -m pyllama2.serve as a process: its end, its flags, its keys, and what it says."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.tiny_llama import write_tiny

ROOT = Path(__file__).parents[2]
KEY = "sk-a-key-for-the-tests"
ENDLESS: dict[str, Any] = {  # a request that outlives every test
    "model": "My-model",
    "prompt": "x",
    "max_tokens": 90_000,
    "extra_body": {"ignore_eos": True},
}
pytestmark = pytest.mark.subprocess


class Process:
    """A server whose log is collected."""

    def __init__(self, arguments: Sequence[Any], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyllama2.serve", "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        self.log: list[str] = []
        self.port = 0
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._started.wait(60) and self.port, self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving .* at http://[^ ]*:(\d+)/v1", line):
                self.port = int(found[1])
                self._started.set()
        self._started.set()

    def client(self, **options: Any) -> Any:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **options)

    def end(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stdout is not None and self.process.stdout.read() == ""
        return code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for long."""
    return write_tiny(tmp_path_factory.mktemp("hidden-folder") / "My model.bin", max_seq_len=100_000, n_layers=4)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def new(*arguments: Any, **environment: str) -> Process:
        usual = {"PYLLAMA2_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYLLAMA2_API_KEY": "", "PYLLAMA2_MODEL": ""}
        started.append(Process(arguments, {**usual, **environment}))
        return started[-1]

    yield new
    for process in started:
        process.process.kill()
        process.process.wait()


def run(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """A server that ends by itself."""
    environment = {"PYTHONPATH": str(ROOT), "PYLLAMA2_API_KEY": "", **environment}
    return subprocess.run(
        [sys.executable, "-m", "pyllama2.serve", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end_and_refuses_others(start: Callable[..., Process], model: Path, number: int) -> None:
    server = start("-m", model, "--grace", 60)
    client = server.client()
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    kept.request("GET", "/health")
    kept.getresponse().read()
    stream = client.completions.create(stream=True, **ENDLESS | {"max_tokens": 1500})
    next(stream)
    server.process.send_signal(number)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # until the server has seen the signal
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        except ConnectionRefusedError:
            break
        time.sleep(0.02)
    last = list(stream)[-1]
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(60) == 0
    assert any("ending" in line for line in server.log) and not any("Traceback" in line for line in server.log)


def test_what_outlives_the_grace_ends_with_an_error(start: Callable[..., Process], model: Path) -> None:
    server = start("-m", model, "--grace", 0.5)
    stream = server.client().completions.create(stream=True, **ENDLESS)
    next(stream)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            server.client().completions.create(**ENDLESS)
        except openai.APIStatusError as error:
            failed.append(error)

    whole = threading.Thread(target=ask)
    whole.start()
    while not server.port or "requests_running 2.0" not in metrics(server):
        time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError) as ended:
        for _ in stream:
            pass
    whole.join(60)
    assert ended.value.code == "shutting_down"
    assert [error.status_code for error in failed] == [503]  # type: ignore[attr-defined]
    assert server.process.wait(60) == 0


def metrics(server: Process) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def test_a_second_signal_does_not_wait(start: Callable[..., Process], model: Path) -> None:
    server = start("-m", model, "--grace", 600)
    stream = server.client().completions.create(stream=True, **ENDLESS)
    next(stream)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert server.end(signal.SIGINT) == 0


def test_keys_from_a_file_and_from_the_environment(start: Callable[..., Process], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n\nsk-another-key-for-tests\n")
    keys.chmod(0o600)
    for server in (start("--api-key-file", keys), start(PYLLAMA2_API_KEY=KEY)):
        assert server.client(api_key=KEY).completions.create(model="stories", prompt="x", max_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key=f"{KEY}x").completions.create(model="stories", prompt="x")
        assert server.end() == 0
        assert KEY not in "".join(server.log)


def test_the_log_as_json(start: Callable[..., Process]) -> None:
    server = start("--log-format", "json", "--name", "one", "--name", "two")
    assert server.client().completions.create(model="two", prompt="x", max_tokens=2).model == "two"
    assert server.end() == 0
    lines = [json.loads(line) for line in server.log]
    [request] = [line for line in lines if line.get("path") == "/v1/completions"]
    assert request["status"] == 200 and request["level"] == "info" and request["tokens"] == 2


def test_no_answer_tells_a_path(start: Callable[..., Process], model: Path) -> None:
    server = start("-m", model)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    text = ""
    for method, path, body in (
        ("GET", "/v1/models", None), ("GET", "/docs", None), ("GET", "/openapi.json", None), ("GET", "/metrics", None),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}), ("POST", "/v1/completions", {"model": "y"}),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("GET", "/../../etc", None),
    ):  # fmt: skip
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text += str(response.getheaders()) + response.read().decode()
    assert "hidden-folder" not in text and str(ROOT) not in text and "/tmp" not in text and ".py" not in text
    assert '"id":"My-model"' in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_addresses_need_a_key(host: str) -> None:
    result = run("--host", host)
    assert result.returncode == 2 and "--no-auth" in result.stderr and "Traceback" not in result.stderr


def test_no_auth_is_said_aloud(start: Callable[..., Process]) -> None:
    server = start("--host", "0.0.0.0", "--no-auth")
    assert server.client().models.list()
    assert server.end() == 0
    assert any("whoever reaches" in line for line in server.log)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "65536"], 2, "65535"), (["--port", "x"], 2, "--port"), (["--max-concurrent", "0"], 2, "positive"),
        (["--grace", "nan"], 2, "--grace"), (["--api-key-file", "/nowhere"], 1, "/nowhere"),
        (["--cors-origin", "null"], 1, "null"), (["--allowed-host", "a/b"], 1, "a/b"),
        (["-m", "/nowhere"], 1, "/nowhere"),
        (["--host", "host.invalid", "--no-auth"], 1, "host.invalid"), (["--log-format", "xml"], 2, "xml"),
        (["--api-key", KEY], 2, "--api-key"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_flags_are_one_sentence(arguments: list[str], code: int, words: str) -> None:
    result = run(*arguments)
    assert result.returncode == code and words in result.stderr and "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[0 if code == 2 else -1].startswith("pyllama2 serve: ")
    assert code != 2 or lines[1:] == ["usage: pyllama2 serve [FLAGS]; --help lists the flags"]
    assert KEY not in result.stderr


def test_files_of_keys_that_are_wrong(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    for text, words in (("", "no API key"), ("short\n", "8 to 512"), ("two words here\n", "8 to 512")):
        keys.write_text(text)
        result = run("--api-key-file", keys)
        assert result.returncode == 1 and words in result.stderr
        assert not text.strip() or text.strip() not in result.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = run("--port", other.getsockname()[1])
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "in use" in result.stderr


def test_without_the_packages(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('no', name=__name__)")
    result = run(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert result.returncode == 1 and 'pip install "pyllama2[serve]"' in result.stderr
    assert run("--help", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])).returncode == 0
