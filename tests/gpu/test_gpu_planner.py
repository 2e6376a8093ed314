"""The planner of device memory: equal to what is allocated, what it picks, and the sentences of what does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from helpers.tiny import CONFIGS, GQA, TIED, quantized_model, random_weights

from pyllama2._gpu.cache import CudaKVCache
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.layout import DeviceMatrix
from pyllama2._gpu.planner import (
    CHUNKS,
    CONTEXT_BYTES,
    GRANULE,
    GRAPH_NODE_BYTES,
    GRAPHS,
    MODULE_BYTES,
    PARTS,
    Plan,
    plan,
    taken_bytes,
    unsupported,
)
from pyllama2.config import ModelConfig
from pyllama2.errors import Pyllama2Error
from pyllama2.storage.weights import Quantization

GIB = 1 << 30
LLAMA2_7B = ModelConfig(
    dim=4096, hidden_dim=11008, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, vocab_size=32000, max_seq_len=4096
)  # fmt: skip
Q4 = Quantization.of("q4")


def for_7b(
    kv_dtype: str | None = None, free_bytes: int | None = None, max_seq_len: int = 4096, n_rows: int = 1,
    chunk: int | None = None,
) -> Plan:  # fmt: skip
    return plan(LLAMA2_7B, Q4, n_rows, max_seq_len, kv_dtype, chunk, free_bytes)


@pytest.mark.parametrize(("kv_dtype", "memory", "chunk"), [("float16", 6, 512), ("int8", 5, 512), ("int8", 4.97, 256)])
def test_7b_fits_into_6_gb(kv_dtype: str, memory: float, chunk: int) -> None:
    found = for_7b(kv_dtype, int(memory * GIB) - CONTEXT_BYTES)
    assert found.problem is None and found.total <= memory * GIB and found.chunk == chunk
    assert found.total == sum(array.nbytes for array in found.arrays) + CONTEXT_BYTES + found.driver_bytes
    # Code and stacks of the kernels; graphs of 5 kernels a layer, two more, and one that samples; what is left over.
    # In each layer these are 1 MiB of w13's codes, 0.5 of w2's, and 2.5 of the scales of wqkv, w13 and w2.
    left_over = found.driver_bytes - MODULE_BYTES - GRAPHS * GRAPH_NODE_BYTES * (5 * 32 + 3)
    assert 32 * 4 << 20 <= left_over <= (32 * 4 << 20) + 20 * GRANULE
    assert set(found.parts) == set(PARTS) and all(found.parts.values())
    assert len({(array.part, array.name) for array in found.arrays}) == len(found.arrays)


def test_cuda_takes_whole_pieces() -> None:
    """Arrays of more than 1 MiB fill pieces of 2 MiB; smaller ones share them, at multiples of 512 bytes."""
    mib = 1 << 20
    assert taken_bytes([]) == 0
    assert taken_bytes([1]) == taken_bytes([mib]) == taken_bytes([1] * 4096) == 2 * mib
    assert taken_bytes([1] * 4097) == taken_bytes([mib + 1, 5]) == 4 * mib


def test_parts_of_7b() -> None:
    """By hand: 4 bits and a float16 scale for 64 weights, 8 bits for the output, 2 bytes for a number in the cache."""
    parts = for_7b("float16").parts
    assert parts["linear"] == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) * (4 + 16 / 64) / 8
    assert parts["output"] == 32000 * 4096 * (8 + 16 / 64) / 8
    assert parts["embeddings"] == 32000 * 4096 * (4 + 16 / 64) / 8
    assert parts["norms"] == 65 * 4096 * 4
    assert parts["cache"] == 2 * 32 * 32 * 4096 * 128 * 2
    assert for_7b("int8").parts["cache"] == 2 * 32 * 32 * 4096 * (128 + 4)


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("type", ["q4", "q8"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_plan_is_what_is_allocated(cupy: Any, name: str, type: str, kv_dtype: str) -> None:
    config = CONFIGS[name]
    model = quantized_model(config, random_weights(config), type, 32)
    found = plan(config, model.quantization, 2, 40, kv_dtype, chunk=20)
    uploader, weights = Uploader(cupy), model.weights
    matrices: dict[str, DeviceMatrix] = {"tok_embeddings": uploader.matrix(weights["tok_embeddings.weight"])}
    if not config.tied_embeddings:
        matrices["output"] = uploader.matrix(weights["output.weight"])
    for layer in (f"layers.{i}" for i in range(config.n_layers)):
        wq, wk, wv, wo = (weights[f"{layer}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo"))
        w1, w2, w3 = (weights[f"{layer}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3"))
        matrices |= {f"{layer}.wqkv": uploader.matrix(wq, wk, wv), f"{layer}.wo": uploader.matrix(wo)}
        matrices |= {f"{layer}.w13": uploader.matrix(w1, w3, in_turns=True), f"{layer}.w2": uploader.matrix(w2)}
    del uploader  # and what it copied through
    shapes = {key: value for part in ("linear", "output", "embeddings") for key, value in found.shapes(part).items()}
    uploaded = {f"{key}.{kind}": getattr(m, kind) for key, m in matrices.items() for kind in ("codes", "scales")}
    assert shapes == {key: (str(array.dtype), tuple(array.shape)) for key, array in uploaded.items()}

    cache = CudaKVCache(cupy, config, 2, 40, kv_dtype)
    assert cache.nbytes == found.parts["cache"]
    rest = [cupy.empty(shape, dtype) for part in ("norms", "workspace") for dtype, shape in found.shapes(part).values()]
    assert rest
    if hasattr(cupy, "device"):  # the emulator counts; CuPy rounds up
        assert cupy.device.exact_bytes == found.allocated


def test_a_smaller_chunk_comes_before_int8() -> None:
    """So what fitted with chunks of the smallest size fits with the same type."""
    sizes = [(dtype, chunk) for dtype in ("float16", "int8") for chunk in CHUNKS]
    needed = {size: for_7b(size[0], chunk=size[1]).needed for size in sizes}
    assert sorted(needed.values(), reverse=True) == list(needed.values())
    for (dtype, chunk), enough in needed.items():
        picked = for_7b(None, enough)
        assert (picked.kv_dtype, picked.chunk, picked.problem) == (dtype, chunk, None)
        assert for_7b(dtype, enough).chunk == chunk
    assert for_7b().chunk == CHUNKS[0]
    refused = for_7b(None, needed["int8", CHUNKS[-1]] - 1)
    assert refused.problem is not None
    # Its numbers are those of the least that float16 needs.
    assert (refused.kv_dtype, refused.needed) == ("float16", needed["float16", CHUNKS[-1]])
    asked_for = for_7b("float16", needed["float16", CHUNKS[0]] - 1, chunk=CHUNKS[0])
    assert asked_for.problem is not None and asked_for.chunk == CHUNKS[0]


def test_a_chunk_of_512_takes_31_mib_more() -> None:
    """By hand: float32 x, gate and up; codes, scales and offsets of inputs. q, k, v and attention lie in gate's."""
    numbers = 4 * (4096 + 2 * 11008) + (2 * 4096 + 11008) + 8 * (2 * 4096 + 11008) // 64 + 4 * 6
    assert for_7b(chunk=512).parts["workspace"] - for_7b(chunk=256).parts["workspace"] == 256 * numbers


