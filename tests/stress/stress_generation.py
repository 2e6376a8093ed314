"""Generate a great many texts at once from several threads, and check that each says what it says alone.

    python tests/stress/stress_generation.py                     2,000 requests from 8 threads on a tiny random model
    python tests/stress/stress_generation.py --requests 200 --threads 4 --seed 3
    python tests/stress/stress_generation.py --draft self        with a draft, of which no text may notice anything

Requests are strings, lists, token ids and streams, with seeds, stop strings and lengths at random; some are cancelled,
some dropped, some fail in their own logits processor, some are refused. Prints counts and the growth of resident
memory; exits with 1 when a text is lost or mixed up, or memory grows.
"""

from __future__ import annotations

import argparse
import gc
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from helpers.tiny_llama import write_tiny

from pyllama2 import Completion, Llama, Pyllama2Error

KINDS = ("generate", "list", "stream", "cancel", "drop", "processor", "refused")
WORDS = ("once", "upon", "a", "time", "there", "was", "little", "fox", "who", "lived", "in", "the", "forest", "said")
# Growth of resident memory after the first tenth of the requests that is no leak yet.
ALLOWED_BYTES = 24 << 20


@dataclass(frozen=True)
class Request:
    """One call, its arguments, and what its caller does to it."""

    kind: str  # one of KINDS
    prompts: list[Any]
    sampling: dict[str, Any]
    n_taken: int = 0  # chunks that are taken before it is cancelled or dropped


@dataclass
class Outcome:
    """What the threads found."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    completions: dict[int, list[Completion]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def make_requests(n: int, rng: random.Random) -> list[Request]:
    """n requests of all kinds; many prompts begin alike."""
    beginnings = [[1, *(rng.randrange(3, 340) for _ in range(rng.choice((20, 60, 150))))] for _ in range(6)]

    def prompt() -> Any:
        if rng.random() < 0.4:
            return " ".join(rng.choices(WORDS, k=rng.randrange(1, 20)))
        return [*rng.choice(beginnings), *(rng.randrange(3, 340) for _ in range(rng.randrange(6)))]

    requests = []
    for _ in range(n):
        kind = rng.choices(KINDS, (30, 15, 25, 10, 8, 6, 6))[0]
        sampling = {
            "seed": rng.randrange(1000),
            "temperature": rng.choice((0, 0.7, 1.5)),
            "max_tokens": rng.choice((0, 1, 5, 20, 60, 120)),
            "ignore_eos": rng.random() < 0.8,
            "stop": rng.choice(((), (), "e", ("ab", "x"))),
            "repetition_penalty": rng.choice((1.0, 1.2)),
        }
        n_prompts = rng.randrange(5) if kind == "list" else 1
        requests.append(Request(kind, [prompt() for _ in range(n_prompts)], sampling, rng.randrange(6)))
    return requests


class OwnError(Exception):
    """What a request's logits processor raises."""


def serve(llm: Llama, request: Request, rng: random.Random) -> list[Completion]:
    """Do what a request says. Raises AssertionError when something is wrong by itself."""
    prompts, sampling = request.prompts, request.sampling
    if request.kind == "generate":
        return [llm.generate(prompts[0], **sampling)]
    if request.kind == "list":
        found: list[Completion] = llm.generate(prompts, **sampling)
        return found
    if request.kind == "refused":
        for wrong in ({"top_p": 2}, {"logit_bias": {9999: 1}}):
            try:
                llm.generate(prompts[0], **{**sampling, **wrong})
            except ValueError:
                continue
            raise AssertionError("wrong parameters were accepted")
        try:
            llm.generate([1] * (llm.n_ctx + 1))
        except Pyllama2Error:
            return []
        raise AssertionError("a prompt that is too long was accepted")
    if request.kind == "processor":
        return fail(llm, request)
    stream = llm.stream(prompts[0], **sampling)
    n_taken = None if request.kind == "stream" else request.n_taken
    text = ""
    for i, chunk in enumerate(stream):
        text += chunk.text
        if rng.random() < 0.02:
            time.sleep(0.005)  # a consumer that has other things to do
        if n_taken is not None and i + 1 >= n_taken:
            break
    completion = stream.completion
    assert completion.text == text, "the chunks do not add up"
    if request.kind == "cancel":
        stream.close()
        assert next(stream, None) is None, "a stream goes on after it was closed"
    return [completion]


