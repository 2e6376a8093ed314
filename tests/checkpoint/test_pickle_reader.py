"""The bounded pickle reader: what torch.save writes, and everything that must be refused at once."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2.checkpoint.pickle_reader import PickledTensor, Storage, read_state_dict
from pyllama2.errors import CheckpointError


def torch_pickle(value: object, **options: object) -> bytes:
    """The data.pkl that torch.save makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    archive = zipfile.ZipFile(buffer)
    return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def program(*parts: bytes) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
HOOKS = b"ccollections\nOrderedDict\n)R"


def tensor(
    storage: bytes = STORAGE,
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x02K\x03\x86",
    stride: bytes = b"K\x03K\x01\x86",
    rest: bytes = b"\x89" + HOOKS,
) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride + rest + b"tR"


def state_dict(*items: bytes) -> bytes:
    return program(b"}(", *items, b"u")


GOOD = state_dict(text("a"), tensor())
EXPECTED = PickledTensor(Storage("F16", "0", 6), 0, (2, 3), (3, 1))


def refuse(data: bytes, *words: str) -> None:
    """Reading must end in a CheckpointError that names the file and has the words in little memory."""
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(data, "file.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith("file.pth: ")
    assert len(message) < 500
    for word in words:
        assert word in message
    assert peak < 200 << 20


class TestWhatTorchWrites:
    def test_dict_of_each_type(self) -> None:
        value = {"f": torch.ones(3), "h": torch.ones(2, 5).half(), "b": torch.ones(4, 1, 2).bfloat16()}
        tensors = read_state_dict(torch_pickle(value), "file.pth")
        assert tensors == {
            "f": PickledTensor(Storage("F32", "0", 3), 0, (3,), (1,)),
            "h": PickledTensor(Storage("F16", "1", 10), 0, (2, 5), (5, 1)),
            "b": PickledTensor(Storage("BF16", "2", 8), 0, (4, 1, 2), (2, 2, 1)),
        }

    def test_ordered_dict_with_metadata(self) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4, bias=False))
        value = module.state_dict()
        assert value._metadata  # written with BUILD
        tensors = read_state_dict(torch_pickle(value), "file.pth")
        assert {name: t.shape for name, t in tensors.items()} == {name: tuple(t.shape) for name, t in value.items()}
        assert read_state_dict(torch_pickle(OrderedDict(value)), "file.pth") == tensors

    def test_parameters(self) -> None:
        module = torch.nn.Linear(3, 2)
        tensors = read_state_dict(torch_pickle(dict(module.named_parameters())), "file.pth")
        assert tensors["weight"] == PickledTensor(Storage("F32", "0", 6), 0, (2, 3), (3, 1))

    def test_views_share_a_storage(self) -> None:
        base = torch.ones(10, 4)
        tensors = read_state_dict(torch_pickle({"a": base, "rows": base[2:4], "columns": base.t()[1:3]}), "file.pth")
        assert tensors["rows"] == PickledTensor(Storage("F32", "0", 40), 8, (2, 4), (4, 1))
        assert tensors["columns"] == PickledTensor(Storage("F32", "0", 40), 1, (2, 10), (1, 4))

    def test_many_tensors_and_large_numbers(self) -> None:
        base = torch.zeros(1 << 17)
        value = {f"tensor.{i}": base[i * 7 :] for i in range(1500)}
        tensors = read_state_dict(torch_pickle(value), "file.pth")
        assert [t.offset for t in tensors.values()] == [i * 7 for i in range(1500)]

    def test_empty(self) -> None:
        assert read_state_dict(torch_pickle({}), "file.pth") == {}


class TestByHand:
    def test_good(self) -> None:
        assert read_state_dict(GOOD, "file.pth") == {"a": EXPECTED}

    def test_setitem_memo_and_long(self) -> None:
        data = program(
            b"}q\x00",
            text("a") + b"r\xff\xff\xff\xff" + tensor(offset=b"\x8a\x05\0\0\0\0\1") + b"q\x05" + b"s",
            text("b") + b"h\x05s",
        )
        tensors = read_state_dict(data, "file.pth")
        assert tensors["a"] == tensors["b"]
        assert tensors["a"].offset == 1 << 32

    def test_wide_integers(self) -> None:
        data = state_dict(text("a"), tensor(shape=b"J\x00\x00\x01\x00M\x00\x80\x86"))
        assert read_state_dict(data, "file.pth")["a"].shape == (65536, 32768)

    def test_false_metadata_of_a_tensor(self) -> None:
        assert read_state_dict(state_dict(text("a"), tensor(rest=b"\x89" + HOOKS + b"}")), "file.pth") == {
            "a": EXPECTED
        }


