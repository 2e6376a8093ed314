"""Models written as GGUF files: the gguf package and our reader find the same numbers, keys and tokens in them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.foreign import write_huggingface
from helpers.gguf_files import gguf_name, llama3_divisors
from helpers.tiny import GQA, TIED, random_weights
from helpers.tiny_llama import CHATML, CONFIG, write_tiny
from helpers.tiny_tokenizers import bpe_spec, sentencepiece_spec

import pyllama2
from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.gguf_tokenizer import IGNORES_MERGES, NORMALIZES, PRE_TOKENIZERS
from pyllama2.cli.program import main
from pyllama2.config import RopeScaling
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer
from pyllama2.tokenizer.bpe_parts import parse_bpe
from pyllama2.tokenizer.pre_tokenizer import byte_level, split

TYPES = {"float32": "F32", "float16": "F16", "q8": "Q8_0"}
TEXTS = ["Once upon a time", "  two spaces", "naïve 12345 <0x41> \n\tend", "a fox who lived in the forest"]


def numbers(tensor: gguf.gguf_reader.ReaderTensor) -> Any:
    shape = tuple(int(n) for n in tensor.shape[::-1])
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("config", [GQA, replace(TIED, rope_scaling=None), CONFIG], ids=["gqa", "tied", "wide"])
def test_numbers(tmp_path: Path, config: Any, dtype: str) -> None:
    weights = random_weights(config)
    source = write_huggingface(tmp_path / "m", config, weights)
    pyllama2.export(source, tmp_path / "m.gguf", format="gguf", dtype=dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert set(tensors) == {gguf_name(name) for name in weights}
    for name, array in weights.items():
        tensor = tensors[gguf_name(name)]
        kind = "F32" if array.ndim == 1 else TYPES[dtype]
        if kind == "Q8_0" and array.shape[-1] % 32:
            kind = "F16"
        assert tensor.tensor_type.name == kind
        if kind == "Q8_0":
            quantized = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            expected = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType.Q8_0)
        else:
            expected = array.astype(np.float16 if kind == "F16" else np.float32).astype(np.float32)
        assert np.array_equal(numbers(tensor), expected), name
    with closing(open_checkpoint(tmp_path / "m.gguf")) as written:
        assert written.config == config


def test_q8_of_our_files_stays_the_same(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.bin")
    pyllama2.quantize(path, tmp_path / "q8.bin", "q8", group_size=32)
    pyllama2.export(tmp_path / "q8.bin", tmp_path / "q8.gguf", format="gguf", dtype="q8")
    with (
        closing(open_checkpoint(tmp_path / "q8.bin")) as before,
        closing(open_checkpoint(tmp_path / "q8.gguf")) as after,
    ):
        for name in before.config.tensor_shapes():
            assert np.array_equal(before.tensor(name).read(), after.tensor(name).read()), name


@pytest.mark.parametrize("spec", [sentencepiece_spec(), bpe_spec()], ids=["sentencepiece", "bpe"])
def test_tokens_and_template(tmp_path: Path, spec: Any) -> None:
    path = write_tiny(tmp_path / "m.bin", spec=spec, template=CHATML, vocab_size=400)
    pyllama2.export(path, tmp_path / "m.gguf", format="gguf")
    with closing(open_checkpoint(path)) as before, closing(open_checkpoint(tmp_path / "m.gguf")) as after:
        assert before.tokenizer is not None and after.tokenizer is not None
        for name in ("kind", "bos_id", "eos_ids", "add_bos"):
            assert getattr(after.tokenizer, name) == getattr(before.tokenizer, name)
        assert after.chat_template == CHATML
        ours, theirs = (load_tokenizer(c.tokenizer, 400) for c in (before, after) if c.tokenizer)
        assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
        assert ours.special_tokens == {k: v for k, v in theirs.special_tokens.items() if not k.startswith("[PAD")}


def test_three_tokens_end_a_text(tmp_path: Path) -> None:
    """As in Llama 3.1: <|end_of_text|>, <|eom_id|> and <|eot_id|>."""
    path = write_tiny(tmp_path / "m.bin", spec=bpe_spec(eos_ids=(1, 3, 2)))
    pyllama2.export(path, tmp_path / "m.gguf", format="gguf")
    with closing(open_checkpoint(tmp_path / "m.gguf")) as written:
        assert written.tokenizer is not None and written.tokenizer.eos_ids == (1, 3, 2)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    keys = (gguf.Keys.Tokenizer.EOS_ID, gguf.Keys.Tokenizer.EOT_ID, gguf.Keys.Tokenizer.EOM_ID)
    assert [int(fields[key].parts[fields[key].data[0]][0]) for key in keys] == [1, 3, 2]
    path = write_tiny(tmp_path / "m.bin", spec=bpe_spec(eos_ids=(1, 2, 3, 4)))
    with pytest.raises(CheckpointError, match="4 tokens end a text, but GGUF has keys for 3: eos, eot, eom"):
        pyllama2.export(path, tmp_path / "m.gguf", format="gguf")


@pytest.mark.parametrize("pre", [name for name in PRE_TOKENIZERS if name != "default"])
def test_the_names_of_pre_tokenizers(tmp_path: Path, pre: str) -> None:
    values = json.loads(bpe_spec().data)
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]}
    values["model"]["ignore_merges"] = pre in IGNORES_MERGES
    if pre in NORMALIZES:
        values["normalizer"] = {"type": "NFC"}
    spec = replace(bpe_spec(), data=json.dumps(values).encode())
    pyllama2.export(write_tiny(tmp_path / "m.bin", spec=spec), tmp_path / "m.gguf", format="gguf")
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"]
    assert bytes(field.parts[field.data[0]]).decode() == pre
    with closing(open_checkpoint(tmp_path / "m.gguf")) as written:
        assert written.tokenizer is not None
        read, expected = parse_bpe(written.tokenizer.data), parse_bpe(spec.data)
        assert (read.steps, read.nfc, read.ignore_merges) == (expected.steps, expected.nfc, expected.ignore_merges)


def test_a_tokenizer_that_gguf_cannot_express(tmp_path: Path) -> None:
    values = json.loads(bpe_spec().data)
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split("minicpm5"), byte_level(use_regex=False)]}
    path = write_tiny(tmp_path / "m.bin", spec=replace(bpe_spec(), data=json.dumps(values).encode()))
    with pytest.raises(CheckpointError, match=r"have no name in GGUF \(gpt-2, smollm, llama-bpe, qwen2, .* do\)"):
        pyllama2.export(path, tmp_path / "m.gguf", format="gguf")
    values["pre_tokenizer"]["pretokenizers"][0] = split("llama-bpe")
    values["normalizer"] = {"type": "NFC"}
    path = write_tiny(tmp_path / "m.bin", spec=replace(bpe_spec(), data=json.dumps(values).encode()))
    with pytest.raises(CheckpointError, match="cuts or normalizes"):
        pyllama2.export(path, tmp_path / "m.gguf", format="gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        RopeScaling("llama3", 8.0, 1.0, 4.0, 256),
        RopeScaling("llama3", 3.0, 0.5, 8.0, 1024),
    ],
)
def test_rope_scaling(tmp_path: Path, scaling: RopeScaling) -> None:
    config = replace(GQA, rope_scaling=scaling, rope_theta=500000.0)
    pyllama2.export(
        write_huggingface(tmp_path / "m", config, random_weights(config)), tmp_path / "m.gguf", format="gguf"
    )
    with closing(open_checkpoint(tmp_path / "m.gguf")) as written:
        assert written.config == config
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    if scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192):
        fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
        assert not [name for name in fields if "rope.scaling" in name]  # as llama.cpp's converter has it
        expected = llama3_divisors(config.head_dim, 500000.0, 8.0)
        assert np.allclose(tensors["rope_freqs.weight"].data, expected, rtol=1e-5)
    else:
        assert ("rope_freqs.weight" in tensors) == (scaling.kind == "llama3")


@pytest.mark.slow
def test_bounds_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny(tmp_path / "m.bin", None)
    for wrong in ({"format": "onnx"}, {"format": "gguf", "dtype": "q4"}, {"dtype": "q8"}):
        with pytest.raises(ValueError, match="must be"):
            pyllama2.export(source, tmp_path / "x", **wrong)
    with pytest.raises(ValueError, match="is a file of the model to be read"):
        pyllama2.export(source, source, format="gguf")
    large = random_weights(CONFIG) | {"norm.weight": np.ones(CONFIG.dim, np.float32)}
    large["layers.1.feed_forward.w2.weight"][0, 0] = 1e6
    path = write_tiny(tmp_path / "large.bin", weights=large)
    with pytest.raises(CheckpointError, match=r"layers\.1\.feed_forward\.w2\.weight: the weight 1e\+06"):
        pyllama2.export(path, tmp_path / "x.gguf", format="gguf", dtype="float16")
    large["layers.1.feed_forward.w2.weight"][0, 0] = -9e6  # 9e6 / 127 is above the largest float16
    with pytest.raises(CheckpointError, match=r"w2\.weight: the number -9e\+06 does not fit into Q8_0"):
        pyllama2.export(write_tiny(path, weights=large), tmp_path / "x.gguf", format="gguf", dtype="q8")
    large["layers.1.feed_forward.w2.weight"][0, 0] = 8.3e6
    pyllama2.export(write_tiny(path, weights=large), tmp_path / "x.gguf", format="gguf", dtype="q8")
    (tmp_path / "x.gguf").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {"m.bin", "large.bin"}
    assert main(["export", str(source), "-o", str(tmp_path / "m.gguf"), "--format", "gguf", "--dtype", "q8"]) == 0
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 0 and "Q8_0" in capsys.readouterr().out


@pytest.mark.slow
def test_smollm2(tmp_path: Path, smollm2_path: Path) -> None:
    """A real file of 4 bits becomes one of 8 bits with the same tokens."""
    pyllama2.export(smollm2_path, tmp_path / "m.gguf", format="gguf", dtype="q8")
    with closing(open_checkpoint(smollm2_path)) as before, closing(open_checkpoint(tmp_path / "m.gguf")) as after:
        assert before.config == after.config and before.chat_template == after.chat_template
        assert before.tokenizer is not None and after.tokenizer is not None
        for text in TEXTS:
            ids = [load_tokenizer(spec).encode(text) for spec in (before.tokenizer, after.tokenizer)]
            assert ids[0] == ids[1]
        name = "layers.0.attention.wq.weight"
        blocks = [checkpoint.tensor(name).read().reshape(-1, 32) for checkpoint in (before, after)]
        step = np.abs(blocks[0]).max(-1, keepdims=True) / 127
        assert (np.abs(blocks[1] - blocks[0]) <= 0.51 * step + 1e-3 * np.abs(blocks[0])).all()
