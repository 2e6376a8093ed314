"""The sentences that say why there is no CUDA backend, and what "auto" takes instead."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.gpu_backend import make_model, pretended, real_cupy
from helpers.tiny import GQA
from helpers.tiny_llama import write_tiny

from pyllama2 import Llama
from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend, availability
from pyllama2.backend import select_backend
from pyllama2.errors import BackendUnavailableError


class FakeCupy(types.SimpleNamespace):
    """A cupy whose runtime and compiler do what a test says."""

    def __init__(self, devices: Any = 1, capability: tuple[int, int] = (8, 0), compiles: Any = None,
                 version: str = "14.2.0") -> None:  # fmt: skip
        def raising(value: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        properties = dict(zip(("major", "minor"), capability, strict=True))
        runtime = types.SimpleNamespace(
            getDeviceCount=lambda: raising(devices), getDevice=lambda: 0, getDeviceProperties=lambda _: properties
        )
        module = types.SimpleNamespace(get_function=lambda _: raising(compiles))
        super().__init__(cuda=types.SimpleNamespace(runtime=runtime), RawModule=lambda **_: module, __version__=version)


@pytest.mark.parametrize(
    ("cupy", "sentence"),
    [
        (FakeCupy(), None),
        (FakeCupy(capability=(6, 1)), None),
        (FakeCupy(devices=RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA "
                                       "runtime version")), "no NVIDIA driver, or it is too old for CUDA 12"),
        (FakeCupy(devices=ImportError("libcuda.so.1: cannot open shared object file")), "no NVIDIA driver"),
        (FakeCupy(devices=RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")), "no NVIDIA GPU"),
        (FakeCupy(devices=0), "no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"),
        (FakeCupy(devices=RuntimeError("cudaErrorUnknown: unknown error")), "not start (cudaErrorUnknown"),
        (FakeCupy(version="14.10.1rc1"), None),
        (FakeCupy(version="14.1.1"), "CuPy 14.1.1 is installed, and 14.2 or later is needed (pip install"),
        (FakeCupy(version="13.6.0"), "CuPy 13.6.0 is installed"),
        (FakeCupy(capability=(5, 2)), "capability 5.2, and 6.1 or later is needed"),
        (FakeCupy(compiles=RuntimeError('common.cu(17): error: cannot open source file "cuda_fp16.h"')),
         "pip install nvidia-cuda-runtime-cu12"),
        (FakeCupy(compiles=RuntimeError("Failed to find CUDA headers. Please install ...")),
         "pip install nvidia-cuda-runtime-cu12"),
        (FakeCupy(compiles=RuntimeError("CuPy failed to load libnvrtc.so.12: OSError: ...")),
         "pip install nvidia-cuda-nvrtc-cu12"),
        (FakeCupy(compiles=RuntimeError("\n****\ncommon.cu(3): error: this\n")), "(common.cu(3): error: this)"),
    ],
)  # fmt: skip
def test_what_is_missing(cupy: Any, sentence: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(availability, "import_cupy", lambda: cupy)
    reason = CudaBackend.unavailable_reason()
    if sentence is None:
        assert reason is None
    else:
        assert reason is not None and sentence in reason and "\n" not in reason
        with pytest.raises(BackendUnavailableError, match="no cuda: "):
            select_backend("cuda")
        assert select_backend("auto") == (CpuBackend, f"using cpu (no cuda: {reason})")


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda _: None)
    assert CudaBackend.unavailable_reason() == 'the package cupy is not installed (pip install "pyllama2[gpu]")'

    def broken() -> Any:
        raise ImportError("libcublas.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(availability, "import_cupy", broken)
    reason = CudaBackend.unavailable_reason()
    assert reason is not None and "cannot be imported (libcublas.so.12: cannot open shared object file)" in reason


@pytest.fixture
def gpu() -> Iterator[Any]:
    with real_cupy() as cupy:
        yield cupy


@pytest.mark.usefixtures("gpu")
class TestAuto:
    def test_takes_the_gpu_for_what_it_can_run(self) -> None:
        assert select_backend("auto") == (CudaBackend, "using cuda")
        assert select_backend("auto", make_model(GQA)) == (CudaBackend, "using cuda")

    def test_says_why_not(self) -> None:
        for model, kv_dtype, why in (
            (make_model(replace(GQA, head_dim=512)), None, "heads of up to 256 numbers, not 512"),
            (make_model(GQA), "float32", "float16 or int8 keys and values, not float32"),
        ):
            chosen, sentence = select_backend("auto", model, kv_dtype)
            assert chosen is CpuBackend and sentence.startswith("using cpu (no cuda: ") and why in sentence
            with pytest.raises(BackendUnavailableError, match=why):
                select_backend("cuda", model, kv_dtype)

    def test_small_devices(self) -> None:
        with pretended().machine(total_bytes=1 << 20):
            chosen, sentence = select_backend("auto", make_model(GQA))
        assert chosen is CpuBackend and "0.00 GiB are free" in sentence

    def test_llama_says_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYLLAMA2_DEVICE", raising=False)
        file = write_tiny(tmp_path / "q4.bin", weight_type="q4")
        for kv_dtype, said, device in (
            (None, "pyllama2: using cuda\n", "cuda"), ("float32", "pyllama2: using cpu (no cuda: the CUDA", "cpu")
        ):  # fmt: skip
            with Llama(file, n_threads=1, verbose=True, kv_dtype=kv_dtype) as llm:
                assert llm.describe()["device"] == device
            assert capsys.readouterr().err.startswith(said)