class TestRefusals:
    @pytest.mark.parametrize(
        ("module", "name"),
        [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load"), ("torch._utils", "_rebuild"),
         ("collections", "OrderedDict.__init__"), ("torch.nn.modules.linear", "Linear")],
    )  # fmt: skip
    def test_other_names(self, module: str, name: str) -> None:
        data = program(f"c{module}\n{name}\n".encode(), b"(", text("echo"), b"tR")
        refuse(data, f"{module}.{name}")

    def test_real_exploit(self) -> None:
        class Exploit:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return exec, ("raise SystemExit('executed')",)

        refuse(pickle.dumps({"a": Exploit()}, protocol=2), "exec", "not allowed")

    @pytest.mark.parametrize(
        ("dtype", "name"),
        [(torch.int64, "Long"), (torch.float64, "Double"), (torch.int8, "Char"), (torch.complex64, "ComplexFloat")],
    )
    def test_other_types_of_numbers(self, dtype: torch.dtype, name: str) -> None:
        refuse(torch_pickle({"a": torch.ones(2, dtype=dtype)}), f"torch.{name}Storage", "float16")

    def test_types_without_a_storage_class(self) -> None:
        refuse(torch_pickle({"a": torch.ones(2, dtype=torch.uint16)}), "_rebuild_tensor_v3")
        refuse(torch_pickle({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}), "_rebuild_tensor_v3")
        refuse(torch_pickle({"a": torch.ones(2, 2).to_sparse()}), "_rebuild_sparse_tensor")

    @pytest.mark.parametrize("value", [3, "text", None, True, (1, 2), {"nested": torch.ones(1)}, OrderedDict()])
    def test_values_that_are_no_tensors(self, value: object) -> None:
        refuse(torch_pickle({"model": value}), "'model'")

    def test_results_that_are_no_dict(self) -> None:
        refuse(torch_pickle(torch.ones(2)), "dict")
        refuse(torch_pickle((1, 2)), "dict")
        refuse(torch_pickle([torch.ones(2)]), "opcode")
        refuse(torch_pickle({1: torch.ones(2)}), "key of type int")

    def test_other_protocols(self) -> None:
        for protocol in (3, 4, 5):
            refuse(torch_pickle({"a": torch.ones(2)}, pickle_protocol=protocol), "protocol 2")
        refuse(b"}.", "protocol 2")
        refuse(b"", "truncated")

    def test_every_other_opcode(self) -> None:
        known = b"(})t\x85\x86\x87N\x88\x89KMJ\x8aXcqrhjsubQR."
        for opcode in set(range(256)) - set(known):
            refuse(program(b"}", bytes([opcode]), bytes(16)), "opcode")

    def test_stack_and_memo_misuse(self) -> None:
        for data in (b"s", b"u", b"t", b"\x85", b"R", b"Q", b"b", b"q\x00", b"}}", b"(}", b"}(", b"}\x88u", b"}(\x88u"):
            refuse(program(data))
        refuse(program(b"h\x07"), "memo 7")
        refuse(program(b"j\x00\x00\x00\x08"), "memo")
        refuse(program(b"}q\x01q\x01"), "memo 1 twice")
        refuse(program(b"}(" + text("a") + b"s"))  # the dict is below the mark
        refuse(program(b"}(q\x00u"), "takes more values")
        refuse(GOOD + b"}.", "follows")

    def test_arguments(self) -> None:
        for bad in (
            tensor(storage=b"N"),
            tensor(offset=b"J\xff\xff\xff\xff"),
            tensor(offset=b"N"),
            tensor(shape=b"K\x02\x85"),
            tensor(shape=b"K\x02N\x86"),
            tensor(shape=b"K\x02\x88\x86"),
            tensor(shape=b"K\x02J\xfe\xff\xff\xff\x86"),
            tensor(shape=b"(" + b"K\x01" * 9 + b"t", stride=b"(" + b"K\x01" * 9 + b"t"),
            tensor(rest=b"\x89"),
            tensor(rest=b"\x89" + HOOKS + b"}" + text("conj") + b"\x88s"),
            tensor(rest=b"\x89" + HOOKS + b"}}"),
            b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88tR",
            b"ctorch._utils\n_rebuild_parameter\nN\x88N\x87R",
            b"ccollections\nOrderedDict\n}\x85R",
            b"ctorch\nHalfStorage\n)R",
            b"N)R",
        ):
            refuse(state_dict(text("a"), bad))
        for bad in (
            b"N",
            b"K\x01\x85",
            STORAGE.replace(b"storage", b"Storage")[:-1],
            STORAGE.replace(b"K\x06", b"N")[:-1],
            STORAGE.replace(b"K\x06", b"J\xff\xff\xff\xff")[:-1],
            STORAGE.replace(b"ctorch\nHalfStorage\n", text("torch.HalfStorage"))[:-1],
            STORAGE.replace(b"ctorch\nHalfStorage\n", b"ccollections\nOrderedDict\n")[:-1],
        ):
            refuse(state_dict(text("a"), tensor(storage=bad + b"Q")))

    def test_duplicates(self) -> None:
        refuse(state_dict(text("a"), tensor(), text("a"), tensor()), "'a' appears twice")

    def test_text_and_names(self) -> None:
        refuse(program(b"}X\x02\0\0\0\xff\xfe"), "UTF-8")
        refuse(program(b"}X\x03\0\0\0\xed\xa0\x80"), "UTF-8")  # a lone surrogate
        refuse(program(b"}X\xff\xff\xff\x7f"), "truncated")
        refuse(program(b"c" + b"a" * 1000 + b"\nb\n"), "does not end")
        refuse(b"\x80\x02cos", "does not end")


