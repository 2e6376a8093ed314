"""Many machines: a Ray cluster of two nodes on this one. A worker that is killed loses and doubles nothing."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama, batch
from pyllama2.batches.ray_workers import SharedModel
from pyllama2.errors import CheckpointError
from pyllama2.server.run import open_socket

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from pyllama2.ray import build, deployment, map_prompts  # noqa: E402

slow = pytest.mark.skipif(
    not os.environ.get("PYLLAMA2_SLOW_TESTS"), reason="takes minutes; PYLLAMA2_SLOW_TESTS=1 runs it"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.bin"
    return write_tiny(path, "bpe", template=CHATML, max_seq_len=1024, n_layers=4)


@pytest.fixture(scope="module")
def cluster(one_thread: None) -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each, to which this process is connected."""
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    cluster.add_node(**arguments)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def write_requests(path: Path, n: int, max_tokens: int) -> None:
    lines: list[Any] = [{"prompt": f"Once upon a time {i}", "max_tokens": max_tokens, "seed": i} for i in range(n)]
    lines[3] = {"messages": [{"role": "user", "content": "Why?"}], "seed": 3, "max_tokens": max_tokens}
    lines[5]["colour"] = "red"
    path.write_text("\n".join(map(json.dumps, lines)) + "\noops\n")


def said(path: Path) -> dict[int, Any]:
    """What each result says, by its number, each of which may come once."""
    found: dict[int, Any] = {}
    for line in path.read_text().splitlines():
        result = json.loads(line)
        number, response = int(result["id"].split("_")[2]), result["response"]
        assert number not in found
        found[number] = response and (response["body"].get("choices") or response["body"]["error"])
    return found


@slow
def test_the_results_are_those_of_one_machine(cluster: str, tmp_path: Path, model: Path) -> None:
    requests, here, there = (tmp_path / name for name in ("requests.jsonl", "here.jsonl", "there.jsonl"))
    write_requests(requests, 300, 8)
    assert batch.main([str(requests), "-o", str(here), "-m", str(model)]) == 0
    assert batch.main([str(requests), "-o", str(there), "-m", str(model), "--ray"]) == 0
    assert said(there) == said(here) and len(said(here)) == 301
    before = there.read_bytes()
    assert batch.main([str(requests), "-o", str(there), "-m", str(model), "--ray"]) == 0
    assert there.read_bytes() == before


def workers(name: str) -> list[Any]:
    """Processes of Ray's actors."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if process.info["cmdline"] and f"ray::{name}" in " ".join(process.info["cmdline"]):
            found.append(process)
    return found


@slow
def test_a_worker_that_is_killed_loses_and_doubles_nothing(cluster: str, tmp_path: Path, model: Path) -> None:
    requests, here, there = (tmp_path / name for name in ("requests.jsonl", "here.jsonl", "there.jsonl"))
    write_requests(requests, 1500, 40)
    killed = []

    def kill() -> None:
        while not killed:
            if there.exists() and there.stat().st_size:
                for process in workers("MapWorker")[:1]:
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert batch.main([str(requests), "-o", str(there), "-m", str(model), "--ray"]) == 0
    killer.join(1)
    assert killed
    assert batch.main([str(requests), "-o", str(here), "-m", str(model)]) == 0
    assert said(there) == said(here) and len(said(here)) == 1501


@slow
def test_prompts_of_a_dataset(cluster: str, model: Path) -> None:
    rows = [{"prompt": f"The sea {i}", "seed": i, "other": -i} for i in range(20)]
    dataset = map_prompts(
        ray.data.from_items(rows).repartition(4), model, seed_column="seed", max_tokens=5, batch_size=3
    )
    found = {row["seed"]: row for row in dataset.take_all()}
    with Llama(model) as llm:
        for row in rows:
            one = found[row["seed"]]
            text = llm.generate(row["prompt"], max_tokens=5, seed=row["seed"], temperature=1, top_p=1).text
            assert (one["text"], one["other"], one["error"]) == (text, row["other"], None)
            assert one["completion_tokens"] == 5 or one["finish_reason"] == "stop"
    (wrong,) = map_prompts(ray.data.from_items(rows[:1]), model, max_tokens=-1).take_all()
    assert wrong["text"] is None and "max_tokens" in wrong["error"]


@slow
def test_a_file_is_copied_to_where_it_is_missing(cluster: str, tmp_path: Path) -> None:
    pieces = (b"first", b"second")
    gone = str(tmp_path / "gone" / "model.bin")
    shared = SharedModel(gone, "0" * 16, "1" * 64, tuple(ray.put(piece) for piece in pieces))
    path = Path(shared.local())
    assert path.read_bytes() == b"firstsecond" and shared.local() == str(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="copy it there"):
        SharedModel(gone, "0" * 16).local()


@slow
def test_the_server_goes_on_while_a_replica_is_killed(cluster: str, model: Path) -> None:
    import openai
    from ray import serve

    with open_socket("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment(model, n_replicas=2, name="tiny"), name="tiny")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8, timeout=60)
        with Llama(model) as llm:
            text = llm.generate("Once", max_tokens=20, seed=1, temperature=1, top_p=1).text

        def ask() -> str:
            answer = client.completions.create(model="tiny", prompt="Once", max_tokens=20, seed=1)
            return answer.choices[0].text

        assert ask() == text
        stream = client.completions.create(model="tiny", prompt="Once", max_tokens=20, seed=1, stream=True)
        assert "".join(event.choices[0].text for event in stream if event.choices) == text
        replicas = workers("ServeReplica")
        assert len(replicas) == 2
        replicas[0].kill()
        assert [ask() for _ in range(20)] == [text] * 20
    finally:
        serve.shutdown()


@pytest.mark.parametrize(
    ("args", "message"), [({"colour": "red"}, "'colour' is no argument"), ({"n_replicas": "many"}, "invalid literal")]
)
def test_wrong_arguments_of_serve_run(args: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(args)


def test_build_makes_what_its_words_say(model: Path) -> None:
    words = {"model": str(model), "min_replicas": "1", "max_replicas": "3", "n_threads": "2", "name": "mine"}
    application = build(words)
    settings = application._bound_deployment
    assert settings.ray_actor_options["num_cpus"] == 2
    assert settings._deployment_config.autoscaling_config.max_replicas == 3
