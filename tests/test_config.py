from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from helpers.tiny import CONFIGS, GQA, TIED

from pyllama2.config import ModelConfig, RopeScaling

LLAMA2_7B = ModelConfig(4096, 11008, 32, 32, 32, 128, 32000, 4096)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config


def test_llama2_7b_has_its_parameters() -> None:
    assert LLAMA2_7B.n_parameters == 6_738_415_616
    assert LLAMA2_7B.tensor_shapes()["layers.31.feed_forward.w2.weight"] == (4096, 11008)


def test_tied_model_has_no_output_matrix() -> None:
    assert "output.weight" not in TIED.tensor_shapes()
    assert "output.weight" in replace(TIED, tied_embeddings=False).tensor_shapes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0), ("dim", -4), ("dim", 1 << 40), ("dim", 2.0), ("dim", True), ("dim", "64"), ("dim", None),
        ("n_layers", 0), ("n_layers", 10**9), ("n_heads", 7), ("n_kv_heads", 0), ("n_kv_heads", 4), ("head_dim", 9),
        ("head_dim", 0), ("vocab_size", 0), ("max_seq_len", 0), ("hidden_dim", 0), ("norm_eps", -1e-5),
        ("norm_eps", math.nan), ("norm_eps", math.inf), ("rope_theta", 0.0), ("rope_theta", "1e4"),
        ("tied_embeddings", 1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field if field not in ("n_heads",) else "n_heads"):
        replace(GQA, **{field: value})


def test_heads_too_wide_together() -> None:
    with pytest.raises(ValueError, match="too large"):
        replace(GQA, n_heads=1 << 19, n_kv_heads=1, head_dim=1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("dim"), "lacks dim"),
        (lambda c: c.update(extra=1), "no field 'extra'"),
        (lambda c: c.update(rope_scaling={"kind": "longrope", "factor": 2.0}), "longrope"),
        (lambda c: c.update(rope_scaling={"kind": "yarn", "factor": 2.0, "beta_fast": 0.5}), "beta_fast"),
        (lambda c: c.update(rope_scaling={"kind": "yarn", "factor": 2.0}, rope_theta=1.0), "rope_theta"),
        (lambda c: c.update(qkv_bias=1), "qkv_bias"),
        (lambda c: c.update(wo_bias=True), "qkv_bias"),
        (lambda c: c.update(rope_scaling=[]), "object"),
        (lambda c: c.update(rope_scaling={"kind": "linear"}), "lacks factor"),
    ],
)
def test_bad_json(change: object, message: str) -> None:
    values = json.loads(GQA.to_json())
    change(values)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_json(json.dumps(values))


def test_rope_frequencies() -> None:
    plain = LLAMA2_7B.rope_frequencies()
    assert len(plain) == 64
    assert plain[0] == 1.0
    assert plain[32] == pytest.approx(0.01)  # 10000 ** -0.5
    linear = replace(LLAMA2_7B, rope_scaling=RopeScaling("linear", 4.0)).rope_frequencies()
    assert linear == pytest.approx([f / 4 for f in plain])


def test_llama3_scaling_keeps_high_and_divides_low_frequencies() -> None:
    config = replace(LLAMA2_7B, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    plain = replace(config, rope_scaling=None).rope_frequencies()
    scaled = config.rope_frequencies()
    for before, after in zip(plain, scaled, strict=True):
        turns = 8192 * before / (2 * math.pi)
        if turns > 4:
            assert after == before
        elif turns < 1:
            assert after == before / 8
        else:
            assert before / 8 < after < before
    assert scaled == sorted(scaled, reverse=True)


def test_llama3_scaling_bounds() -> None:
    with pytest.raises(ValueError, match="high_freq_factor"):
        RopeScaling("llama3", 8.0, 4.0, 4.0)
