"""The steps of first_day.py. Each yields lines of the report, and raises AssertionError when a result is wrong.

They look inside of the CUDA backend: what is checked here, its interface hides.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_gpu
import kernel_times

from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend, availability
from pyllama2._gpu.planner import CONTEXT_BYTES, DECODE_TOKENS
from pyllama2._staged import StagedBackend
from pyllama2.analysis.benchmark import fill_cache, random_tokens
from pyllama2.backend.base import Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.model_names import find_model
from pyllama2.sampling.sampler import Draw, sampled
from pyllama2.storage.model_file import StoredModel

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve().with_name("first_day.py")
POSITIONS = (1, 255, 256, 257, 600)  # around the boundary of two spans of attention, and in a third
KV_DTYPES = ("float16", "int8")
GRAPHS = "one graph for each decoding step"
_MIB = 1 << 20
_GREEDY = Draw(0.0)
_SANITIZER = "compute-sanitizer"
_REPEATS = 100  # of a graph
_STEPS_AHEAD = 20


class SkippedError(Exception):
    """The step cannot be done here. The message says why."""


def need_a_gpu() -> None:
    """Raise SkippedError unless the CUDA backend can be used."""
    reason = CudaBackend.unavailable_reason()
    if reason is not None:
        raise SkippedError(f"no cuda: {reason}")


def models(args: argparse.Namespace) -> Iterator[tuple[str, StoredModel]]:
    """The bundled model, and a larger one."""
    yield "the bundled model", StoredModel.open(find_model("demo"))
    if args.model is None and args.quick:
        return
    if args.model is None:
        from benchmarking import random_model

        args.model = Path(random_model(str(args.models_dir), args.shape, "q4", None))
    yield args.model.name, StoredModel.open(args.model)


# ---- steps


def machine(args: argparse.Namespace) -> Iterator[str]:
    """What is here: versions, memory, and what doctor says."""
    if shutil.which("git"):
        yield from (f"commit {line}" for line in _output(["git", "describe", "--always", "--dirty"]))
    versions = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    for name, version in sorted(versions.items()):
        if name.startswith(("cupy", "nvidia", "pyllama2")):
            yield f"{name} {version}"
    if shutil.which("nvidia-smi"):
        yield from _output(["nvidia-smi"])
    else:
        yield "nvidia-smi is missing"
    yield from _output([sys.executable, "-m", "pyllama2.doctor", *(["--no-measure"] if args.quick else [])])


def _output(command: list[str]) -> list[str]:
    """The lines that a program prints, errors too."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.splitlines()


def tests(args: argparse.Namespace) -> Iterator[str]:
    """The GPU tests with CuPy."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError('pytest is missing (pip install -e ".[test]")')
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *args.tests.split()], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines()
    yield from lines if done.returncode else lines[-1:]
    assert done.returncode == 0, "tests fail"


def sanitizer(args: argparse.Namespace) -> Iterator[str]:
    """compute-sanitizer looks at every access of a small model's steps."""
    need_a_gpu()
    program = shutil.which(_SANITIZER) or shutil.which(_SANITIZER, path="/usr/local/cuda/bin")
    if program is None:
        raise SkippedError(f"{_SANITIZER} is missing; it comes with the CUDA toolkit")
    failed = []
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, str(SCRIPT), "--step", "small"]
        done = subprocess.run(command, capture_output=True, text=True)
        yield f"{tool}: {'nothing is wrong' if done.returncode == 0 else f'exit code {done.returncode}'}"
        if done.returncode:
            failed.append(tool)
            yield from (done.stdout + done.stderr).splitlines()[-60:]
    assert not failed, f"{', '.join(failed)} found something"


def small(args: argparse.Namespace) -> Iterator[str]:
    """A few steps of the bundled model. For compute-sanitizer, which makes all take long."""
    need_a_gpu()
    model = StoredModel.open(find_model("demo"))
    for kv_dtype in KV_DTYPES:
        yield from _compared(model, kv_dtype, (1, 200), 2)


def logits(args: argparse.Namespace) -> Iterator[str]:
    """Logits, tokens, keys and values beside the CPU's: prompts, 1 and 8 sequences, both types of keys and values."""
    need_a_gpu()
    for name, model in models(args):
        for kv_dtype in KV_DTYPES:
            for n_rows in (1, 8):
                for line in _compared(model, kv_dtype, POSITIONS, n_rows):
                    yield f"{name}: {line}"


