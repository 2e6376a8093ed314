"""What the side-by-side benchmarks share: engines in processes of their own that take turns, and how a turn is judged.

Each engine runs in a process of its own, so that neither's threads, settings of OpenMP or memory reach the other; the
one whose turn it is not waits in a read, its threads asleep. A turn during which other programs used more of the
processors than DISTURBED is repeated, up to RETRIES times a row; the least disturbed turns count.
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
from pyllama2.bench import Spread

DISTURBED = 0.1  # processors that others may use
RETRIES = 6  # turns of a row that may be repeated
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
    """The path of a model of random weights, which is made when it is not there yet."""
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
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


class Worker:
    """An object in a process of its own, whose methods are called one at a time.

    factory and what is sent to it must be importable by name.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns. Raises RuntimeError with the error of the other process."""
        self._connection.send((method, arguments))
        return self._receive()

    def cpu_s(self) -> float:
        """Processor time that the process has used."""
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
            raise RuntimeError("the engine's process ended; was there enough memory?") from None
        if error is not None:
            raise RuntimeError(error)
        return result


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        served = factory(*arguments)
        connection.send((None, None))
        while True:
            method, arguments = connection.recv()
            connection.send((None, getattr(served, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):  # the other side is done
        return
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))


@dataclass
class Turn:
    """One measurement of one engine: its value, and how many processors others used meanwhile."""

    value: Any
    others: float


@dataclass
class Turns:
    """The turns of some engines, each list by the engine's name, and the read bandwidth between them, GB/s."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    repeated: int = 0

    def values(self, engine: str) -> list[Any]:
        """Of the turns that count."""
        return [turn.value for turn in self.turns[engine]]

    @property
    def others(self) -> float:
        """Processors that others used in the turn that was disturbed most."""
        return max(turn.others for turns in self.turns.values() for turn in turns)

    @property
    def bandwidth(self) -> Spread:
        """Over all passes."""
        return Spread.of(self.rates)


def take_turns(
    measures: dict[str, Callable[[], Any]], workers: Sequence[Worker], repeat: int, memory: ReadBandwidth
) -> Turns:
    """Call the measures in turn, A B A B, until each has repeat undisturbed turns or RETRIES more were not enough."""
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
    """Processor time of all processes but this one, its finished children, and workers."""
    fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    busy = (user + nice + system + irq + softirq + steal) * _TICK_S
    own = os.times()
    mine = own.user + own.system + own.children_user + own.children_system
    return busy - mine - sum(worker.cpu_s() for worker in workers)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Facts about this computer that explain its figures."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"processor": model, "processors": len(os.sched_getaffinity(0))}
