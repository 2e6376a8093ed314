"""Workers on the machines of a Ray cluster, each with a model of its own, which answer blocks of requests.

The model's file is used where it is if a machine has the same under its path, and otherwise copied to it through Ray.
Ray itself is imported inside functions, since few users have it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, Pyllama2Error
from ..llama import Llama
from ..model_names import find_model
from ..process.interrupts import Interrupts
from ..shown import one_line, shown
from ..storage.new_file import NewFile
from .answering import make_service, result_of, to_line
from .identity import identity_of
from .inputs import Item

# Requests that a worker gets at a time. Its last texts run with few others, so a block has several times as many as
# are decoded together.
BLOCK = 256
_PIECE = 64 << 20  # bytes of a model's file in one object of Ray's


def import_ray() -> Any:
    """Return the module ray, with ray.data. Raises Pyllama2Error if it is missing."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Pyllama2Error(f'{error.name} is missing: pip install "pyllama2[ray]"') from None
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster for a while, and give the module ray.

    Args:
        address: of the cluster. None: that of RAY_ADDRESS, a cluster on this machine, or a new one here. If the
            program is connected already, that connection is used, and stays.

    Raises:
        Pyllama2Error: Ray is missing, or there is no such cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Pyllama2Error(f"cannot connect to Ray: {one_line(str(error))}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by the exception
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class SharedModel:
    """A model's file or folder, for machines that may not have it.

    Attributes:
        path: where it is on the machine that asks.
        identity: what identity_of() says of it there.
        digest: of all bytes of the file, in hexadecimal digits. Empty: every machine has it.
        pieces: references to the bytes in Ray's store.
    """

    path: str
    identity: str
    digest: str = ""
    pieces: tuple[Any, ...] = field(default=(), repr=False)

    def is_here(self) -> bool:
        """Whether this machine has it under its path."""
        try:
            return identity_of(self.path) == self.identity
        except OSError:
            return False

    def local(self) -> str:
        """Return the path on this machine, after a copy if it is needed, which replaces older ones.

        Raises:
            CheckpointError: it is not here, and was not shared.
        """
        if self.is_here():
            return self.path
        if not self.pieces:
            raise CheckpointError(f"{shown(self.path)} is not on the machine of a worker: copy it there")
        import ray

        folder = os.path.join(tempfile.gettempdir(), f"pyllama2-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid != os.getuid():
            raise CheckpointError(f"{shown(folder)} belongs to another user")
        name = os.path.basename(self.path)
        path = os.path.join(folder, f"{self.digest[:16]}-{name}")
        if not os.path.exists(path):
            for other in os.listdir(folder):
                if re.fullmatch("[0-9a-f]{16}-" + re.escape(name), other):
                    with suppress(OSError):  # a process that has it open keeps its bytes
                        os.unlink(os.path.join(folder, other))
            with Interrupts() as interrupts, NewFile(path, interrupts) as file, interrupts.allowed():
                for piece in self.pieces:
                    file.write(ray.get(piece))
        return path


def share_model(ray: Any, model: str | None) -> SharedModel:
    """Find a model, and put its file into Ray's store if a machine of the cluster does not have it.

    Args:
        ray: the module.
        model: as Llama takes it.

    Raises:
        CheckpointError: there is no such model, or a machine does not have the same folder.
        OSError: a file cannot be read.
    """
    path = os.path.abspath(find_model(model))
    shared = SharedModel(path, identity_of(path))
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(SharedModel.is_here)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    found = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(shared)
        for node in nodes
    ]
    if all(ray.get(found)):
        return shared
    if os.path.isdir(path):
        raise CheckpointError(
            f"the folder {shown(path)} is not the same on every machine: copy it there, or export it to a file"
        )
    digest, pieces = hashlib.sha256(), []
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            pieces.append(ray.put(piece))
    return SharedModel(path, shared.identity, digest.hexdigest(), tuple(pieces))


def cpus_and_workers(ray: Any, n_threads: int | None) -> tuple[int, int]:
    """Return how many CPUs a worker takes, and how many workers fit into the cluster.

    Args:
        ray: the module.
        n_threads: of a worker. None: all CPUs of the smallest machine that has any.

    Raises:
        ValueError: no machine has so many CPUs.
    """
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    most = max(cpus, default=0)
    if most and n_threads is not None and n_threads > most:
        raise ValueError(
            f"a worker of {n_threads} threads fits on no machine of the cluster: they have at most {most} CPUs"
        )
    each = n_threads or min((n for n in cpus if n), default=1)
    return each, max(1, sum(n // each for n in cpus))


class Worker:
    """A model in a process of its own.

    Args:
        model: its file.
        options: arguments of Llama.
        name: of the model, for answers.
    """

    def __init__(self, model: SharedModel, options: dict[str, Any], name: str) -> None:
        self._llm = Llama(model.local(), **options)
        self._service = make_service(self._llm, name)
        self._loop = asyncio.new_event_loop()

    def answer(self, items: Sequence[tuple[Item, str]]) -> list[dict[str, Any]]:
        """Return the results of items with ids, in their order."""

        async def all_of_them() -> list[dict[str, Any]]:
            return await asyncio.gather(*(result_of(self._service, item, name) for item, name in items))

        return self._loop.run_until_complete(all_of_them())


class LineWorker(Worker):
    """A Worker for the command: blocks of pickled items become blocks of lines."""

    def __call__(self, block: Any) -> Any:
        """Answer a pyarrow.Table with the column item; returns one with the columns number, source and line."""
        import pyarrow

        items = [pickle.loads(one) for one in block["item"].to_pylist()]  # made by the command that asks
        return pyarrow.table(
            {
                "number": [item.number for item, _ in items],
                "source": pyarrow.array([item.source for item, _ in items], pyarrow.binary()),
                "line": pyarrow.array(map(to_line, self.answer(items)), pyarrow.binary()),
            }
        )


def block_of(items: Sequence[tuple[Item, str]]) -> Any:
    """The pyarrow.Table for a LineWorker."""
    import pyarrow

    return pyarrow.table({"item": pyarrow.array([pickle.dumps(item) for item in items], pyarrow.binary())})
