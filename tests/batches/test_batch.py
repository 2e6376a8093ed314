"""python -m pyllama2.batch: the server's answers, each exactly once, also when it is killed at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama, batch
from pyllama2.batches import answering, on_ray
from pyllama2.batches.answering import AT_ONCE, Tally, run_batch
from pyllama2.batches.inputs import Input
from pyllama2.batches.results import Results
from pyllama2.errors import CheckpointError, ConstraintError
from pyllama2.server.errors import failed_in_model
from pyllama2.server.service import Service
from pyllama2.server.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.bin"
    return write_tiny(path, "bpe", template=CHATML, max_seq_len=512)


def write_requests(path: Path, n: int, max_tokens: int = 12) -> list[dict[str, Any]]:
    """Requests of both kinds, with a bad line and a refused one among them."""
    rng, lines = random.Random(n), []
    for i in range(n):
        body: dict[str, Any] = {"seed": i, "max_tokens": rng.randrange(1, max_tokens), "logprobs": None}
        if i % 2:
            body["messages"] = [{"role": "user", "content": f"Question {i}"}]
        else:
            body["prompt"] = f"Once upon a time {i}"
        url = "/v1/chat/completions" if i % 2 else "/v1/completions"
        lines.append({"custom_id": f"request {i}", "method": "POST", "url": url, "body": body})
    lines[n // 2]["body"]["colour"] = "red"
    texts = [json.dumps(line) for line in lines]
    texts[n // 3] = "{" + texts[n // 3]
    path.write_text("\n".join(texts) + "\n")
    return lines


def results_of(path: Path) -> dict[int, Any]:
    """The results by their numbers, each of which may come once."""
    lines = path.read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") for line in lines)
    results = [json.loads(line) for line in lines]
    numbered = {int(result["id"].split("_")[2]): result for result in results}
    assert len(numbered) == len(results)
    return numbered


def what_is_said(result: Any) -> Any:
    """A result without what differs from run to run."""
    response = result["response"]
    if response is None or response["status_code"] != 200:
        return result["error"], response and response["body"]
    usage = {**response["body"]["usage"], "prompt_tokens_details": None}
    return response["body"]["choices"], usage


def run(*arguments: Any) -> int:
    return batch.main([*map(str, arguments)])


@pytest.mark.slow
def test_the_answers_are_those_of_the_server(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    lines = write_requests(requests, 12)
    assert run(requests, "-o", output, "-m", model) == 0
    said = capsys.readouterr()
    assert said.out == "" and "10 requests answered, 2 refused" in said.err and "tokens/s" in said.err
    results = results_of(output)
    assert sorted(results) == list(range(1, 13))

    async def served() -> list[Any]:
        with Llama(model) as llm:
            service = Service(llm, Settings(names=("tiny",)))
            good = [line for i, line in enumerate(lines) if i not in (4, 6)]
            answers = [await service.answer(service.parse(line["url"], line["body"])) for line in good]
            service.end()
            return [(answer["choices"], {**answer["usage"], "prompt_tokens_details": None}) for answer in answers]

    assert [what_is_said(results[n]) for n in range(1, 13) if n not in (5, 7)] == asyncio.run(served())
    assert results[1]["custom_id"] == "request 0" and results[1]["error"] is None
    assert results[1]["response"]["body"]["model"] == "tiny"
    assert results[5]["response"] is None and results[5]["error"]["line"] == 5
    assert results[7]["response"]["status_code"] == 400
    assert results[7]["response"]["body"]["error"]["code"] == "unknown_field"


@pytest.mark.slow
def test_what_is_there_is_not_computed_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    write_requests(requests, 9)
    assert run(requests, "-o", output, "-m", model) == 0
    before = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(before[:4]) + before[4][:-7])
    computed: list[int] = []
    result_of = answering.result_of

    async def noted(service: Service, item: Any, result_id: str) -> Any:
        computed.append(item.number)
        return await result_of(service, item, result_id)

    monkeypatch.setattr(answering, "result_of", noted)
    assert run(requests, "-o", output, "-m", model) == 0
    assert output.read_bytes().startswith(b"".join(before[:4]))
    assert sorted(results_of(output)) == list(range(1, 10)) and len(computed) == 5
    assert run(requests, "-o", output, "-m", model) == 0 and len(computed) == 5
    capsys.readouterr()
    assert run(requests, "-o", output, "-m", model, "--temperature", 0) == 1
    assert "the flags have changed" in capsys.readouterr().err


def test_results_of_another_model_of_the_same_name_are_not_mixed_in(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    write_requests(requests, 9)
    assert run(requests, "-o", output, "-m", model) == 0
    before = output.read_bytes()
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    (tmp_path / "tiny.bin").write_bytes(data)
    assert run(requests, "-o", output, "-m", tmp_path / "tiny.bin") == 1
    assert "the model or the flags have changed" in capsys.readouterr().err and output.read_bytes() == before
    (tmp_path / "tiny.bin").write_bytes(model.read_bytes())  # a copy is the same model
    assert run(requests, "-o", output, "-m", tmp_path / "tiny.bin") == 0


def test_what_the_workers_of_other_machines_get(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    write_requests(requests, 9)
    (tmp_path / "adapter").mkdir()
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}

    def run_on_ray(address: Any, path: Any, options: dict[str, Any], *more: Any, **named: Any) -> Tally:
        found.update(options)
        return Tally()

    monkeypatch.setattr(on_ray, "run_on_ray", run_on_ray)
    lora = ["--lora", "adapter", "--lora", "adapter:0.5", "--lora", "org/name:2"]
    flags = ["-m", model, "--ray", "-t", 999, "--draft", "self", *lora]
    assert run(requests, "-o", output, *flags) == 0
    assert found["n_threads"] == 999 and found["draft"] == "self"
    assert found["lora"] == [f"{tmp_path}/adapter", f"{tmp_path}/adapter:0.5", "org/name:2"]
    assert run(requests, "-o", output, "-m", model, "--workers", 2) == 2
    assert "--workers needs --ray" in capsys.readouterr().err


def test_texts_of_a_table(tmp_path: Path, model: Path) -> None:
    table, output = tmp_path / "table.csv", tmp_path / "results.jsonl"
    table.write_text("text\nHello\nWhy?\n")
    assert run(table, "-o", output, "-m", model, "--chat", "-n", 4, "--seed", 1, "--temperature", 0.5) == 0
    results = results_of(output)
    assert [results[n]["custom_id"] for n in (1, 2)] == ["row-1", "row-2"]
    assert all(result["response"]["body"]["object"] == "chat.completion" for result in results.values())
    with Llama(model) as llm:
        text = llm.chat([{"role": "user", "content": "Why?"}], max_tokens=4, seed=1, temperature=0.5, top_p=1).text
    assert results[2]["response"]["body"]["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--temperature", "7"], 2, "temperature"),
        (["-n", "-1"], 2, "max_tokens"),
        (["-o", "requests.jsonl"], 1, "must not go into the file of the requests"),
        (["-o", "no/where.jsonl"], 1, "no/where.jsonl"),
        (["--format", "parquet"], 1, "Parquet"),
    ],
)
def test_what_is_refused_at_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_requests(tmp_path / "requests.jsonl", 9)
    assert run("requests.jsonl", "-o", "results.jsonl", "-m", model, *flags) == code
    assert message in capsys.readouterr().err
    assert not Path("results.jsonl").exists()


@pytest.mark.slow
def test_requests_are_read_when_their_turn_comes(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "requests.jsonl"
    write_requests(path, 4 * AT_ONCE)
    n_read = n_done = ahead = 0

    def reading() -> Any:
        nonlocal n_read, ahead
        for item in Input(str(path)):
            n_read += 1
            ahead = max(ahead, n_read - n_done)
            yield item

    def told(tally: Any) -> None:
        nonlocal n_done
        n_done += 1

    with Llama(model) as llm, Results(str(tmp_path / "results.jsonl"), 4 * AT_ONCE, "") as results:
        tally = run_batch(llm, reading(), results, name="tiny", told=told)
    assert n_done == n_read == 4 * AT_ONCE == tally.answered + tally.failed
    assert ahead <= AT_ONCE + 1


def test_a_model_that_fails_for_good_ends_the_batch(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is then not answered with errors, so that it can be computed later."""
    path = tmp_path / "requests.jsonl"
    write_requests(path, 9)

    async def answer(self: Service, request: Any, figures: Any = None) -> Any:
        error = CheckpointError("the file has changed")
        raise failed_in_model(error) from error

    monkeypatch.setattr(Service, "answer", answer)
    output = str(tmp_path / "results.jsonl")
    with Llama(model) as llm, Results(output, 9, "") as results, pytest.raises(CheckpointError, match="has changed"):
        run_batch(llm, Input(str(path)), results, name="tiny")
    assert all(result["response"] is None or result["response"]["status_code"] == 400
               for result in results_of(tmp_path / "results.jsonl").values())  # fmt: skip