def _compared(model: StoredModel, kv_dtype: str, positions: Sequence[int], n_rows: int) -> Iterator[str]:
    positions = [position for position in positions if position < model.config.max_seq_len]
    length, vocab_size = max(positions) + 1, model.config.vocab_size
    rows = np.arange(n_rows, dtype=np.int32)
    differing = []
    with closing(CpuBackend(model, kv_dtype=kv_dtype)) as cpu, closing(CudaBackend(model, kv_dtype=kv_dtype)) as gpu:
        theirs, ours = cpu.new_cache(n_rows, length), gpu.new_cache(n_rows, length)
        tokens = random_tokens(vocab_size, min(40, length))
        prompt = Batch.of_sequence(tokens, outputs="all")
        differing += _differences("a prompt", cpu.forward(prompt, theirs), gpu.forward(prompt, ours))
        for row in range(n_rows):
            fill_cache(cpu, theirs, length, row)
            fill_cache(gpu, ours, length, row)
        differing += _kept_differences(theirs, ours, length)
        for position in positions:
            step = Batch(np.asarray(random_tokens(vocab_size, n_rows), np.int32), rows,
                         np.full(n_rows, position, np.int32), rows)  # fmt: skip
            expected = cpu.forward(step, theirs)
            for turn in ("launched", "recorded", "from its graph"):
                what = f"a step at {position}, {turn}"
                differing += _differences(what, expected, gpu.forward(step, ours))
                sampled = gpu.sample(step, ours, [_GREEDY] * n_rows)
                if sampled is None or not np.array_equal(sampled, expected.argmax(1)):
                    differing.append(f"{what}: the greedy tokens differ")
        differing += _kept_differences(theirs, ours, length)
        differing += _ahead_differences(cpu, gpu, n_rows)
        launches = gpu.describe().launches
        ours.close()
        isa = cpu.describe().isa
    what = f"{kv_dtype}, {n_rows} sequence{'s' * (n_rows > 1)}, to position {length - 1}"
    if not differing:
        yield f"{what}: the CPU's bits ({isa})"
    yield from (f"{what}: {sentence}" for sentence in differing)
    assert not differing, f"{what}: not the CPU's bits; they are those of AVX2 and AVX-512, and this CPU has {isa}"
    assert launches == GRAPHS, f"steps are launched {launches}"


def _ahead_differences(cpu: CpuBackend, gpu: CudaBackend, n_rows: int) -> list[str]:
    """Steps that the GPU begins before the host has the tokens of the last. Each token is drawn, and checked."""
    rows, differing = np.arange(n_rows, dtype=np.int32), []
    uniforms = np.random.default_rng(1).random((_STEPS_AHEAD + 1, n_rows))
    draws = [[Draw(1.0, top_p=0.95, uniform=float(u)) for u in of_a_step] for of_a_step in uniforms]
    with closing(cpu.new_cache(n_rows, _STEPS_AHEAD)) as theirs, closing(gpu.new_cache(n_rows, _STEPS_AHEAD)) as ours:
        tokens = np.asarray(random_tokens(cpu.config.vocab_size, n_rows), np.int32)
        for i in range(_STEPS_AHEAD):
            step = Batch(tokens, rows, np.full(n_rows, i, np.int32), rows)
            logits = cpu.forward(step, theirs)
            tokens = np.array([sampled(row, draw) for row, draw in zip(logits, draws[i], strict=True)], np.int32)
            if not np.array_equal(gpu.sample(step, ours, draws[i], draws[i + 1]), tokens):
                differing.append(f"step {i} of those that are begun ahead: the tokens differ")
        differing += _kept_differences(theirs, ours, _STEPS_AHEAD)
    return differing