class TestBombs:
    @pytest.mark.slow
    def test_nested_tuples(self) -> None:
        million = b")" + b"\x85" * 1_000_000
        refuse(program(million), "opcodes")
        shorter = b")" + b"\x85" * 200_000
        refuse(state_dict(shorter, tensor()), "key of type tuple")  # hashing it would overflow the C stack
        refuse(program(shorter), "dict")
        refuse(state_dict(text("a"), tensor(shape=shorter)), "shape")

    def test_huge_memo_index(self) -> None:
        refuse(program(b"}r\x00\x00\x00\x08j\x01\x00\x00\x08"), "memo")
        assert read_state_dict(program(b"}r\x00\x00\x00\x08"), "file.pth") == {}

    @pytest.mark.slow
    def test_memo_of_many_entries(self) -> None:
        refuse(program(b"}", *(b"r" + struct.pack("<I", i * 8191) for i in range(300_000))), "opcodes")

    def test_giant_numbers(self) -> None:
        refuse(program(b"\x8a\xff" + b"\xff" * 255), "255 bytes")
        refuse(program(b"\x8b\xff\xff\xff\x7f"), "opcode")

    def test_deep_stack_and_marks(self) -> None:
        refuse(program(b"}" * 100_000), "nested")
        refuse(program(b"(" * 100_000), "nested")

    def test_doubling(self) -> None:
        # every tuple holds the one before twice: 2**200 leaves if anything ever walked over them
        doubling = b")q\x00" + b"".join(bytes([*b"h", i, *b"h", i, 0x86, *b"q", i + 1]) for i in range(200))
        refuse(state_dict(text("a"), doubling))
        refuse(state_dict(doubling, tensor()))

    def test_cycles(self) -> None:
        refuse(program(b"}q\x00" + text("a") + b"h\x00s"), "'a' is not a tensor")

    def test_too_long(self) -> None:
        refuse(b"\x80\x02" + bytes(9 << 20), "limit")

    def test_wide_text(self) -> None:
        refuse(program(b"}" + text("\U0001f600" + "a" * (7 << 20))))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    original = torch_pickle(torch.nn.Linear(3, 2).state_dict())
    changed = bytearray(original[: data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = read_state_dict(bytes(changed), "file.pth")
    except CheckpointError:
        return
    assert all(type(name) is str and type(value) is PickledTensor for name, value in tensors.items())


def test_truncation_at_every_byte() -> None:
    original = torch_pickle(torch.nn.Linear(3, 2).state_dict())
    for length in range(len(original)):
        with pytest.raises(CheckpointError):
            read_state_dict(original[:length], "file.pth")