def test_a_constraint_that_cannot_be_followed_any_further_fails_its_request_alone(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    path.write_text("".join(f'{{"prompt": "{text}", "max_tokens": 4}}\n' for text in ("one", "two", "three")))
    answer = Service.answer

    async def failing(self: Service, request: Any, figures: Any = None) -> Any:
        if request.prompt == "two":
            error = ConstraintError("regex cannot be followed any further: it is too complex")
            raise failed_in_model(error) from error
        return await answer(self, request, figures)

    monkeypatch.setattr(Service, "answer", failing)
    assert run(path, "-o", output, "-m", model) == 0
    results = results_of(output)
    assert [results[n]["response"]["status_code"] for n in (1, 2, 3)] == [200, 400, 200]
    assert "followed any further" in results[2]["response"]["body"]["error"]["message"]


@pytest.mark.slow
def test_it_does_without_the_servers_packages() -> None:
    code = (
        "import sys\nfor name in ('fastapi', 'starlette', 'uvicorn', 'prometheus_client'): sys.modules[name] = None\n"
        "from pyllama2.server.service import Service\nimport pyllama2.batch"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class Killed:
    """The command in a process that a signal ends when some results are there."""

    def __init__(self, requests: Path, output: Path, model: Path) -> None:
        self.output = output
        self._command = [
            sys.executable, "-m", "pyllama2.batch", str(requests), "-o", str(output), "-m", str(model), "-t", "1",
        ]  # fmt: skip

    def run(self, number: int, n_bytes: int) -> int:
        """Send a signal when the file has grown by n_bytes. Returns the exit code."""
        before = self.output.stat().st_size if self.output.exists() else 0
        with subprocess.Popen(self._command, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            while process.poll() is None:
                if self.output.exists() and self.output.stat().st_size >= before + n_bytes:
                    process.send_signal(number)
                    break
                time.sleep(0.001)
            return process.wait(60)


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_goes_on_after_it_was_ended_at_random_moments(tmp_path: Path, model: Path, number: signal.Signals) -> None:
    n, rng = 300, random.Random(number)
    requests, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    write_requests(requests, n, 40)
    process, n_ends, before = Killed(requests, output, model), 0, b""
    codes = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    while (code := process.run(number, rng.randrange(1, 70_000) if n_ends < 6 else 1 << 40)) != 0:
        assert code == codes[number]
        n_ends += 1
        content = output.read_bytes()
        assert content.startswith(before)
        before = content[: content.rfind(b"\n") + 1]
        if number != signal.SIGKILL:
            assert content == before
        if rng.random() < 0.5:  # as a process that was killed amid a write leaves it
            output.write_bytes(before + b'{"id":"batch_req_7_0123'[: rng.randrange(23)])
    assert n_ends >= 2 and output.read_bytes().startswith(before)
    results = results_of(output)
    assert sorted(results) == list(range(1, n + 1))
    alone = tmp_path / "alone.jsonl"
    assert run(requests, "-o", alone, "-m", model, "-t", 1) == 0
    expected = results_of(alone)
    assert {i: what_is_said(one) for i, one in results.items()} == {i: what_is_said(one) for i, one in expected.items()}
    assert os.listdir(tmp_path) and not [name for name in os.listdir(tmp_path) if name.startswith(".")]
