"""Makes a model of random weights in the shape of a real one, for measurements and tests of large models.

    python scripts/random_models/make_random_model.py 7b /data/random-7b --format meta --shards 2
    python scripts/random_models/make_random_model.py 1.1b /data/random-1b.bin --format native --dtype q4 --layers 4
    python scripts/random_models/make_random_model.py 1.1b /data/random-1b.gguf --format gguf --type q4_0

The formats:

    meta       a directory with consolidated.NN.pth, float16, and tokenizer.model
    hf         a directory with model.safetensors, float16
    llama2c    a version 0 file, float32
    native     our own file
    gguf       a GGUF file, with all matrices of one type (random_gguf.py)

A shape and a seed give the same model in each format, before quantization. meta and gguf have a tokenizer of made-up
words (random_tokenizer.py). One tensor is in memory at a time. All tensors repeat one block of random numbers, each
from another place on, so writing is as fast as the disk. Activations stay near 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from random_tokenizer import sentencepiece_model
from random_weights import RandomWeights

from pyllama2._cpu import quantize_matrix
from pyllama2.checkpoint.huggingface import NAMES
from pyllama2.config import ModelConfig
from pyllama2.storage.model_file import ModelWriter, StoredModel
from pyllama2.storage.weights import Quantization, Weight

# The config, and what params.json says about hidden_dim.
SHAPES: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "tiny": (ModelConfig(64, 192, 2, 4, 2, 16, 512, 256), {"multiple_of": 64}),
    "1.1b": (ModelConfig(2048, 5632, 22, 32, 4, 64, 32000, 2048), {"multiple_of": 256}),
    "7b": (ModelConfig(4096, 11008, 32, 32, 32, 128, 32000, 4096), {"multiple_of": 256}),
    "13b": (ModelConfig(5120, 13824, 40, 40, 40, 128, 32000, 4096), {"multiple_of": 256}),
    "70b": (ModelConfig(8192, 28672, 80, 64, 8, 128, 32000, 4096), {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),
}
_JOINED_ON_COLUMNS = ("tok_embeddings.weight", "attention.wo.weight", "feed_forward.w2.weight")


def write_meta(folder: str, config: ModelConfig, weights: RandomWeights, extra: dict[str, Any], n_shards: int) -> None:
    """Write params.json, tokenizer.model and consolidated.NN.pth. torch.load(weights_only=True) can read the latter."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
        file.write(sentencepiece_model(config.vocab_size))
    params = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads}
    params |= {"n_kv_heads": config.n_kv_heads, "vocab_size": -1, "norm_eps": config.norm_eps} | extra
    _write_json(os.path.join(folder, "params.json"), params)
    axes = {name: _shard_axis(name, shape) for name, shape in weights.shapes.items()}
    pieces = {name: _piece_shape(name, shape, axes[name], n_shards) for name, shape in weights.shapes.items()}
    with ExitStack() as stack:
        files = []
        for i in range(n_shards):
            path = os.path.join(folder, f"consolidated.{i:02}.pth")
            files.append(stack.enter_context(zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)))
            _add_member(files[-1], "consolidated/data.pkl", state_dict_pickle(pieces))
        for key, name in enumerate(weights.shapes):
            axis, tensor = axes[name], weights[name]
            parts = [tensor] * n_shards if axis is None else np.split(tensor, n_shards, axis)
            for file, part in zip(files, parts, strict=True):
                _add_member(file, f"consolidated/data/{key}", memoryview(np.ascontiguousarray(part)).cast("B"))
        for file in files:
            _add_member(file, "consolidated/version", b"3\n")


def _shard_axis(name: str, shape: tuple[int, ...]) -> int | None:
    return None if len(shape) == 1 else 1 if name.endswith(_JOINED_ON_COLUMNS) else 0


