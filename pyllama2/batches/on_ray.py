"""A batch on a Ray cluster: Ray Data gives blocks of requests to workers, this process writes the results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import Pyllama2Error
from ..shown import one_line
from .answering import Tally
from .inputs import Item
from .ray_workers import BLOCK, LineWorker, block_of, connected, cpus_and_workers, share_model
from .results import Results


def run_on_ray(
    address: str | None,
    model: str | None,
    options: dict[str, Any],
    items: Iterable[Item],
    results: Results,
    *,
    name: str,
    n_workers: int | None = None,
    told: Callable[[Tally], None] | None = None,
) -> Tally:
    """Answer the items whose results are not there yet, on the machines of a cluster.

    A worker that dies is replaced, and its block is answered anew. Requests that wait are in Ray's store, which moves
    what does not fit into memory to the disk.

    Args:
        address: of the cluster, as connected() takes it.
        model: as Llama takes it.
        options: further arguments of Llama. n_threads is also how many CPUs a worker takes.
        items: the requests.
        results: where the results go, in the order in which they are ready.
        name: of the model, for the answers.
        n_workers: None: as many as the cluster has CPUs for.
        told: called after each result.

    Raises:
        CheckpointError: the model is not there, or the results are not of this batch.
        Pyllama2Error: Ray is missing, or a worker has failed.
        ValueError: no machine has n_threads CPUs.
    """
    tally = Tally(started=time.monotonic())
    with connected(address) as ray:
        blocks = [ray.put(block_of(block)) for block in _blocks(items, results)]
        if not blocks:
            return tally
        shared = share_model(ray, model)
        n_cpus, fitting = cpus_and_workers(ray, options.get("n_threads"))
        n_workers = min(n_workers or fitting, len(blocks))
        dataset = ray.data.from_arrow_refs(blocks).map_batches(
            LineWorker,
            fn_constructor_args=(shared, {**options, "n_threads": n_cpus}, name),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            num_cpus=n_cpus,
        )
        try:
            for block in dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):  # at once
                for row in block.to_pylist():
                    if results.has(row["number"], row["source"]):
                        continue
                    results.add(row["number"], row["source"], row["line"])
                    tally.add(json.loads(row["line"]))
                    if told is not None:
                        told(tally)
        except ray.exceptions.RayError as error:
            raise Pyllama2Error(f"a worker has failed: {last_line(error)}") from error
    return tally


def last_line(error: Exception) -> str:
    """What went wrong in a worker: the last line of Ray's message, which is that of the worker's own exception."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1].strip() if lines else type(error).__name__)


def _blocks(items: Iterable[Item], results: Results) -> Iterator[list[tuple[Item, str]]]:
    """The items that are to be answered, BLOCK at a time, with the ids of their results."""
    block: list[tuple[Item, str]] = []
    for item in items:
        if not results.has(item.number, item.source):
            block.append((item, results.id_of(item.number, item.source)))
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block