def test_the_sentence_names_numbers_and_what_would_fit() -> None:
    found = for_7b("float16", 5 * GIB)
    with pytest.raises(Pyllama2Error, match=r"5\.\d\d GiB .*weights 3\.40 GiB.* 5\.00 GiB are free; kv_dtype='int8'"):
        found.check()
    found = for_7b("float16", 4 * GIB, n_rows=2)
    assert found.problem is not None and "of 2 sequences of 4096 tokens" in found.problem
    suggestions = re.findall(r"n_ctx=(\d+) with (\w+) keys and values", found.problem)
    assert [dtype for _, dtype in suggestions] == ["float16", "int8"]
    for n_ctx, dtype in suggestions:
        assert for_7b(dtype, 4 * GIB, int(n_ctx), 2).problem is None
        assert for_7b(dtype, 4 * GIB, int(n_ctx) + 64, 2).problem is not None
    nothing = for_7b(None, 3 * GIB).problem
    assert nothing is not None and nothing.endswith("3.00 GiB are free; device='cpu' needs none")
    assert "\n" not in nothing


def test_what_the_gpu_cannot_run() -> None:
    assert unsupported(GQA) is None
    assert "up to 256" in str(unsupported(replace(TIED, head_dim=512)))


def test_arguments_are_checked() -> None:
    for arguments in ((0, 10, None, 8), (1, 0, None, 8), (1, 10, None, 0), (1, 10, "float32", 8)):
        with pytest.raises(ValueError):
            plan(GQA, Q4, *arguments)


def test_describe_lists_every_part() -> None:
    text = for_7b("int8").describe()
    assert all(name in text for name in (*PARTS.values(), "CUDA context, kernels, graphs", "total"))
