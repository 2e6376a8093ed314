"""Bits where they count: the choice of storage types for a number of bits a weight."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import GQA, quantized_model, random_weights
from helpers.tiny_llama import CONFIG as TINY
from helpers.tiny_llama import write_tiny
from helpers.tiny_tokenizers import CORPUS

import pyllama2
from pyllama2 import Llama
from pyllama2.calibration.budget import BASE, CANDIDATES, FINER, StepLoss, bits_of, bounds, choose_types, step_bytes
from pyllama2.config import ModelConfig
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import STEPS, StorageType

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ModelConfig(
    dim=128, hidden_dim=256, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=64, vocab_size=64, max_seq_len=64
)  # whole groups of every size
ERRORS = dict(zip(CANDIDATES, (1.4, 1.0, 0.7, 0.004), strict=True))


def losses_of(losses: list[float], config: ModelConfig = CONFIG) -> dict[tuple[int, int], StepLoss]:
    places = itertools.product(range(config.n_layers), range(4))
    return {place: StepLoss(loss, ERRORS) for place, loss in zip(places, losses, strict=True)}


def total(types: Any, losses: dict[tuple[int, int], StepLoss]) -> float:
    return sum(loss.base * loss.errors[types[layer][step]] for (layer, step), loss in losses.items())


class TestChoice:
    def test_bounds(self) -> None:
        assert bounds(CONFIG) == (4.125, 8.25)

    @pytest.mark.parametrize("kind", CANDIDATES, ids=str)
    def test_sizes_are_those_of_files(self, kind: StorageType) -> None:
        model = quantized_model(GQA, random_weights(GQA), kind.type, group_size=kind.group_size)
        for step, names in enumerate(STEPS):
            stored = sum(model.weights[f"layers.1.{name}.weight"].nbytes for name in names)
            assert stored == step_bytes(GQA, step, kind)

    @pytest.mark.parametrize("bits", [4.125, 4.2, 4.25, 4.5, 5.0, 6.3, 8.25])
    def test_bits_are_kept_and_used(self, bits: float) -> None:
        losses = [float(x) for x in np.random.default_rng(0).uniform(0, 1, 8)]
        types = choose_types(CONFIG, bits, losses_of(losses))
        found = bits_of(CONFIG, types)
        assert found <= bits + 1e-9
        assert found > bits - 0.25  # with eight steps not every number can be had
        if bits in (4.125, 8.25):
            assert found == bits

    def test_what_losses_most_per_byte_comes_first(self) -> None:
        losses = [0.1] * 8
        losses[5] = 50.0  # wo of the last layer, a small matrix
        types = choose_types(CONFIG, 4.8, losses_of(losses))
        assert types[1][1] == FINER
        assert sum(kind == FINER for layer in types for kind in layer) == 1

    def test_no_other_choice_of_as_many_bytes_loses_much_less(self) -> None:
        """All 4^4 choices of one layer; a choice from the hull is at most one improvement from the best."""
        config = ModelConfig(
            dim=128, hidden_dim=256, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=64, vocab_size=64, max_seq_len=64
        )
        losses = losses_of([0.3, 0.5, 0.2, 0.9], config)
        for bits in (4.3, 4.6, 5.2, 6.0):
            found = choose_types(config, bits, losses)
            every = ((types,) for types in itertools.product(CANDIDATES, repeat=4))
            best = min(total(types, losses) for types in every if bits_of(config, types) <= bits)
            largest = max(loss.base * (ERRORS[BASE] - ERRORS[FINER]) for loss in losses.values())
            assert best <= total(found, losses) <= best + largest

    def test_losses_below_nothing_are_noise(self) -> None:
        types = choose_types(CONFIG, 8.25, losses_of([-1.0, *[0.1] * 7]))
        assert all(kind == FINER for layer in types for kind in layer)


class TestFiles:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return write_tiny(tmp_path / "source.bin", weights=random_weights(replace(TINY, n_layers=3)), n_layers=3)

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        words = sorted({word for line in CORPUS for word in line.split()})
        path = tmp_path / "text.txt"
        path.write_text(" ".join(np.random.default_rng(0).choice(words, 900)))
        return path

    @pytest.mark.slow
    def test_more_bits_lose_less(self, source: Path, text: Path, tmp_path: Path) -> None:
        said: list[str] = []
        divergences = []
        least, most = bounds(StoredModel.open(source).config)
        for bits in (least, (2 * least + most) / 3, most):
            out = tmp_path / "out.bin"
            pyllama2.quantize(source, out, "q4", bits=bits, calibrate=[text], say=said.append)
            model = StoredModel.open(out)
            assert bits_of(model.config, model.quantization.layers) <= bits + 1e-9
            assert model.calibration is not None
            divergences.append(model.calibration.kl_divergence)
            with Llama(out) as llm:
                assert np.isfinite(llm.logits([1, 2, 3])).all()
        assert divergences[0] > divergences[1] > divergences[2]
        assert not list(tmp_path.glob("*.partial"))
        assert any("bits a weight: " in sentence for sentence in said)

    @pytest.mark.slow
    def test_it_goes_on_after_an_interruption(self, source: Path, text: Path, tmp_path: Path) -> None:
        """Whether the survey was interrupted or the calibration, the file is the same, and no layer is done twice."""
        pyllama2.quantize(source, tmp_path / "whole.bin", "q4", bits=6.0, calibrate=[text])
        for at in ("measured layer 2", "bits a weight"):
            out, said = tmp_path / f"{at}.bin", []

            def stop(sentence: str, at: str = at, said: list[str] = said) -> None:
                said.append(sentence)
                if at in sentence:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                pyllama2.quantize(source, out, "q4", bits=6.0, calibrate=[text], say=stop)
            assert "has what was measured so far" in said[-1]  # rather than no layers
            said.clear()
            pyllama2.quantize(source, out, "q4", bits=6.0, calibrate=[text], say=said.append)
            assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()
            assert any("measuring" in sentence for sentence in said) == (at == "measured layer 2")
            if at == "measured layer 2":  # the layers of the survey were all done
                assert sum("calibrating" in sentence for sentence in said) == 1

    def test_refusals(self, source: Path, text: Path, tmp_path: Path) -> None:
        for arguments, error, match in (
            ({"bits": 3.0}, ValueError, "bits must be from"),
            ({"bits": 50}, ValueError, "bits must be from"),
            ({"bits": float("nan")}, ValueError, "bits"),
            ({"bits": "5"}, TypeError, "bits"),
            ({"bits": 5.0, "type": "q8"}, ValueError, "type q4"),
            ({"bits": 5.0, "calibrate": False}, ValueError, "calibration"),
        ):
            with pytest.raises(error, match=match):
                pyllama2.quantize(source, tmp_path / "out.bin", **{"type": "q4", "calibrate": [text]} | arguments)
        assert not (tmp_path / "out.bin").exists() and not list(tmp_path.glob("*.partial"))
