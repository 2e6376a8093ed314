"""What is on this machine, which models it can run and how fast, and what is missing."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .._gpu import availability
from .._gpu.availability import CudaVersions, Gpu
from .._gpu.planner import plan
from ..backend import asked_device, gpu_numbers, select_backend
from ..config import ModelConfig
from ..errors import Pyllama2Error
from ..llama import Llama
from ..memory import available_bytes, kv_cache_bytes, needed_bytes, weight_bytes_per_token
from ..storage.weights import Quantization
from .bandwidth import ReadBandwidth, step_seconds

CONTEXT = 4096  # tokens, that memory is planned for
_KV_DTYPE = "float16"
_MODELS = {
    "1.1B": ModelConfig(2048, 5632, 22, 32, 4, 64, vocab_size=32000, max_seq_len=CONTEXT),
    "7B": ModelConfig(4096, 11008, 32, 32, 32, 128, vocab_size=32000, max_seq_len=CONTEXT),
    "13B": ModelConfig(5120, 13824, 40, 40, 40, 128, vocab_size=32000, max_seq_len=CONTEXT),
    "70B": ModelConfig(8192, 28672, 80, 64, 8, 128, vocab_size=32000, max_seq_len=CONTEXT),
}
_FOR_USERS = {
    "gpu": "run on an NVIDIA GPU",
    "torch": "read the model in PyTorch",
    "cli": "colour, history and completion in the terminal",
    "constraints": "JSON that keeps to a schema",
    "serve": "the server",
    "batch": "files of requests",
    "ray": "many machines",
}


@dataclass(frozen=True)
class Prospect:
    """A Llama of some size in some quantization on the CPU, or on the first of the GPUs that were asked for.

    Attributes:
        model: number of parameters, such as "7B".
        quant: the type of its weights.
        device: "cpu" or "cuda".
        needed_bytes: of memory, with keys and values of CONTEXT tokens in float16.
        fits: whether there is as much memory now; None where the system does not say.
        tokens_per_s: at most, while it decodes at the start of a context; None: not known.
    """

    model: str
    quant: str
    device: str
    needed_bytes: int
    fits: bool | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What diagnose() found.

    Attributes:
        version: of pyllama2.
        python: version of Python.
        system: operating system and architecture.
        processor: its name.
        n_threads: threads that are used.
        isa: the instruction set that the kernels use; None if the CPU backend does not work.
        available_bytes: memory that can be had without swapping; None where the system does not say.
        bandwidth: what these threads read from memory, in 10^9 bytes/s; None: not measured.
        cuda: versions of what a GPU needs.
        gpus: the GPUs that can be used.
        no_gpu: why there are none; None when there are.
        missing: packages of each extra that are not installed. An extra that is complete is not in it.
        extras: what each extra is for.
        prospects: what can run, and how fast.
        problems: what keeps a model from running on the device that was asked for. Empty when all is well.
    """

    version: str
    python: str
    system: str
    processor: str
    n_threads: int
    isa: str | None
    available_bytes: int | None
    bandwidth: float | None
    cuda: CudaVersions
    gpus: tuple[Gpu, ...]
    no_gpu: str | None
    missing: dict[str, tuple[str, ...]]
    extras: dict[str, str]
    prospects: tuple[Prospect, ...]
    problems: tuple[str, ...]


def diagnose(version: str, device: str | None = None, *, n_threads: int, measure: bool = True) -> Diagnosis:
    """Look at the machine, and run the bundled model.

    Args:
        version: of pyllama2.
        device: "cpu", "cuda", "cuda:1", "cuda:0,cuda:1" or "auto". None: what PYLLAMA2_DEVICE says, else "auto".
        n_threads: threads of the CPU.
        measure: measure the memory's bandwidth, which takes a second and up to 512 MiB.

    Raises:
        ValueError: there is no such device.
    """
    problems = []
    isa = None
    try:
        isa = _isa(n_threads)
    except (Pyllama2Error, ImportError, OSError) as error:
        problems.append(f"the bundled model does not run: {error}")
    try:
        select_backend(device)
    except Pyllama2Error as error:
        problems.append(str(error))
    no_gpu = availability.unavailable_reason()
    found = () if no_gpu else availability.gpus()
    bandwidth = max(ReadBandwidth(n_threads).measure()) if measure else None
    first = next(iter(gpu_numbers(asked_device(device))), None) or 0
    gpus = found[first : first + 1]
    prospects = [*_on_the_cpu(n_threads, bandwidth), *(prospect for gpu in gpus for prospect in _on_a_gpu(gpu))]
    return Diagnosis(
        version, platform.python_version(), f"{platform.system()} {platform.machine()}", _processor(), n_threads, isa,
        available_bytes(), bandwidth, availability.cuda_versions(), found, no_gpu, _missing(), dict(_FOR_USERS),
        tuple(prospects), tuple(problems),
    )  # fmt: skip


def _isa(n_threads: int) -> str:
    """The instruction set with which the bundled model has just written a few words."""
    with Llama("demo", device="cpu", n_threads=n_threads) as llm:
        if not llm.generate("Once upon a time", max_tokens=8, temperature=0).text.strip():
            raise Pyllama2Error("it writes nothing")
        return str(llm.describe()["isa"])


def _on_the_cpu(n_threads: int, bandwidth: float | None) -> Iterator[Prospect]:
    available = available_bytes()
    for name, config in _MODELS.items():
        fixed = step_seconds(config.n_layers, n_threads) if bandwidth else 0.0
        for quant in ("q4", "q8"):
            way = Quantization.of(quant)
            needed = needed_bytes(config, way, CONTEXT, _KV_DTYPE, n_threads)
            speed = None if bandwidth is None else 1 / (_read_bytes(config, way) / bandwidth / 1e9 + fixed)
            yield Prospect(name, quant, "cpu", needed, None if available is None else needed <= available, speed)


def _on_a_gpu(gpu: Gpu) -> Iterator[Prospect]:
    """What fits on a GPU. The speed is that of reading at its memory's peak, so a real one is lower."""
    for name, config in _MODELS.items():
        for quant in ("q4", "q8"):
            way = Quantization.of(quant)
            planned = plan(config, way, 1, CONTEXT, _KV_DTYPE, free_bytes=gpu.free_bytes)
            peak = gpu.peak_gb_per_s
            speed = None if peak is None else peak * 1e9 / _read_bytes(config, way)
            yield Prospect(name, quant, "cuda", planned.total, planned.problem is None, speed)


def _read_bytes(config: ModelConfig, way: Quantization) -> int:
    """Bytes that the first token after a prompt of one reads."""
    return weight_bytes_per_token(config, way) + kv_cache_bytes(config, 1, _KV_DTYPE)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _missing() -> dict[str, tuple[str, ...]]:
    """The packages of extras that are not installed. Empty when the package itself is not installed."""
    try:
        requirements = metadata.requires("pyllama2") or []
    except metadata.PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and extra[1] in _FOR_USERS and not _installed(name[0]):
            missing.setdefault(extra[1], []).append(name[0])
    return {extra: tuple(names) for extra, names in missing.items()}


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
