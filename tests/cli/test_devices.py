"""--device and --n-gpu-layers, as far as they go without a GPU."""

from __future__ import annotations

import re

import pytest
from helpers.tiny_llama import PROMPT, write_tiny

from pyllama2.cli.program import main

WRONG = ("", "tpu", "cuda:", "cuda:-1", "cuda:0,cpu", "cuda:0,cuda:0", "cuda:00,cuda:0", "cuda:\u0663", "cuda:1,")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin"))


def test_no_layers_on_a_gpu(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for flags in (["--device", "cpu"], ["--n-gpu-layers", "0"], ["--device", "auto", "--n-gpu-layers=0"]):
        assert main(["generate", "-m", model, PROMPT, "-n", "5", "--temperature", "0", *flags]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1 and outputs[0].startswith(PROMPT)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        *((["--device", wrong], 2, f"device must be auto, cpu or cuda, or GPUs .*, not '{wrong}'") for wrong in WRONG),
        (["--device", "cpu", "--n-gpu-layers=-1"], 1, "n_gpu_layers=-1 is for a GPU, and the device is cpu"),
        (["--n-gpu-layers=-2"], 2, "'-2' is not a number of layers, or -1 for all"),
        (["--n-gpu-layers=all"], 2, "'all' is not a number of layers, or -1 for all"),
        (["-ngl", "20"], 2, "did you mean --n-gpu-layers"),
    ],
)
def test_what_is_refused(
    model: str, flags: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "-m", model, PROMPT, *flags]) == code
    assert re.search(said, capsys.readouterr().err)


def test_gpus_by_number_are_asked_for(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Here there are not so many, which an error says."""
    for device in ("cuda:99", "cuda:98,cuda:99"):
        assert main(["generate", "-m", model, PROMPT, "--device", device]) == 1
        assert f"no {device}: " in capsys.readouterr().err
