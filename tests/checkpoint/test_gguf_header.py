"""Damaged and hostile GGUF files: each opens or raises CheckpointError, at once and in little memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.gguf_files import (
    ARRAY,
    FLOAT32,
    STRING,
    UINT32,
    array_pair,
    file_bytes,
    gguf_name,
    model_keys,
    pair,
    string,
    tensor_entry,
    typed_pair,
)
from helpers.tiny import random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2.checkpoint.gguf import GgufCheckpoint
from pyllama2.checkpoint.gguf_header import Header, read_header
from pyllama2.config import ModelConfig
from pyllama2.errors import CheckpointError
from pyllama2.storage.mapped import MappedFile

SMALL = ModelConfig(dim=4, hidden_dim=4, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=2, vocab_size=5, max_seq_len=9)
TOKENS = ["<s>", "a", "b", "ab", "\u0120"]
ARCHITECTURE = pair("general.architecture", "llama")


def small_pairs() -> list[bytes]:
    """Metadata of a model with a tokenizer; one key has an array that nobody reads."""
    return [
        ARCHITECTURE,
        *(pair(key, value) for key, value in model_keys(SMALL).items()),
        pair("tokenizer.ggml.model", "gpt2"),
        array_pair("tokenizer.ggml.tokens", STRING, 5, b"".join(map(string, TOKENS))),
        array_pair("tokenizer.ggml.token_type", UINT32, 5, struct.pack("<5I", 3, 1, 1, 1, 1)),
        array_pair("tokenizer.ggml.merges", STRING, 1, string("a b")),
        pair("tokenizer.ggml.bos_token_id", 0),
        typed_pair("tokenizer.ggml.add_bos_token", 7, b"\1"),
        array_pair("general.tags", STRING, 2, string("") + string("x")),
    ]


def small_tensors() -> tuple[list[bytes], bytes]:
    """Entries and data."""
    entries, data = [], b""
    for name, array in random_weights(SMALL).items():
        data += bytes(-len(data) % 32)
        entries.append(tensor_entry(gguf_name(name), array.shape[::-1], 0, len(data)))
        data += array.tobytes()
    return entries, data


SMALL_FILE = file_bytes(small_pairs(), *small_tensors())
HEADER = len(SMALL_FILE) - len(small_tensors()[1])


def open_all(path: Path) -> None:
    """Open a file and read everything in it."""
    checkpoint = GgufCheckpoint(path)
    for _, shape, tensor in checkpoint.tensors():
        assert tensor.read().shape == shape
    checkpoint.close()


def header_of(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_header(MappedFile(path))


def refusal(path: Path, content: bytes) -> str:
    """The sentence with which a header is refused."""
    with pytest.raises(CheckpointError) as caught:
        header_of(path, content)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 700
    return message


def test_small_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(SMALL_FILE)
    open_all(path)
    checkpoint = GgufCheckpoint(path)
    assert checkpoint.config == SMALL and checkpoint.tokenizer is not None


def test_version_2_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(SMALL_FILE[:4] + struct.pack("<I", 2) + SMALL_FILE[8:])
    open_all(path)


@pytest.mark.slow
def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(SMALL_FILE)
    for length in range(len(SMALL_FILE) - 1, 0, -1):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            GgufCheckpoint(path)


@pytest.mark.slow
def test_flip_of_every_bit(tmp_path: Path) -> None:
    """Nothing but CheckpointError may come of it; some flips do no harm, such as in a name of no interest."""
    path = tmp_path / "m"
    path.write_bytes(SMALL_FILE)
    n_opened = 0
    with open(path, "r+b", buffering=0) as file:
        for position in range(HEADER):
            for bit in range(8):
                file.seek(position)
                file.write(bytes([SMALL_FILE[position] ^ 1 << bit]))
                try:
                    open_all(path)
                    n_opened += 1
                except CheckpointError as error:
                    assert str(error).startswith(str(path))
            file.seek(position)
            file.write(SMALL_FILE[position : position + 1])
    assert 0 < n_opened < HEADER * 8 / 2


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, HEADER - 1), st.binary(min_size=1, max_size=16))
def test_overwritten_bytes(tmp_path_factory: pytest.TempPathFactory, position: int, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "overwritten"
    path.write_bytes(SMALL_FILE[:position] + junk + SMALL_FILE[position + len(junk) :])
    try:
        open_all(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_behind_the_magic(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + junk)
    with pytest.raises(CheckpointError):
        GgufCheckpoint(path)


@pytest.mark.parametrize(
    ("version", "message"),
    [(1, "has version 1 of GGUF"), (4, "has version 4 of GGUF"), (3 << 24, "big-endian"), (2 << 24, "big-endian")],
)
def test_other_versions(tmp_path: Path, version: int, message: str) -> None:
    assert message in refusal(tmp_path / "m", file_bytes([ARCHITECTURE], version=version))


HUGE = [1 << 17, 1 << 32, 1 << 40, (1 << 61) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("count", HUGE)
def test_lying_counts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m"
    padding = bytes(1 << 20)
    entry = tensor_entry("t", [4])
    assert f"{count} keys" in refusal(path, file_bytes([ARCHITECTURE], data=padding, n_keys=count))
    assert f"{count} tensors" in refusal(path, file_bytes([ARCHITECTURE], [entry], padding, n_tensors=count))
    assert f"{count} strings" in refusal(path, file_bytes([array_pair("k", STRING, count, string("x"))], data=b"x"))
    if count > 1 << 20:  # zeros are numbers
        sizes = {UINT32: 4, FLOAT32: 4, 0: 1, 7: 1, 10: 8, 12: 8}
        for kind, size in sizes.items():
            message = refusal(path, file_bytes([array_pair("k", kind, count, b"")], data=padding))
            assert f"the key 'k': {count * size} bytes are wanted" in message


@pytest.mark.parametrize("count", [7, 50, 1000])
def test_counts_beyond_the_end(tmp_path: Path, count: int) -> None:
    """Counts that the file could hold, but does not."""
    path = tmp_path / "m"
    refusal(path, file_bytes([ARCHITECTURE], n_keys=count))
    refusal(path, file_bytes([ARCHITECTURE], [tensor_entry("t", [4])], bytes(16), n_tensors=count))
    refusal(path, file_bytes([array_pair("k", STRING, count, string("x" * 7000))]))


@pytest.mark.parametrize("length", [100, *HUGE])
def test_lying_lengths(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m"
    lie = struct.pack("<Q", length) + b"abc"
    refusal(path, file_bytes([lie]))
    refusal(path, file_bytes([ARCHITECTURE], [lie]))
    refusal(path, file_bytes([typed_pair("k", STRING, lie)]))
    refusal(path, file_bytes([array_pair("k", STRING, 2, string("") + lie)]))
    refusal(path, file_bytes([array_pair("k", STRING, 2, lie + string(""))]))


def test_lengths_of_names(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert "a" * 256 in header_of(path, file_bytes([ARCHITECTURE], [tensor_entry("a" * 256, [4])], bytes(16))).tensors
    assert "name of 257 bytes" in refusal(path, file_bytes([pair("a" * 257, 1)]))
    assert "name of 0 bytes" in refusal(path, file_bytes([pair("", 1)]))
    assert "name of 257 bytes" in refusal(path, file_bytes([ARCHITECTURE], [tensor_entry("a" * 257, [4])], bytes(16)))


def test_names_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert "not UTF-8" in refusal(path, file_bytes([pair(b"\xff", 1)]))
    assert "not UTF-8" in refusal(path, file_bytes([], [tensor_entry(b"\xed\xa0\x80", [4])], bytes(16)))


def test_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert "'k' appears twice" in refusal(path, file_bytes([pair("k", 1), ARCHITECTURE, pair("k", "x")]))
    entries = [tensor_entry("t", [4], 0, 0), tensor_entry("u", [4], 0, 32), tensor_entry("t", [4], 0, 64)]
    assert "'t' appears twice" in refusal(path, file_bytes([], entries, bytes(80)))


def test_types_of_values(tmp_path: Path) -> None:
    path = tmp_path / "m"
    nested = struct.pack("<IQ", UINT32, 1) + bytes(4)
    assert "'k' is an array of arrays" in refusal(path, file_bytes([array_pair("k", ARRAY, 1, nested)]))
    for kind in (13, 255, (1 << 32) - 1):
        assert f"the unknown type {kind}" in refusal(path, file_bytes([typed_pair("k", kind, bytes(8))]))
        assert f"the unknown type {kind}" in refusal(path, file_bytes([array_pair("k", kind, 1, bytes(8))]))


def test_booleans(tmp_path: Path) -> None:
    path = tmp_path / "m"
    content = file_bytes([typed_pair("k", 7, bytes([value])) for value in (1,)])
    assert header_of(path, content).metadata.find("k", bool) is True
    metadata = header_of(path, file_bytes([typed_pair("k", 7, b"\2")])).metadata
    with pytest.raises(CheckpointError, match="k should be true or false, not 2"):
        metadata.find("k", bool)


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 33, (1 << 32) - 1])
def test_alignments(tmp_path: Path, alignment: int) -> None:
    message = refusal(tmp_path / "m", file_bytes([pair("general.alignment", alignment)]))
    assert f"general.alignment is {alignment}, not a power of two" in message


def test_alignment_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    entries = [tensor_entry("t", [2], 0, 0), tensor_entry("u", [2], 0, 8)]
    content = file_bytes([pair("general.alignment", 8)], entries)
    unpadded = len(content.rstrip(b"\0")) // 8 * 8
    tensors = header_of(path, content + bytes(64)).tensors
    assert tensors["t"].offset % 8 == 0 and unpadded <= tensors["t"].offset <= len(content)
    assert tensors["u"].offset == tensors["t"].offset + 8
    assert "no multiple of 32" in refusal(path, file_bytes([], entries, bytes(64)))
    far = file_bytes([pair("general.alignment", 1 << 31)], [tensor_entry("t", [4])], bytes(16))
    assert "'t' should end at byte 2147483664" in refusal(path, far)


@pytest.mark.parametrize("dims", [[], [1] * 5, [1] * 70])
def test_numbers_of_dimensions(tmp_path: Path, dims: list[int]) -> None:
    message = refusal(tmp_path / "m", file_bytes([], [tensor_entry("t", dims)], bytes(999)))
    assert f"tensor 't' has {len(dims)} dimensions" in message


@pytest.mark.parametrize(
    ("dims", "kind", "message"),
    [
        ([0], 0, "has rows that are not made of F32 blocks"),
        ([4, 0], 0, "has rows that are not made of F32 blocks"),
        ([31], 8, "has rows that are not made of Q8_0 blocks of 32"),
        ([48, 2], 2, "has rows that are not made of Q4_0 blocks of 32"),
        ([224], 14, "has rows that are not made of Q6_K blocks of 256"),
        ([4], 4, "is Q4_2; supported are"),
        ([4], 99, "is of the unknown type 99"),
        ([4], (1 << 32) - 1, "is of the unknown type 4294967295"),
        ([5], 0, "should end at byte"),
        ([1 << 62], 0, "should end at byte"),
        ([1 << 32, 1 << 32], 0, "should end at byte"),
        ([1 << 63, 2, 1, 1], 1, "should end at byte"),
        ([(1 << 64) - 32] * 4, 8, "should end at byte"),
    ],
)
def test_shapes_that_lie(tmp_path: Path, dims: list[int], kind: int, message: str) -> None:
    assert message in refusal(tmp_path / "m", file_bytes([], [tensor_entry("t", dims, kind)], bytes(16)))


@pytest.mark.parametrize("offset", [1, 16, 31, 33, (1 << 64) - 1])
def test_misaligned_offsets(tmp_path: Path, offset: int) -> None:
    message = refusal(tmp_path / "m", file_bytes([], [tensor_entry("t", [4], 0, offset)], bytes(999)))
    assert f"tensor 't' starts at byte {offset} of the data, which is no multiple of 32" in message


@pytest.mark.parametrize("offset", [64, 96, 1 << 40, (1 << 64) - 32])
def test_offsets_beyond_the_end(tmp_path: Path, offset: int) -> None:
    content = file_bytes([], [tensor_entry("t", [4], 0, offset)], bytes(64))
    end = len(content) - 64 + offset + 16
    assert f"'t' should end at byte {end}, the file has {len(content)}" in refusal(tmp_path / "m", content)


def test_tensors_may_be_in_any_order_with_holes(tmp_path: Path) -> None:
    entries = [tensor_entry("a", [8], 0, 96), tensor_entry("b", [4], 0, 0), tensor_entry("c", [1], 0, 32)]
    tensors = header_of(tmp_path / "m", file_bytes([], entries, bytes(500))).tensors
    assert list(tensors) == ["a", "b", "c"]
    assert [tensor.offset - tensors["b"].offset for tensor in tensors.values()] == [96, 0, 32]


@pytest.mark.parametrize(
    "places", [[(16, 0), (4, 32)], [(4, 64), (17, 0)], [(4, 0), (4, 0)], [(8, 32), (64, 0), (4, 256)]]
)
def test_overlaps(tmp_path: Path, places: list[tuple[int, int]]) -> None:
    entries = [tensor_entry(f"t{i}", [length], 0, offset) for i, (length, offset) in enumerate(places)]
    assert "overlap at byte" in refusal(tmp_path / "m", file_bytes([], entries, bytes(999)))


def test_strings_that_are_not_text(tmp_path: Path) -> None:
    strings = b"".join(map(string, [b"ok", b"\xff", b"ok"]))
    metadata = header_of(tmp_path / "m", file_bytes([array_pair("k", STRING, 3, strings)])).metadata
    with pytest.raises(CheckpointError, match="string 1 of k is not UTF-8"):
        metadata.texts("k", 3)


@pytest.mark.parametrize("value", [1e-5, 1e-6, 500000.0, 0.1, 3.0])
def test_float32_is_the_decimal_that_was_meant(tmp_path: Path, value: float) -> None:
    metadata = header_of(tmp_path / "m", file_bytes([pair("k", value)])).metadata
    assert metadata.find("k", float) == value


@pytest.mark.parametrize(
    ("kind", "code", "value"),
    [
        (0, "B", 255), (1, "b", -1), (2, "H", 65535), (3, "h", -2), (4, "I", 1 << 31), (5, "i", -3),
        (10, "Q", (1 << 64) - 1), (11, "q", -4),
    ],
)  # fmt: skip
def test_whole_numbers(tmp_path: Path, kind: int, code: str, value: int) -> None:
    content = file_bytes([typed_pair("k", kind, struct.pack(f"<{code}", value))])
    assert header_of(tmp_path / "m", content).metadata.find("k", int) == value


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that Python and numpy had allocated at most while action ran."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_strings_nobody_reads_take_no_memory(tmp_path: Path) -> None:
    """Many empty strings, eight bytes each in the file, would be as many Python objects."""
    path = tmp_path / "m"
    path.write_bytes(file_bytes([ARCHITECTURE, array_pair("k", STRING, 1 << 18, bytes(8 << 18))]))
    assert peak_of(lambda: read_header(MappedFile(path))) < 1 << 20


@pytest.mark.slow
def test_too_many_strings(tmp_path: Path) -> None:
    """Their number is bounded over all keys together, so that walking over them takes a second at most."""
    path = tmp_path / "m"
    half = bytes(8 * ((1 << 21) + 1))
    pairs = [array_pair(key, STRING, (1 << 21) + 1, half) for key in ("a", "b")]
    assert "'b' should have 2097153 strings" in refusal(path, file_bytes(pairs))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "elements"), [(1 << 18, bytes(8 << 18)), (5, string(bytes(64 << 20)) + bytes(32))])
def test_more_tokens_than_the_model_has_are_not_read(tmp_path: Path, count: int, elements: bytes) -> None:
    tokens = array_pair("tokenizer.ggml.tokens", STRING, count, elements)
    pairs = [tokens if b"ggml.tokens" in pair else pair for pair in small_pairs()]
    path = tmp_path / "m"
    path.write_bytes(file_bytes(pairs, *small_tensors()))

    def refused() -> None:
        with pytest.raises(CheckpointError, match="tokens has"):
            GgufCheckpoint(path)

    assert peak_of(refused) < 1 << 20


@pytest.mark.slow
def test_memory_of_keys_and_tensors(tmp_path: Path) -> None:
    """With the longest names there may be, in characters of four bytes; at most 65,536 of each are read."""
    count = 1 << 12
    name = "\U0001f642" * 63
    pairs = [pair(f"{name}{i:x}", 1) for i in range(count)]
    tensors = [tensor_entry(f"{name}{i:x}", [8], 0, 32 * i) for i in range(count)]
    path = tmp_path / "m"
    path.write_bytes(file_bytes(pairs, tensors, bytes(32 * count)))
    assert peak_of(lambda: read_header(MappedFile(path))) * (65536 / count) < 200 << 20


@pytest.mark.slow
def test_a_million_strings(tmp_path: Path) -> None:
    strings = string("token") * (1 << 19)
    numbers = np.arange(1 << 20, dtype=np.float32).tobytes()
    pairs = [
        array_pair("skipped", STRING, 1 << 20, strings * 2),
        array_pair("read", STRING, 1 << 19, strings),
        array_pair("numbers", FLOAT32, 1 << 20, numbers),
    ]
    path = tmp_path / "m"
    path.write_bytes(file_bytes(pairs))
    metadata = read_header(MappedFile(path)).metadata
    assert metadata.texts("read", 1 << 19)[-1] == "token"
    assert metadata.array("numbers", float)[-1] == (1 << 20) - 1
