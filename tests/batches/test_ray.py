"""Batches on a Ray cluster of three nodes, all on this machine. A worker that is killed loses and doubles nothing."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.ray_cluster import on_cluster, ray_processes

from pyllama2 import Llama, batch
from pyllama2.batches.ray_workers import SharedModel
from pyllama2.errors import CheckpointError

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from pyllama2.ray import map_prompts  # noqa: E402


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


@on_cluster
def test_the_results_are_those_of_one_machine(cluster: str, tmp_path: Path, model: Path) -> None:
    requests, here, there = (tmp_path / name for name in ("requests.jsonl", "here.jsonl", "there.jsonl"))
    write_requests(requests, 300, 8)
    assert batch.main([str(requests), "-o", str(here), "-m", str(model)]) == 0
    assert batch.main([str(requests), "-o", str(there), "-m", str(model), "--ray"]) == 0
    assert said(there) == said(here) and len(said(here)) == 301
    before = there.read_bytes()
    assert batch.main([str(requests), "-o", str(there), "-m", str(model), "--ray"]) == 0
    assert there.read_bytes() == before


@on_cluster
def test_a_worker_that_is_killed_loses_and_doubles_nothing(cluster: str, tmp_path: Path, model: Path) -> None:
    requests, here, there = (tmp_path / name for name in ("requests.jsonl", "here.jsonl", "there.jsonl"))
    write_requests(requests, 1500, 40)
    killed = []

    def kill() -> None:
        while not killed:
            if there.exists() and there.stat().st_size:
                for process in ray_processes("MapWorker")[:1]:
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


@on_cluster
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


@on_cluster
def test_a_file_is_copied_to_where_it_is_missing(cluster: str, tmp_path: Path) -> None:
    pieces = (b"first", b"second")
    gone = str(tmp_path / "gone" / "model.bin")
    shared = SharedModel(gone, "0" * 16, "1" * 64, tuple(ray.put(piece) for piece in pieces))
    path = Path(shared.local())
    assert path.read_bytes() == b"firstsecond" and shared.local() == str(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="copy it there"):
        SharedModel(gone, "0" * 16).local()
