"""How many columns are multiplied by blocks: as the table says or a measurement, without a change of any number."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from helpers import instruction_sets
from helpers.tiny import quantized_model, random_weights
from numpy.typing import NDArray

from pyllama2._cpu import CpuBackend, few_columns, workspace
from pyllama2.backend.base import Batch
from pyllama2.config import ModelConfig
from pyllama2.storage.weights import WeightType

CONFIG = ModelConfig(
    dim=96, hidden_dim=160, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=24, vocab_size=130, max_seq_len=128
)
WEIGHT_TYPES = get_args(WeightType)
WITH_PANELS = [isa for isa in instruction_sets.HERE if isa.startswith("avx")]


@pytest.fixture(autouse=True)
def forgotten() -> None:
    few_columns.measure.cache_clear()


@pytest.mark.parametrize("isa", WITH_PANELS)
@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_a_measurement(kind: WeightType, isa: str) -> None:
    assert few_columns.measure(kind, isa) in few_columns.COUNTS


@pytest.mark.parametrize(("first", "expected"), [(1, 8), (9, 8), (16, 12), (25, 24), (48, 32), (64, 48), (65, 64)])
def test_panels_from_where_they_are_faster(monkeypatch: pytest.MonkeyPatch, first: int, expected: int) -> None:
    """The times are those of a processor on which panels are faster from so many columns on."""

    class Product:
        def __init__(self, weight: object, columns: int, n_threads: int, isa: str, few: int) -> None:
            self.panels = few < columns

    def seconds(product: Product, x: NDArray[Any]) -> float:
        return 1.0 if product.panels == (len(x) >= first) else 1.1

    monkeypatch.setattr(few_columns, "MatrixProduct", Product)
    monkeypatch.setattr(few_columns, "_seconds", seconds)
    assert few_columns.measure("q4", "avx2") == expected


def test_processors_of_the_table_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_columns, "measure", lambda kind, isa: -1)
    for (family, isa), limits in few_columns._MEASURED.items():
        assert set(limits) == set(WEIGHT_TYPES)
        monkeypatch.setattr(few_columns, "amd_family", lambda family=family: family)
        assert all(few_columns.few_columns(kind, isa) == limits[kind] for kind in WEIGHT_TYPES)
        assert all(few_columns.known_few_columns(kind, isa) == limits[kind] for kind in WEIGHT_TYPES)
    monkeypatch.setattr(few_columns, "amd_family", lambda: 0)
    assert few_columns.few_columns("q4", "avx2") == -1
    assert few_columns.known_few_columns("q4", "avx2") is None


@pytest.mark.skipif(not WITH_PANELS, reason="no instruction set with panels")
@pytest.mark.parametrize("type", WEIGHT_TYPES)
def test_a_model_asks_once_and_computes_the_same(monkeypatch: pytest.MonkeyPatch, type: WeightType) -> None:
    weights = random_weights(CONFIG)
    batch = Batch.of_sequence([i % 130 for i in range(100)])
    logits, asked = [], []
    for few, measured_from in ((None, 1 << 60), (0, 1), (8, 1), (100, 1)):
        kinds: list[str] = []
        monkeypatch.setattr(workspace, "MEASURED_FROM", measured_from)
        monkeypatch.setattr(workspace, "known_few_columns", lambda kind, isa: None)
        monkeypatch.setattr(workspace, "measure", lambda kind, isa, few=few, kinds=kinds: kinds.append(kind) or few)
        model = quantized_model(CONFIG, weights, type)
        backend = CpuBackend(model, n_threads=2)
        logits.append([backend.forward(batch, backend.new_cache(1, 128)).tobytes() for _ in range(2)])
        asked.append(kinds)
    assert all(one == logits[0] for one in logits)
    of_model = sorted({weight.type for weight in model.weights.values() if len(weight.shape) == 2})
    assert asked[0] == [] and all(sorted(kinds) == of_model for kinds in asked[1:])


@pytest.mark.skipif(not WITH_PANELS, reason="no instruction set with panels")
def test_a_few_tokens_of_a_small_model_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "known_few_columns", lambda kind, isa: None)
    monkeypatch.setattr(workspace, "measure", lambda kind, isa: pytest.fail("measured"))
    backend = CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4"), n_threads=2)
    backend.forward(Batch.of_sequence(list(range(100))), backend.new_cache(1, 128))


@pytest.mark.skipif(not WITH_PANELS, reason="no instruction set with panels")
@pytest.mark.parametrize("known", [8, 64])
def test_what_is_known_is_not_measured(monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    monkeypatch.setattr(workspace, "MEASURED_FROM", 1)
    monkeypatch.setattr(workspace, "known_few_columns", lambda kind, isa: known)
    monkeypatch.setattr(workspace, "measure", lambda kind, isa: pytest.fail("measured"))
    backend = CpuBackend(quantized_model(CONFIG, random_weights(CONFIG), "q4"), n_threads=2)
    backend.forward(Batch.of_sequence(list(range(100))), backend.new_cache(1, 128))
