"""The tables that benchmarks/how_close.py prints, and what they are made of."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import how_close
import make_quantization_docs
import numpy as np
import pytest
from helpers.tiny_llama import write_tiny
from layer_errors import layer_errors
from llama_cpp_quantizer import input_mean_squares
from ways_to_quantize import IN_MEMORY, OWN_TEXT, PLAIN, bits_of_layers

import pyllama2
from pyllama2.storage.model_file import StoredModel

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_of_what_the_plain_search_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, q4, q8, text = (tmp_path / name for name in ("source.bin", "q4.bin", "q8.bin", "text.txt"))
    write_tiny(source)
    pyllama2.quantize(source, q4, "q4", calibrate=False)
    pyllama2.quantize(source, q8, "q8")
    text.write_text("a little fox who lived in the forest\n\n\nThe capital of France is a city")
    command = ["how_close.py", "--model", str(source), "--text", str(text), "--files", str(q4), str(q8)]
    monkeypatch.setattr(sys, "argv", command)
    how_close.main()
    line = re.compile(r"^\| (.+?) \| ([\d.]+) ± [\d.]+ \| [\d.]+% \| ([\d.]+) \|$", re.MULTILINE)
    rows = line.findall(capsys.readouterr().out)
    assert [name.split(",")[0] for name, _, _ in rows] == [
        PLAIN, IN_MEMORY.split(",")[0], "q4.bin", "q8.bin",
    ]  # fmt: skip
    losses, shares = ([float(row[i]) for row in rows] for i in (1, 2))
    assert losses[1] == losses[2] and losses[3] < 0.05 * losses[0]
    assert shares == pytest.approx([loss / losses[0] for loss in losses], abs=0.006)


def test_all_ways_to_quantize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, text, prose, figures = (tmp_path / name for name in ("source.bin", "text.txt", "prose.txt", "figures.json"))
    write_tiny(source, max_seq_len=32, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=128)
    text.write_text("The old house at the end of the street has a door, a roof and a garden. " * 20)
    prose.write_text("a little fox who lived in the forest\n\n\nThe capital of France is a city")
    command = ["how_close.py", "--model", str(source), "--text", str(prose), "--calibrate", str(text)]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(figures)])
    how_close.main()
    printed = capsys.readouterr().out
    models = json.loads(figures.read_text())["models"]
    assert list(models) == [str(source), "twin"]
    for rows in models.values():
        ours = {row["name"]: row for row in rows if not row["name"].startswith("llama.cpp")}
        assert len(ours) == 7 and all(f"| {name} | {row['bits']:.2f} |" in printed for name, row in ours.items())
        assert ours[PLAIN]["bits"] == pytest.approx(ours[IN_MEMORY]["bits"]) and ours["q8"]["bits"] > 8
        assert ours["q8"]["kl"] < 0.1 * ours[PLAIN]["kl"]
        assert all(error > 0 for error in ours[PLAIN]["layer_errors"])
    docs = tmp_path / "docs"
    docs.mkdir()
    figures.rename(docs / "how_close.json")
    (docs / "quantization.md").write_text("Before.\n\n<!-- made: ways -->\n\n?\n\n<!-- end -->\n\nAfter.\n")
    monkeypatch.setattr(make_quantization_docs, "DOCS", docs)
    make_quantization_docs.main()
    page = (docs / "quantization.md").read_text()
    assert page.startswith("Before.") and page.endswith("After.\n") and page.count(f"| {PLAIN} | ") == 2
    assert "q4, own text" in (docs / "quantization-bits.svg").read_text()
    assert "share of the stream" in (docs / "quantization-layers.svg").read_text()


def test_bits_are_those_of_the_layers_matrices(tmp_path: Path) -> None:
    """Of float32 they are 32; of q8 in groups of 64 they are 8, and 16 bits of scale for 64 weights."""
    source, q8, gguf = (tmp_path / name for name in ("source.bin", "q8.bin", "model.gguf"))
    write_tiny(source, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=128)
    pyllama2.quantize(source, q8, "q8")
    pyllama2.export(source, gguf, format="gguf", dtype="q8")
    assert bits_of_layers(source) == 32
    assert bits_of_layers(q8) == 8.25
    assert bits_of_layers(gguf) == 8.5  # groups of 32


def test_errors_of_layers_are_those_of_their_weights(tmp_path: Path) -> None:
    source, q8, q4 = (tmp_path / name for name in ("source.bin", "q8.bin", "q4.bin"))
    write_tiny(source)
    pyllama2.quantize(source, q8, "q8")
    pyllama2.quantize(source, q4, "q4", calibrate=False)
    texts = [[1, 5, 9, 30, 7], [1, 40, 41]]
    same, small, large = (layer_errors(source, path, texts) for path in (source, q8, q4))
    assert same == [0.0] * len(same)
    assert all(0 < b < 0.05 * c for b, c in zip(small, large, strict=True))


def test_importance_is_the_mean_square_of_each_input(tmp_path: Path) -> None:
    """The inputs of the first wq are the embeddings after a norm, which can be computed by hand."""
    source = tmp_path / "source.bin"
    write_tiny(source)
    windows = np.array([[1, 5, 9], [1, 7, 3]], np.int32)
    found = input_mean_squares(source, windows)
    weights = StoredModel.open(source).weights
    x = weights["tok_embeddings.weight"].dequantize()[windows.reshape(-1)]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + StoredModel.open(source).config.norm_eps)
    x = x * weights["layers.0.attention_norm.weight"].dequantize()
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], (x**2).mean(axis=0), rtol=1e-4)
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    assert {name.split(".", 2)[2] for name in found} == {
        "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight",
        "ffn_down.weight",
    }  # fmt: skip


def test_the_page_has_the_tables_of_the_figures() -> None:
    docs = Path(make_quantization_docs.DOCS)
    page = (docs / "quantization.md").read_text()
    models = json.loads((docs / "how_close.json").read_text())["models"]
    assert list(models) == ["smollm2", "twin"]
    assert make_quantization_docs.with_tables(page, models) == page


def test_the_readme_has_the_figures_of_the_page() -> None:
    docs = Path(make_quantization_docs.DOCS)
    readme = (docs.parent / "README.md").read_text()
    rows = {row["name"]: row for row in json.loads((docs / "how_close.json").read_text())["models"]["smollm2"]}
    for name in (OWN_TEXT, "llama.cpp Q4_0", "llama.cpp IQ4_NL imatrix"):
        [told] = re.findall(rf"^\| {re.escape(name)}[^|]* \| ([\d.]+) \| ([\d.]+)% \|$", readme, re.MULTILINE)
        assert float(told[0]) == pytest.approx(rows[name]["kl"], rel=0.05), name
        assert float(told[1]) == pytest.approx(100 * rows[name]["top_1"], abs=0.06), name