def _differences(what: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> list[str]:
    if np.array_equal(expected, found):
        return []
    share = np.abs(expected - found).max() / np.abs(expected).max()
    return [f"{what}: {np.mean(expected != found):.1%} of the logits differ, by up to {share:.1e} of the largest"]


def _kept_differences(theirs: KVCache, ours: KVCache, length: int) -> list[str]:
    differing = []
    for row in range(ours.n_rows):
        expected, found = theirs.save_row(row, length), ours.save_row(row, length)
        names = [name for name in expected if not np.array_equal(expected[name], found[name])]
        differing += [f"{name} of sequence {row} differ" for name in names]
    return differing


def devices(args: argparse.Namespace) -> Iterator[str]:
    """The bundled model with its first layers on a GPU and the rest on the CPU, and on two GPUs: each bit."""
    need_a_gpu()
    model, n_gpus = StoredModel.open(find_model("demo")), len(availability.gpus())
    half, tokens = model.config.n_layers // 2, random_tokens(model.config.vocab_size, 40)
    batches = [Batch.of_sequence(tokens[:30], outputs="all")]
    batches += [Batch.of_sequence([token], start=30 + i) for i, token in enumerate(tokens[30:])]
    with closing(CpuBackend(model, kv_dtype="float16")) as cpu, closing(cpu.new_cache(1, 40)) as cache:
        expected = [cpu.forward(batch, cache) for batch in batches]
    wrong = []
    for gpus, n_layers in (((0,), half), ((n_gpus - 1,), half), ((0, 1), -1))[: 1 + 2 * (n_gpus > 1)]:
        with closing(StagedBackend(model, gpus=gpus, n_gpu_layers=n_layers)) as staged:
            with closing(staged.new_cache(1, 40)) as cache:
                found = [staged.forward(batch, cache) for batch in batches]
            where, launches = staged.describe().layers, staged.describe().launches
        same = all(map(np.array_equal, expected, found))
        yield f"{where}: {'all bits of the CPU' if same else 'other logits'}"
        wrong += [] if same else [where]
        assert launches == GRAPHS, f"steps are launched {launches}"
    if n_gpus == 1:
        yield "there is one GPU, so two were not tried"
    assert not wrong, "layers on several devices give other logits"


def threads(args: argparse.Namespace) -> Iterator[str]:
    """Other threads run the recorded step, and copy sequences beside it and beside the recording of others."""
    need_a_gpu()
    model = StoredModel.open(find_model("demo"))
    length = 64
    with closing(CpuBackend(model, kv_dtype="float16")) as cpu, closing(CudaBackend(model, kv_dtype="float16")) as gpu:
        theirs, ours, other = cpu.new_cache(1, length), gpu.new_cache(1, length), gpu.new_cache(2, length)
        for backend, cache in ((cpu, theirs), (gpu, ours), (gpu, other)):
            fill_cache(backend, cache, length)
        steps = [Batch.of_sequence([token], start=20 + i) for i, token in enumerate(random_tokens(3000, 40))]
        expected = [cpu.forward(step, theirs) for step in steps]
        saved = other.save_row(0, length)
        done = threading.Event()
        n_copies = 0

        def copy() -> None:
            nonlocal n_copies
            while not done.is_set():
                other.copy_prefix(0, 1, length)
                n_copies += 1

        found: list[NDArray[np.float32]] = []
        copying = threading.Thread(target=copy)
        copying.start()
        try:
            found += [gpu.forward(step, ours) for step in steps[:20]]
            running = threading.Thread(target=lambda: found.extend(gpu.forward(step, ours) for step in steps[20:]))
            running.start()
            running.join()
            for n in range(2, DECODE_TOKENS + 1):  # each is recorded beside the copies
                many = Batch.of_sequence(random_tokens(3000, n), start=20)
                for _ in range(3):
                    gpu.forward(many, ours)
        finally:
            done.set()
            copying.join()
        launches = gpu.describe().launches
        copied = other.save_row(1, length)
    assert len(found) == len(steps), "the thread's steps end with an error"
    wrong = sum(not np.array_equal(one, two) for one, two in zip(expected, found, strict=True))
    yield f"{len(steps)} steps of two threads, {n_copies} copies beside them"
    assert not wrong, f"{wrong} of {len(steps)} steps have other logits"
    assert all(np.array_equal(saved[name], copied[name]) for name in saved), "the copied sequence differs"
    assert launches == GRAPHS, f"steps are launched {launches}"


def memory(args: argparse.Namespace) -> Iterator[str]:
    """What a plan says, beside what CUDA says is taken: after loading, growing caches, and 24 graphs."""
    need_a_gpu()
    cupy = availability.import_cupy()
    started = _used(cupy)
    yield f"CUDA's context and others: {started / _MIB:.0f} MiB, planned {CONTEXT_BYTES / _MIB:.0f} for the context"
    for name, model in models(args):
        before, most = _used(cupy), model.config.max_seq_len
        too_much = []
        with closing(CudaBackend(model, kv_dtype="float16")) as gpu:
            loaded = _used(cupy) - before
            yield f"{name}: weights {loaded / _MIB:.1f} MiB, planned {gpu.describe().weight_bytes / _MIB:.1f}"
            cache: KVCache | None = None
            for length in dict.fromkeys(min(most, n) for n in (512, 1024, 2048, 4096)):
                planned = gpu.plan(1, length)
                planned.check()
                larger = gpu.new_cache(1, length)
                if cache is not None:
                    larger.copy_prefix(0, 0, 10, source=cache)
                    cache.close()
                cache = larger
                taken = _used(cupy) - before
                yield f"{name}: a context of {length}: {taken / _MIB:.1f} MiB, planned {planned.needed / _MIB:.1f}"
                too_much += [length] if taken > planned.needed else []
            n_graphs = 0
            for n in range(1, DECODE_TOKENS + 1):
                for end in (most // 4, most // 2, most):
                    step = Batch.of_sequence([1] * n, start=end - n)
                    for _ in range(2):
                        gpu.forward(step, cache)
                    n_graphs += 1
            taken = _used(cupy) - before
            yield f"{name}: {n_graphs} steps recorded: {taken / _MIB:.1f} MiB, planned {planned.needed / _MIB:.1f}"
            too_much += ["the graphs"] if taken > planned.needed else []
            assert gpu.describe().launches == GRAPHS, gpu.describe().launches
            cache.close()
        left = _used(cupy) - before
        yield f"{name}: {left / _MIB:.1f} MiB are left when it is closed: modules"
        assert not too_much, f"more is taken than planned: {', '.join(map(str, too_much))}"


def _used(cupy: Any) -> int:
    """Bytes of the device that are taken, by this and other programs."""
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)


def rate(args: argparse.Namespace) -> Iterator[str]:
    """The rate at which the GPU reads its memory."""
    need_a_gpu()
    yield f"{bench_gpu.read_rate(availability.import_cupy()):.0f} GB/s"


def speed(args: argparse.Namespace) -> Iterator[str]:
    """Tokens/s of decoding, of prompts, and of a graph that is launched without waiting for its tokens."""
    need_a_gpu()
    for name, model in models(args):
        most = model.config.max_seq_len
        contexts = list(dict.fromkeys(min(n, most - 2 * args.new_tokens) for n in (0, 4000)))
        for kv_dtype in KV_DTYPES:
            with closing(CudaBackend(model, kv_dtype=kv_dtype)) as gpu:
                for context in contexts:
                    for n_rows in (1, 2, 4, 8):
                        steps, waiting = (
                            bench_gpu.decode_speed(gpu, n_rows, context, args.new_tokens, args.repeat, ahead=ahead)
                            for ahead in (True, False)
                        )
                        yield (f"{name}, {kv_dtype}, {n_rows} together at {context}: {steps * n_rows:.1f} tokens/s, "
                               f"{1e3 / steps:.3f} ms a step; waiting for the host {1e3 / waiting:.3f}")  # fmt: skip
                alone, queued = _graph_seconds(gpu)
                yield (f"{name}, {kv_dtype}: a step of logits {alone * 1e3:.3f} ms, of {_REPEATS} in a row "
                       f"{queued * 1e3:.3f} ms; the host takes the difference")  # fmt: skip
                n_prompt = min(512, most)
                tokens_per_s = bench_gpu.prompt_speed(gpu, n_prompt, args.repeat)
                yield f"{name}, {kv_dtype}: a prompt of {n_prompt}: {tokens_per_s:.1f} tokens/s"


def _graph_seconds(gpu: CudaBackend) -> tuple[float, float]:
    """Seconds of a step whose logits are waited for, and of one of many that are not."""
    with closing(gpu.new_cache(1, 64)) as cache:
        step = Batch.of_sequence([1], start=10)
        for _ in range(3):
            gpu.forward(step, cache)
        started = time.perf_counter()
        for _ in range(_REPEATS):
            gpu.forward(step, cache)
        alone = (time.perf_counter() - started) / _REPEATS
        with gpu._turn():
            started = time.perf_counter()
            for _ in range(_REPEATS):
                gpu._decode(step, cache)
            gpu._stream.synchronize()
            return alone, (time.perf_counter() - started) / _REPEATS


def kernels(args: argparse.Namespace) -> Iterator[str]:
    """The time of each kernel, by events: of a step of 1 and of 8 tokens, and of a prompt."""
    need_a_gpu()
    rows = np.arange(8, dtype=np.int32)
    with kernel_times.timed_backend() as timed:
        for name, model in models(args):
            n_prompt = min(256, model.config.max_seq_len)
            position = n_prompt // 2
            prompt = random_tokens(model.config.vocab_size, n_prompt)
            with closing(CudaBackend(model, kv_dtype="float16")) as gpu, closing(gpu.new_cache(8, n_prompt)) as cache:
                gpu._graphs.problem = "each kernel is timed"
                for what, batch in (
                    ("a step of 1", Batch.of_sequence([1], start=position)),
                    ("a step of 8", Batch(rows, rows, np.full(8, position, np.int32), rows)),
                    (f"a prompt of {n_prompt}", Batch.of_sequence(prompt)),
                ):
                    gpu.forward(batch, cache)  # compiles
                    with timed.timing() as times:
                        gpu.forward(batch, cache)
                    yield f"{name}, {what}:"
                    yield from (f"  {line}" for line in kernel_times.table(times))


STEPS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "machine": machine,
    "logits": logits,
    "devices": devices,
    "threads": threads,
    "memory": memory,
    "sanitizer": sanitizer,
    "rate": rate,
    "speed": speed,
    "kernels": kernels,
    "tests": tests,
    "small": small,
}
