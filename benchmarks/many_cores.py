"""Decoding on more cores than are here, on paper: costs are measured on this machine, and the rest is computed.

    python benchmarks/many_cores.py 1.1b-q4.bin --socket 100 --link 30    # GB/s of one socket, and between two

A token takes the time of reading its bytes, of the ends of its steps, and of what one thread does alone:

    bytes / min(threads * one core's rate, socket's rate) + steps * end * (threads - 1) + alone

Measured here are the rate at which one core reads while it decodes, the mean wait at the end of a step with two threads
(by the trace), and what a pass takes outside of the steps. That an end takes longer with each thread by as much as with
the second is an assumption: each thread adds to one counter, and looks at it. The rates of sockets are arguments;
without --socket it is what two cores here read. The model is checked against what two threads do here.

With two sockets, one process has its weights in the memory of the socket that read the file first. The other socket's
cores read them over the link, so together they read no faster than the one memory gives. Two processes, bound to a
socket each (numactl --cpunodebind=0 --membind=0), have a copy each: twice the tokens of one, not of one text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import numpy as np

from pyllama2._cpu import CpuBackend
from pyllama2.analysis.bandwidth import ReadBandwidth
from pyllama2.backend.base import Batch
from pyllama2.cli.common import positive
from pyllama2.cli.running import run_guarded
from pyllama2.loading import load_model
from pyllama2.memory import weight_bytes_per_token
from pyllama2.storage.model_file import StoredModel

_PASSES = 24
_ENDS = 0.99  # of the waits that count; the others are other programs on this machine


@dataclass(frozen=True)
class Costs:
    """What was measured: a core's rate in bytes/s, the end of a step and a pass outside of its steps in seconds."""

    core: float
    socket: float
    end: float
    alone: float
    steps: float
    read: int

    def token_s(self, threads: int, socket: float) -> float:
        """Return the seconds of a token, computed, where a socket reads so many bytes/s."""
        return self.read / min(threads * self.core, socket) + self.steps * self.end * (threads - 1) + self.alone


def pass_seconds(model: StoredModel, threads: int) -> float:
    """Return the median seconds of a pass of one token."""
    backend = CpuBackend(model, n_threads=threads)
    cache = backend.new_cache(1, _PASSES)
    times = []
    for i in range(_PASSES):
        started = time.perf_counter()
        backend.forward(Batch.of_sequence([i], start=i), cache)
        times.append(time.perf_counter() - started)
    backend.close()
    return statistics.median(times[2:])


def measure(model: StoredModel) -> Costs:
    """Measure this machine with two threads, and the rate of one."""
    backend = CpuBackend(model, n_threads=2)
    cache = backend.new_cache(1, _PASSES)
    assert backend._forward is not None
    workspace = backend._forward.workspace
    workspace.record_events(_PASSES * 20_000)
    outside = []
    for i in range(_PASSES):
        first = len(workspace.events()[0])
        started = time.perf_counter()
        backend.forward(Batch.of_sequence([i], start=i), cache)
        took = time.perf_counter() - started
        events = workspace.events()[0][first:]
        outside.append(took - float((events["end"] - events["start"]).sum()))
    waits = np.concatenate([events[events["kind"] < 0] for events in workspace.events()])
    seconds = np.sort(waits["end"] - waits["start"])
    alone = statistics.median(outside)
    read = weight_bytes_per_token(model.config, model.quantization)
    end = float(seconds[: int(len(seconds) * _ENDS)].mean())
    backend.close()
    core = read / (pass_seconds(model, 1) - alone)
    socket = statistics.median(ReadBandwidth(2).measure()) * 1e9
    return Costs(core, socket, end, alone, len(waits) / 2 / _PASSES, read)


def main() -> int:
    """Measure, compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--cores", type=positive, nargs="+", default=[8, 16, 64], help="of a socket (default: 8 16 64)")
    parser.add_argument("--socket", type=float, help="GB/s that a socket reads (default: what this machine reads)")
    parser.add_argument("--link", type=float, help="GB/s between two sockets")
    args = parser.parse_args()
    model = load_model(args.model, quant=None, tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)
    costs = measure(model)
    print(
        f"measured: one core decodes {costs.core / 1e9:.1f} GB/s, two can read {costs.socket / 1e9:.1f}; an end of a "
        f"step takes {costs.end * 1e6:.2f} us, a pass has {costs.steps:.0f} and {costs.alone * 1e3:.2f} ms beside them"
    )
    computed, found = costs.token_s(2, costs.socket), pass_seconds(model, 2)
    print(
        f"one thread here: measured {1 / costs.token_s(1, costs.socket):.1f} tokens/s; "
        f"two: computed {1 / computed:.1f}, measured {1 / found:.1f}"
    )
    socket = args.socket * 1e9 if args.socket else costs.socket
    print(f"computed, for sockets that read {socket / 1e9:.1f} GB/s:")
    for cores in args.cores:
        best = min(range(1, cores + 1), key=lambda n: costs.token_s(n, socket))
        whole, least = costs.token_s(cores, socket), costs.token_s(best, socket)
        print(f"  {cores} cores: {1 / whole:.1f} tokens/s with all, {1 / least:.1f} with {best}")
        if args.link:
            over = min(socket, cores * costs.core, args.link * 1e9)  # what the other socket's cores may read
            one = costs.read / min(socket, cores * costs.core + over) + costs.steps * costs.end * (2 * cores - 1)
            print(f"    two sockets: one process {1 / (one + costs.alone):.1f} tokens/s, one on each {2 / whole:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded("many_cores.py", main))