def _piece_shape(name: str, shape: tuple[int, ...], axis: int | None, n_shards: int) -> tuple[int, ...]:
    if axis is None:
        return shape
    if shape[axis] % n_shards:
        raise SystemExit(f"{name} of shape {shape} cannot be cut into {n_shards} shards")
    return tuple(size // n_shards if i == axis else size for i, size in enumerate(shape))


def _add_member(file: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Add a stored member whose data starts at a multiple of 64 bytes, as torch does."""
    info = zipfile.ZipInfo(name)
    wide = len(data) >= 1 << 31
    header = 30 + len(name) + (20 if wide else 0) + 4  # 20: the zip64 sizes; 4: the head of the filler
    filler = -(file.start_dir + header) % 64
    info.extra = b"FB" + struct.pack("<H", filler) + bytes(filler)
    with file.open(info, "w", force_zip64=wide) as member:
        member.write(data)


def state_dict_pickle(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Make the pickle that torch.save writes for float16 tensors: {name: tensor of storage 0, 1, ...}."""
    parts = [b"\x80\x02}("]  # protocol 2, a dict, a mark for its items
    for key, (name, shape) in enumerate(shapes.items()):
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", b"("]
        parts += [b"(", _text("storage"), b"ctorch\nHalfStorage\n", _text(str(key)), _text("cpu")]
        parts += [_integer(math.prod(shape)), b"tQ"]  # a tuple, and what it stands for
        parts += [_integer(0), b"(", *map(_integer, shape), b"t(", *map(_integer, strides), b"t"]
        parts += [b"\x89", b"ccollections\nOrderedDict\n)R", b"tR"]  # requires_grad, hooks; call
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def write_hf(folder: str, config: ModelConfig, weights: RandomWeights) -> None:
    """Write config.json and model.safetensors. Rows of wq and wk are permuted for rotation by halves."""
    os.makedirs(folder, exist_ok=True)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    _write_json(os.path.join(folder, "config.json"), values)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in weights.shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[NAMES.of(name)] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in weights.shapes:
            n_heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2], 0)
            _write_array(file, permuted(weights[name], n_heads) if n_heads else weights[name])


def permuted(matrix: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Reorder rows (head, pair, half) to (head, half, pair)."""
    return matrix.reshape(n_heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def write_llama2c(path: str, config: ModelConfig, weights: RandomWeights) -> None:
    """Write a version 0 file: header, float32 tensors by kind, rotations before the output matrix."""
    numbers = (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads)
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", *numbers, -config.vocab_size, config.max_seq_len))
        for name in _llama2c_order(config):
            _write_array(file, weights[name].astype(np.float32))
        angles = np.outer(np.arange(config.max_seq_len), config.rope_frequencies())
        _write_array(file, np.cos(angles).astype(np.float32))
        _write_array(file, np.sin(angles).astype(np.float32))
        _write_array(file, weights["output.weight"].astype(np.float32))


def _llama2c_order(config: ModelConfig) -> Iterator[str]:
    kinds = ["attention_norm", *(f"attention.{w}" for w in ("wq", "wk", "wv", "wo"))]
    kinds += ["ffn_norm", *(f"feed_forward.{w}" for w in ("w1", "w2", "w3"))]
    yield "tok_embeddings.weight"
    yield from (f"layers.{i}.{kind}.weight" for kind in kinds for i in range(config.n_layers))
    yield "norm.weight"


def write_native(path: str, config: ModelConfig, weights: RandomWeights, dtype: str) -> None:
    """Write our own file of dtype float32, float16, q8 or q4, as export and quantize do."""
    quantization = Quantization.of(dtype)
    with ModelWriter(path, StoredModel(config, quantization, source="random weights")) as writer:
        for name, shape in weights.shapes.items():
            type = quantization.type_of(name, config)
            if type in ("q8", "q4"):
                codes, scales = quantize_matrix(weights[name], type, quantization.group_size)
                writer.write(Weight(name, type, shape, codes, scales, quantization.group_size))
            else:
                writer.write(Weight(name, type, shape, weights[name].astype(type)))


def _write_array(file: BinaryIO, array: NDArray[Any]) -> None:
    file.write(memoryview(np.ascontiguousarray(array)).cast("B"))


def _write_json(path: str, values: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2)


def main(arguments: list[str] | None = None) -> None:
    """Make the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", help="directory (meta, hf) or file (llama2c, native, gguf) to write")
    parser.add_argument("--format", choices=["meta", "hf", "llama2c", "native", "gguf"], default="meta")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="files of the meta format (default 1)")
    dtypes = ["float32", "float16", "q8", "q4"]
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the native format")
    parser.add_argument("--type", choices=["f32", "f16", "q8_0", "q4_0"], default="f32", help="of the gguf format")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    config, extra = SHAPES[options.shape]
    if options.layers is not None:
        if not 1 <= options.layers <= config.n_layers:
            parser.error(f"--layers must be 1 to {config.n_layers}")
        config = dataclasses.replace(config, n_layers=options.layers)
    if not 1 <= options.shards <= 99:
        parser.error("--shards must be 1 to 99")
    weights = RandomWeights(config, options.seed)
    if options.format == "meta":
        write_meta(options.out, config, weights, extra, options.shards)
    elif options.format == "hf":
        write_hf(options.out, config, weights)
    elif options.format == "llama2c":
        write_llama2c(options.out, config, weights)
    elif options.format == "gguf":
        from random_gguf import write_gguf  # which wants the package gguf

        write_gguf(options.out, config, weights, options.type)
    else:
        write_native(options.out, config, weights, options.dtype)


if __name__ == "__main__":
    main()
