"""What the side-by-side benchmarks share: engines that take turns, and which turns count.

Each engine runs in a process of its own. So its threads, its OpenMP settings and its memory do not affect the other
engine. An engine that waits for its turn blocks in a read, and its threads sleep.

A turn is disturbed if other programs used more processors than DISTURBED meanwhile. Disturbed turns are repeated, up to
RETRIES times in a row of the table. The least disturbed turns count.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "random_models"))

from make_random_model import main as make_random_model

from pyllama2.analysis.bandwidth import ReadBandwidth
from pyllama2.analysis.benchmark import Spread
from pyllama2.errors import Pyllama2Error

DISTURBED = 0.1  # processors that other programs may use
RETRIES = 6  # most repetitions for one row of a table
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

# Formats and options of make_random_model.py, and endings of the files' names.
_KINDS = {
    "float32": (["--format", "native", "--dtype", "float32"], ".bin"),
    "q8": (["--format", "native", "--dtype", "q8"], ".bin"),
    "q4": (["--format", "native", "--dtype", "q4"], ".bin"),
    "f32": (["--format", "gguf", "--type", "f32"], ".gguf"),
    "q8_0": (["--format", "gguf", "--type", "q8_0"], ".gguf"),
    "q4_0": (["--format", "gguf", "--type", "q4_0"], ".gguf"),
    "hf": (["--format", "hf"], ""),
}


def random_model(folder: str, shape: str, kind: str, layers: int | None) -> str:
    """Return the path of a model of random weights. It is made first if it does not exist."""
    options, ending = _KINDS[kind]
    path = os.path.join(folder, f"{shape}{f'-{layers}-layers' if layers else ''}-{kind}{ending}")
    if not os.path.exists(path):
        say(f"making {path}")
        os.makedirs(folder, exist_ok=True)
        unfinished = f"{path}.unfinished"
        make_random_model([shape, unfinished, *options, *(["--layers", str(layers)] if layers else [])])
        os.replace(unfinished, path)
    return path


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


class Worker:
    """An object in a process of its own. Its methods are called one at a time.

    Args:
        factory: makes the object. It must be importable by name.
        arguments: arguments of factory, which can be pickled.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its result. Raises Pyllama2Error with the error of the other process."""
        self._connection.send((method, arguments))
        return self._receive()

    def cpu_s(self) -> float:
        """Return the processor time that the process has used, in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=60)

    def _receive(self) -> Any:
        try:
            error, result = self._connection.recv()
        except EOFError:
            raise Pyllama2Error("the engine's process ended; was there enough memory?") from None
        if error is not None:
            raise Pyllama2Error(error)
        return result


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        served = factory(*arguments)
        connection.send((None, None))
        while True:
            method, arguments = connection.recv()
            connection.send((None, getattr(served, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):  # the other process closed the connection
        return
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))


@dataclass
class Turn:
    """One measurement of one engine.

    Attributes:
        value: what was measured.
        others: processors that other programs used meanwhile.
    """

    value: Any
    others: float


@dataclass
class Turns:
    """The turns of several engines.

    Attributes:
        turns: by the engine's name.
        rates: read bandwidth between the turns, in GB/s.
        repeated: how many turns were repeated because they were disturbed.
    """

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    repeated: int = 0

    def values(self, engine: str) -> list[Any]:
        """Return the values of the turns that count."""
        return [turn.value for turn in self.turns[engine]]

    @property
    def others(self) -> float:
        """Processors that other programs used in the most disturbed turn."""
        return max(turn.others for turns in self.turns.values() for turn in turns)

    @property
    def bandwidth(self) -> Spread:
        """Median and range of all rates, in GB/s."""
        return Spread.of(self.rates)


def take_turns(
    measures: dict[str, Callable[[], Any]], workers: Sequence[Worker], repeat: int, memory: ReadBandwidth
) -> Turns:
    """Call the measures in turn, A B A B, until each has enough undisturbed turns, or RETRIES more were taken.

    Args:
        measures: engine -> function that measures it.
        workers: the processes of the engines, whose processor time does not count as that of others.
        repeat: turns of each engine.
        memory: measures the read bandwidth between turns.
    """
    result = Turns({name: [] for name in measures}, memory.measure())
    taken = 0
    while taken < repeat + RETRIES and _undisturbed(result) < repeat:
        for name, measure in measures.items():
            result.turns[name].append(_take_turn(measure, workers))
        result.rates += memory.measure()
        taken += 1
    result.repeated = taken - repeat
    for name, turns in result.turns.items():
        result.turns[name] = sorted(turns, key=lambda turn: turn.others)[:repeat]
    return result


def _undisturbed(result: Turns) -> int:
    return min(sum(turn.others <= DISTURBED for turn in turns) for turns in result.turns.values())


def _take_turn(measure: Callable[[], Any], workers: Sequence[Worker]) -> Turn:
    started, others = time.perf_counter(), _others_s(workers)
    value = measure()
    took = time.perf_counter() - started
    return Turn(value, max(0.0, _others_s(workers) - others) / took)


def _others_s(workers: Sequence[Worker]) -> float:
    """Return the processor time of all processes but this one, its finished children, and workers, in seconds."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    busy = (user + nice + system + irq + softirq + steal) * _TICK_S
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return busy - mine - sum(worker.cpu_s() for worker in workers)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Return facts about this computer that explain its figures."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"processor": model, "processors": len(os.sched_getaffinity(0))}
