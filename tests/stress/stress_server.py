"""Ask a server from many clients at once, and check that each text is what it is alone.

    python tests/stress/stress_server.py                       2,000 requests of 64 clients, a tiny random model
    python tests/stress/stress_server.py --requests 200 --clients 16 --seed 3

Requests are completions and chats, whole and streamed, with lists of prompts, choices, echo and log-probabilities, at
random; a quarter hangs up at a random moment, and some are wrong. Meanwhile 20 clients read slowly, 20 connections stay
half open, and some send what is no request. Prints counts, and the growth of the server's resident memory, threads and
files. Exits with 1 when a text is lost or mixed up, or something grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("once", "upon", "a", "time", "there", "was", "little", "fox", "who", "lived", "in", "the", "forest", "said")
WRONG: list[tuple[str, bytes, int]] = [
    ("/v1/completions", b"{", 400),
    ("/v1/completions", b"[" * 50_000, 400),
    ("/v1/completions", b"\xff" * 1000, 400),
    ("/v1/completions", json.dumps({"prompt": [1] * 5000}).encode(), 400),
    ("/v1/completions", json.dumps({"prompt": "x", "model": "y"}).encode(), 404),
    ("/v1/completions", json.dumps({"prompt": "x", "n": 10**9}).encode(), 400),
    ("/v1/chat/completions", json.dumps({"messages": [], "tools": [{}]}).encode(), 400),
    ("/v1/nothing", b"{}", 404),
    ("/v1/completions", b'{"prompt": "' + b"x" * (5 << 20) + b'"}', 413),
]
NOT_HTTP = (
    b"\x16\x03\x01" * 50,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"\r\n" * 99,
)
# Growth of resident memory after the first tenth of the requests that is no leak yet.
ALLOWED_BYTES = 24 << 20
CONCURRENT = 16
ALLOWED_THREADS = CONCURRENT + 4  # that prepare requests, and then stay


@dataclass(frozen=True)
class Request:
    """One request, and what its client does to it."""

    path: str
    body: dict[str, Any]
    hangs_up_s: float | None = None  # after so many seconds


@dataclass
class Outcome:
    """What the clients found."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)
    grown: dict[str, int] = field(default_factory=dict)


def make_requests(n: int, rng: random.Random) -> list[Request]:
    """n requests of all kinds."""
    requests = []
    for _ in range(n):
        texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 30))) for _ in range(rng.choice((1, 1, 1, 3)))]
        body: dict[str, Any] = {
            "max_tokens": rng.choice((0, 1, 8, 30, 100)),
            "seed": rng.randrange(1000),
            "temperature": rng.choice((0, 0.7, 1.5)),
            "n": rng.choice((1, 1, 1, 2)),
            "ignore_eos": rng.random() < 0.8,
            "stop": rng.choice((None, "e", ["ab", "x"])),
            "stream": rng.random() < 0.5,
        }
        if rng.random() < 0.4:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": texts[0]}]
            body["logprobs"] = rng.random() < 0.2
        else:
            path = "/v1/completions"
            body["prompt"] = texts if len(texts) > 1 else texts[0]
            body |= rng.choice(({}, {}, {"logprobs": 2}, {"echo": True}))
        leaves = rng.random() < 0.25
        requests.append(Request(path, body, rng.choice((0.0, 0.01, 0.1, 0.5)) * rng.random() if leaves else None))
    return requests


def expected_texts(llm: Llama, request: Request) -> list[str]:
    """What the library says to a request."""
    body = request.body
    sampling: dict[str, Any] = {name: body[name] for name in ("max_tokens", "temperature", "ignore_eos")}
    sampling |= {"top_p": 1.0, "stop": body["stop"] or (), "echo": body.get("echo", False)}
    seeds = range(body["seed"], body["seed"] + body["n"])
    if "messages" in body:
        return [llm.chat(body["messages"], seed=seed, **sampling).text for seed in seeds]
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    return [llm.generate(prompt, seed=seed, **sampling).text for prompt in prompts for seed in seeds]


