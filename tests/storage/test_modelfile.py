"""Our file: what is written is read, safetensors readers open it, and nothing damaged gets through."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import CONFIGS, GQA, MHA, float_model, quantized_model, random_weights, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pyllama2.config import ModelConfig
from pyllama2.errors import CheckpointError
from pyllama2.storage.model_file import ALIGNMENT, ModelWriter, StoredModel
from pyllama2.tokenizer.base import TokenizerSpec

SPEC = TokenizerSpec("bpe", b"{} not read here", None, (2, 5), False)


def tiny_file(path: Path, config: ModelConfig = GQA, kind: str = "float32") -> Path:
    weights = random_weights(config)
    model = float_model(config, weights) if kind == "float32" else quantized_model(config, weights, kind, 32)
    model.tokenizer = SPEC
    model.chat_template = "{{ messages }} é 🦙"
    model.source = "a test"
    return write_model(path, model)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("kind", ["float32", "float16", "q8", "q4"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip(tmp_path: Path, config: ModelConfig, kind: str) -> None:
    model = quantized_model(config, random_weights(config), kind, 32)
    model.tokenizer, model.chat_template, model.source = SPEC, "{{ x }} é 🦙", "somewhere"
    read = StoredModel.open(write_model(tmp_path / "m.bin", model))
    assert (read.config, read.quantization, read.tokenizer) == (model.config, model.quantization, SPEC)
    assert (read.chat_template, read.source) == ("{{ x }} é 🦙", "somewhere")
    assert list(read.weights) == list(config.tensor_shapes())
    for name, weight in model.weights.items():
        again = read.weights[name]
        assert (again.type, again.shape, again.group_size) == (weight.type, weight.shape, weight.group_size)
        assert np.array_equal(again.data, weight.data)
        assert (again.scales is None) == (weight.scales is None)
        if weight.scales is not None:
            assert np.array_equal(again.scales, weight.scales)


@pytest.mark.parametrize("kind", ["float32", "float16", "q8", "q4"])
def test_the_safetensors_package_opens_it(tmp_path: Path, kind: str) -> None:
    path = tiny_file(tmp_path / "m.bin", MHA, kind)
    model = StoredModel.open(path)
    with safe_open(path, framework="np") as file:
        assert file.metadata()["format"] == "pyllama2"
        for name, weight in model.weights.items():
            assert np.array_equal(file.get_tensor(name), weight.data)
        assert file.get_tensor("tokenizer").tobytes() == SPEC.data


def test_every_tensor_is_aligned_and_used_in_place(tmp_path: Path) -> None:
    path = tiny_file(tmp_path / "m.bin", MHA, "q4")  # 172 inputs: sizes that are no multiple of 64
    data = path.read_bytes()
    header, _ = split(data)
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert start % ALIGNMENT == 0
    for name, entry in header.items():
        if not name.startswith(("__", "padding.")):
            assert (start + entry["data_offsets"][0]) % ALIGNMENT == 0, name
    for weight in StoredModel.open(path).weights.values():
        assert weight.data.ctypes.data % ALIGNMENT == 0
        assert not weight.data.flags.owndata and not weight.data.flags.writeable


class TestWriter:
    def test_a_failed_block_leaves_nothing(self, tmp_path: Path) -> None:
        target = tmp_path / "m.bin"
        target.write_bytes(b"precious")
        model = float_model(GQA, random_weights(GQA))
        with pytest.raises(KeyboardInterrupt), ModelWriter(target, model) as writer:
            writer.write(model.weights["tok_embeddings.weight"])
            raise KeyboardInterrupt
        assert target.read_bytes() == b"precious"
        assert os.listdir(tmp_path) == ["m.bin"]

    def test_missing_tensors_are_noticed(self, tmp_path: Path) -> None:
        model = float_model(GQA, random_weights(GQA))
        with pytest.raises(ValueError, match="attention_norm"), ModelWriter(tmp_path / "m.bin", model) as writer:
            writer.write(model.weights["tok_embeddings.weight"])
        assert os.listdir(tmp_path) == []

    def test_wrong_order_shape_and_dtype(self, tmp_path: Path) -> None:
        model = float_model(GQA, random_weights(GQA))
        first = model.weights["tok_embeddings.weight"]
        for wrong in (
            model.weights["norm.weight"],
            type(first)(first.name, "float32", first.shape, first.data.astype(np.float64)),
            type(first)(first.name, "float32", first.shape, first.data[:-1]),
        ):
            with pytest.raises(ValueError), ModelWriter(tmp_path / "m.bin", model) as writer:
                writer.write(wrong)
        assert os.listdir(tmp_path) == []

    def test_unwritable_places(self, tmp_path: Path) -> None:
        model = float_model(GQA, random_weights(GQA))
        for path in (tmp_path, tmp_path / "missing" / "m.bin", tmp_path / "file" / "m.bin"):
            (tmp_path / "file").touch()
            with pytest.raises(CheckpointError), ModelWriter(path, model):
                pass

    def test_a_disk_that_takes_no_more_is_one_sentence(self, tmp_path: Path) -> None:
        model = float_model(GQA, random_weights(GQA))
        path = tmp_path / "m.bin"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file may grow beyond
        try:
            with (
                pytest.raises(CheckpointError, match=r"cannot write .*m\.bin: "),
                ModelWriter(path, model) as writer,
            ):
                for weight in model.weights.values():
                    writer.write(weight)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A damage that edits the parsed header."""

    def damage(data: bytes) -> bytes:
        header, body = split(data)
        change(header)
        return join(header, body)

    return damage