def fail(llm: Llama, request: Request) -> list[Completion]:
    """A request whose logits processor raises at some token; what came before counts."""
    n_left = request.n_taken

    def processor(ids: list[int], logits: Any) -> None:
        nonlocal n_left
        if n_left == 0:
            raise OwnError
        n_left -= 1

    stream = llm.stream(request.prompts[0], logits_processors=[processor], **request.sampling)
    try:
        for _ in stream:
            pass
    except OwnError:
        completion = stream.completion
        assert len(completion.token_ids) <= request.n_taken, "a text went on after its failure"
    return [stream.completion]


def check(llm: Llama, request: Request, found: list[Completion]) -> str | None:
    """What is wrong with a request's texts, compared with those that llm gives to it alone; None: nothing."""
    if len(found) != (0 if request.kind == "refused" else len(request.prompts)):
        return f"{len(request.prompts)} prompts gave {len(found)} texts"
    for prompt, completion in zip(request.prompts, found, strict=False):
        expected = llm.generate(prompt, **request.sampling)
        if completion.finish_reason == "cancelled":
            if request.kind in ("generate", "list", "stream"):
                return "a text was cancelled that nobody cancelled"
            n = len(completion.token_ids)
            if completion.token_ids != expected.token_ids[:n] or not expected.text.startswith(completion.text):
                return f"{request}: began {completion.text!r}, alone it says {expected.text!r}"
        elif (completion.text, completion.token_ids, completion.finish_reason, completion.stop_reason) != (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
            expected.stop_reason,
        ):
            return f"{request}: said {completion.text!r}, alone it says {expected.text!r}"
    return None


def work(llm: Llama, requests: list[Request], pending: queue.SimpleQueue[int], outcome: Outcome, seed: int) -> None:
    """One thread: requests until there are no more."""
    rng = random.Random(seed)
    while True:
        try:
            i = pending.get_nowait()
        except queue.Empty:
            return
        try:
            found = serve(llm, requests[i], rng)
        except BaseException as error:
            with outcome.lock:
                outcome.faults.append(f"{requests[i]} raised {error!r}")
            continue
        with outcome.lock:
            outcome.counts[requests[i].kind] += 1
            outcome.counts["texts"] += len(found)
            outcome.counts["tokens"] += sum(completion.usage.completion_tokens for completion in found)
            outcome.counts["prompt tokens"] += sum(completion.usage.prompt_tokens for completion in found)
            outcome.counts["guesses"] += sum(completion.timings.guesses for completion in found)
            outcome.counts["cached tokens"] += sum(completion.usage.cached_tokens for completion in found)
            outcome.completions[i] = found


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(path: Path, n_requests: int, n_threads: int, seed: int, draft: str | None = None) -> tuple[Outcome, int]:
    """Serve all requests, with a draft, and check each without; what was found, and the growth of resident memory."""
    requests = make_requests(n_requests, random.Random(seed))
    outcome = Outcome()
    grown = 0
    first = max(1, n_requests // 10)
    with Llama(path, n_ctx=300, draft=draft) as llm:
        for part in (range(first), range(first, n_requests)):
            before = resident_bytes()
            pending: queue.SimpleQueue[int] = queue.SimpleQueue()
            for i in part:
                pending.put(i)
            threads = [
                threading.Thread(target=work, args=(llm, requests, pending, outcome, seed + k), daemon=True)
                for k in range(n_threads)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(600)
            if any(thread.is_alive() for thread in threads):
                outcome.faults.append("a caller waits forever")
                return outcome, grown
            gc.collect()
            grown = resident_bytes() - before  # of the second part, in the end
        llm.generate([1, 5], max_tokens=1)
        if any(row.in_use for row in llm._scheduler._rows.rows):
            outcome.faults.append("rows are taken by texts that have ended")
    with Llama(path, n_ctx=300) as llm:
        for i, found in outcome.completions.items():
            llm._scheduler._rows.close()  # nothing is reused here
            fault = check(llm, requests[i], found)
            if fault is not None:
                outcome.faults.append(fault)
    if len(outcome.completions) != n_requests:
        outcome.faults.append(f"{n_requests - len(outcome.completions)} requests were lost")
    return outcome, grown


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draft", help="as Llama() takes it")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny.bin", max_seq_len=300)
        outcome, grown = run(path, args.requests, args.threads, args.seed, args.draft)
    print(f"{time.perf_counter() - started:.1f} s, resident memory grew by {grown / (1 << 20):.1f} MiB")
    for name, count in sorted(outcome.counts.items()):
        print(f"{name:15} {count}")
    if grown > ALLOWED_BYTES:
        outcome.faults.append(f"resident memory grew by {grown} bytes")
    for fault in outcome.faults[:20]:
        print(f"FAULT: {fault}")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