async def send(port: int, path: str, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    return reader, writer


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer."""
    data = await reader.read()
    head, _, body = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        parts, rest = [], body
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if not size or int(size, 16) == 0:
                break
            parts.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        body = b"".join(parts)
    return int(head.split(b" ", 2)[1]), body


def texts_of(request: Request, body: bytes) -> list[str]:
    """The texts of an answer. Raises ValueError when it has an error or no end."""
    if not request.body["stream"]:
        choices = json.loads(body)["choices"]
        return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    if events[-1:] != [b"[DONE]"]:
        raise ValueError(f"the stream has no end: {body[-300:]!r}")
    texts: dict[int, str] = {}
    for event in events[:-1]:
        for choice in json.loads(event)["choices"]:
            part = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + part
    return [texts[i] for i in range(len(texts))]


class Crowd:
    """All clients of one run."""

    def __init__(self, port: int, requests: list[Request], outcome: Outcome, rng: random.Random) -> None:
        self._port = port
        self._requests = requests
        self._outcome = outcome
        self._rng = rng

    async def run(self, part: range, n_clients: int) -> None:
        """Send the requests of a part from n_clients clients, with others that disturb them."""
        waiting = list(part)
        disturbers = [asyncio.ensure_future(self._read_slowly()) for _ in range(20)]
        disturbers += [asyncio.ensure_future(self._stay_half_open()) for _ in range(20)]
        await asyncio.gather(*(self._client(waiting) for _ in range(n_clients)))
        for disturber in disturbers:
            disturber.cancel()
        await asyncio.gather(*disturbers, return_exceptions=True)

    async def _client(self, waiting: list[int]) -> None:
        while waiting:
            i = waiting.pop()
            try:
                if i % 10 == 0:
                    await self._send_wrong()
                await asyncio.wait_for(self._ask(i), 120)
            except Exception as error:
                self._outcome.faults.append(f"{self._requests[i]} raised {error!r}")

    async def _ask(self, i: int) -> None:
        request = self._requests[i]
        reader, writer = await send(self._port, request.path, json.dumps(request.body).encode())
        try:
            if request.hangs_up_s is not None:
                await asyncio.sleep(request.hangs_up_s)
                self._outcome.counts["hung up"] += 1
                return
            status, body = await read(reader)
            if status != 200:
                raise ValueError(f"{status} {body!r}")
            self._outcome.texts[i] = texts_of(request, body)
            self._outcome.counts["streamed" if request.body["stream"] else "whole"] += 1
            self._outcome.counts["texts"] += len(self._outcome.texts[i])
        finally:
            writer.transport.abort()

    async def _send_wrong(self) -> None:
        path, data, wanted = self._rng.choice(WRONG)
        reader, writer = await send(self._port, path, data)
        try:
            status, body = await asyncio.wait_for(read(reader), 60)
            if status != wanted or b'"error"' not in body:
                raise ValueError(f"{status} {body!r} for {data[:80]!r}")
        except (ConnectionError, IndexError):  # a body that is too long is not read to its end
            if wanted != 413:
                raise
        finally:
            writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._rng.choice(NOT_HTTP))
        await asyncio.sleep(0.01)
        writer.transport.abort()
        self._outcome.counts["wrong"] += 2

    async def _read_slowly(self) -> None:
        body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True, "logprobs": 5}
        while True:
            reader, writer = await send(self._port, "/v1/completions", json.dumps(body).encode())
            try:
                for _ in range(50):
                    await reader.read(100)
                    await asyncio.sleep(0.1)
            finally:
                writer.transport.abort()
            self._outcome.counts["slow readers"] += 1

    async def _stay_half_open(self) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(self._rng.choice((b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: loc")))
                self._outcome.counts["half open"] += 1
                await reader.read()
            finally:
                writer.transport.abort()


def sizes(pid: int) -> dict[str, int]:
    """Resident bytes, threads and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "resident bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


async def when_idle(port: int) -> dict[str, float]:
    """The server's figures, as soon as nothing runs or waits."""
    for _ in range(600):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        _, body = await read(reader)
        writer.close()
        found: dict[str, float] = {}
        for name, value in re.findall(rb"^(pyllama2_\w+)(?:\{[^}]*\})? (\S+)$", body, re.MULTILINE):
            found[name.decode()] = found.get(name.decode(), 0.0) + float(value)
        if found["pyllama2_requests_running"] == found["pyllama2_requests_waiting"] == 0:
            return found
        await asyncio.sleep(0.1)
    raise RuntimeError("the server is not idle after a minute")


def run(path: Path, n_requests: int, n_clients: int, seed: int) -> Outcome:
    """Ask a server in a process of its own, and check all texts."""
    outcome = Outcome()
    requests = make_requests(n_requests, random.Random(seed))
    command = [
        sys.executable,
        "-m",
        "pyllama2.serve",
        "-m",
        str(path),
        "--port",
        "0",
        "--max-concurrent",
        str(CONCURRENT),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process,
    ):
        assert process.stderr is not None
        found = re.search(r":(\d+)/v1", process.stderr.readline())
        assert found is not None
        port = int(found[1])
        copier = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
        n_threads = sizes(process.pid)["threads"]
        try:
            crowd = Crowd(port, requests, outcome, random.Random(seed))
            first = max(1, n_requests // 10)
            before: dict[str, int] = {}
            for part in (range(first), range(first, n_requests)):
                asyncio.run(crowd.run(part, n_clients))
                figures = asyncio.run(when_idle(port))
                time.sleep(1)
                outcome.grown = {name: size - before.get(name, 0) for name, size in sizes(process.pid).items()}
                before = sizes(process.pid)
            n_threads = before["threads"] - n_threads
            outcome.counts["cancelled by clients"] = int(figures["pyllama2_requests_cancelled_total"])
        finally:
            process.terminate()
            code = process.wait(60)
            copier.wait(60)
        if code != 0:
            outcome.faults.append(f"the server ended with {code}")
        log.seek(0)
        outcome.faults += [line.strip() for line in log if "Traceback" in line or " error " in line]
    with Llama(path) as llm:
        for i, texts in outcome.texts.items():
            expected = expected_texts(llm, requests[i])
            if texts != expected:
                outcome.faults.append(f"{requests[i]}: said {texts}, alone {expected}")
    n_lost = n_requests - len(outcome.texts) - outcome.counts["hung up"]
    if n_lost:
        outcome.faults.append(f"{n_lost} requests were lost")
    if outcome.grown["resident bytes"] > ALLOWED_BYTES or n_threads > ALLOWED_THREADS or outcome.grown["files"] > 0:
        outcome.faults.append(f"the server has grown: {outcome.grown}")
    return outcome


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny.bin", "bpe", template=CHATML, max_seq_len=2048)
        outcome = run(path, args.requests, args.clients, args.seed)
    print(f"{time.perf_counter() - started:.1f} s; the server has grown by {outcome.grown}")
    for name, count in sorted(outcome.counts.items()):
        print(f"{name:20} {count}")
    for fault in outcome.faults[:20]:
        print(f"FAULT: {fault[:500]}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