def with_metadata(name: str, value: object) -> Callable[[bytes], bytes]:
    return edited(lambda h: h["__metadata__"].__setitem__(name, value))


def with_config(**changes: object) -> Callable[[bytes], bytes]:
    def change(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["config"])
        config.update(changes)
        header["__metadata__"]["config"] = json.dumps(config)

    return edited(change)


WQ = "layers.0.attention.wq.weight"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda d: b"",
    "html": lambda d: b"<!DOCTYPE html><html><body>Not found</body></html>" * 10,
    "no header": lambda d: b"\0" * 8,
    "header length 2^63": lambda d: struct.pack("<Q", 1 << 63) + d[8:],
    "header length above the limit": lambda d: struct.pack("<Q", 100_000_001) + d[8:],
    "header beyond the file": lambda d: struct.pack("<Q", len(d)) + d[8:],
    "header is a list": lambda d: join("[]", b""),
    "header is not UTF-8": lambda d: d[:20] + b"\xff\xfe" + d[22:],
    "deeply nested": lambda d: join('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", b""),
    "a million values": lambda d: join('{"a":[' + "0," * 1_000_000 + "0]}", b""),
    "duplicate key": lambda d: join('{"a":1,"a":2}', b""),
    "NaN": lambda d: join('{"a":NaN}', b""),
    "huge number": lambda d: join('{"a":' + "9" * 5000 + "}", b""),
    "extra bytes at the end": lambda d: d + b"\0" * 64,
    "not our format": with_metadata("format", "pt"),
    "a newer version": with_metadata("version", "2"),
    "metadata not strings": with_metadata("config", 7),
    "config missing": edited(lambda h: h["__metadata__"].pop("config")),
    "config not JSON": with_metadata("config", "{"),
    "config nested": with_metadata("config", "[" * 100_000),
    "quantization list": with_metadata("quantization", "[1]"),
    "quantization unknown": with_metadata("quantization", '{"type":"q3","output_type":"q3","group_size":0}'),
    "group size": with_metadata("quantization", '{"type":"q8","output_type":"q8","group_size":7}'),
    "tokenizer kind": with_metadata("tokenizer", '{"kind":"?","bos_id":1,"eos_ids":[2],"add_bos":true}'),
    "tokenizer ids": with_metadata("tokenizer", '{"kind":"bpe","bos_id":-1,"eos_ids":[2],"add_bos":true}'),
    "tokenizer tensor missing": edited(lambda h: h.__setitem__("renamed", h.pop("tokenizer"))),
    "dim": with_config(dim=64),
    "dim huge": with_config(dim=1 << 20),
    "dim overflows": with_config(dim=1 << 62),
    "layers": with_config(n_layers=3),
    "layers huge": with_config(n_layers=4096),
    "heads": with_config(n_heads=5),
    "tied": with_config(tied_embeddings=True),
    "tensor missing": edited(lambda h: h.__setitem__("x", h.pop(WQ))),
    "tensor dtype unknown": edited(lambda h: h[WQ].__setitem__("dtype", "F31")),
    "tensor dtype other": edited(lambda h: h[WQ].__setitem__("dtype", "I32")),
    "tensor transposed": edited(lambda h: h["layers.0.attention.wk.weight"]["shape"].reverse()),
    "shape overflows": edited(lambda h: h[WQ].__setitem__("shape", [1 << 40, 1 << 40])),
    "shape negative": edited(lambda h: h[WQ].__setitem__("shape", [-48, -48])),
    "shape boolean": edited(lambda h: h[WQ].__setitem__("shape", [True, 2304])),
    "offsets reversed": edited(lambda h: h[WQ]["data_offsets"].reverse()),
    "offsets beyond": edited(lambda h: h[WQ].__setitem__("data_offsets", [1 << 40, (1 << 40) + 48 * 48 * 4])),
    "offsets three": edited(lambda h: h[WQ]["data_offsets"].append(0)),
    "extra field": edited(lambda h: h[WQ].__setitem__("note", "x")),
    "entry not an object": edited(lambda h: h.__setitem__(WQ, 3)),
    "two tensors overlap": edited(
        lambda h: h[WQ].__setitem__("data_offsets", h["layers.1.attention.wq.weight"]["data_offsets"])
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tiny_file(tmp_path / "m.bin")
    broken = damage(path.read_bytes())
    assert broken != path.read_bytes()
    path.write_bytes(broken)
    with pytest.raises(CheckpointError) as caught:
        StoredModel.open(path)
    assert "m.bin" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_unaligned_tensors_are_refused(tmp_path: Path) -> None:
    path = tiny_file(tmp_path / "m.bin")
    header, body = split(path.read_bytes())
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT + 4)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    with pytest.raises(CheckpointError, match="aligned"):
        StoredModel.open(path)


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none", Path("/dev/null"), "a\0b"):
        with pytest.raises(CheckpointError):
            StoredModel.open(path)


def opens_or_refuses(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        StoredModel.open(path)
    except CheckpointError:
        return False
    return True


@pytest.mark.slow
def test_truncation_at_every_byte(tmp_path: Path) -> None:
    data = tiny_file(tmp_path / "m.bin").read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    cuts = [*range(1, header_end + 65), *range(header_end + 65, len(data), 997), len(data) - 1]
    assert not any(opens_or_refuses(tmp_path / "cut.bin", data[:cut]) for cut in cuts)


@pytest.mark.slow
def test_flips_in_the_header(tmp_path: Path) -> None:
    data = bytearray(tiny_file(tmp_path / "m.bin").read_bytes())
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    refused = 0
    for i in range(header_end):
        flipped = bytearray(data)
        flipped[i] ^= 1 << (i % 7)
        refused += not opens_or_refuses(tmp_path / "flip.bin", flipped)
    assert refused > header_end // 2  # the rest are flips inside free text and blanks


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_headers_never_escape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=10,
    )
    entry = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "U8", "X"]) | values, "shape": values,
                                   "data_offsets": values})  # fmt: skip
    header = data.draw(st.dictionaries(st.text(max_size=8), entry | values, max_size=4))
    header["__metadata__"] = data.draw(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | values, max_size=4))
    path = tmp_path_factory.mktemp("fuzz") / "m.bin"
    assert not opens_or_refuses(path, join(json.dumps(header), data.draw(st.binary(max_size=64))))
