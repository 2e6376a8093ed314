"""Reads the pickle inside a torch file: a state dict of tensors and nothing else. Runs no code.

A pickle is a program for a stack machine. For a state dict, torch.save needs two dozen opcodes (protocol 2).
The machine here knows only these, limits everything, and calls no function. What a pickle asks to call must
be one of

    collections.OrderedDict()                                   -> a dict
    torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)  -> PickledTensor
    torch._utils._rebuild_parameter(tensor, requires_grad, hooks)                          -> its tensor
    persistent id ("storage", torch.HalfStorage, key, location, numel)                     -> Storage

Python's own Unpickler is not safe, even with a strict find_class: nested tuples as dict keys
crash it, and with a large memo index it allocates gigabytes. Source of the opcodes: Python's pickletools module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import CheckpointError

# A shard of a 70B model has 22,000 opcodes in 90 KB. Python's pickler puts 1,000 items on the stack at a time.
MAX_BYTES = 8 << 20
_MAX_OPCODES = 250_000
_MAX_STACK = 10_000
_MAX_MARKS = 100
_MAX_DIMENSIONS = 8

_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_FUNCTIONS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}


@dataclass(frozen=True)
class Storage:
    """An array of numbers that is stored beside the pickle.

    Attributes:
        dtype: "F32", "F16" or "BF16".
        key: its name in the torch file.
        numel: number of elements.
    """

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class PickledTensor:
    """A view of a storage. It has not been checked that the view fits into the storage.

    Attributes:
        storage: what it is a view of.
        offset: its first element.
        shape: length of each dimension.
        stride: distance of neighbours in each dimension, in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that a pickle wants to call."""

    name: str


def read_state_dict(data: bytes, path: str) -> dict[str, PickledTensor]:
    """Read the pickle of a state dict.

    Args:
        data: the pickle.
        path: path of the torch file, for error messages.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: the pickle is damaged, exceeds a limit, or is not a dict of tensors.
    """
    return _Machine(data, path).run()


class _Machine:
    """The stack machine. Values are str, int, bool, None, tuple, dict, Storage, PickledTensor and _Global."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}  # not a list: the file chooses the indices, which may be up to 2**32 - 1

    def run(self) -> dict[str, PickledTensor]:
        if len(self._data) > MAX_BYTES:
            self._fail(f"a pickle of {len(self._data)} bytes exceeds the limit of {MAX_BYTES}")
        if self._read(2) != b"\x80\x02":
            self._fail("the pickle is not of protocol 2, which torch.save writes")
        for _ in range(_MAX_OPCODES):
            code = self._read(1)
            if code == b".":
                return self._result()
            operation = _OPERATIONS.get(code)
            if operation is None:
                self._fail(f"a state dict has no use for the pickle opcode {code!r}")
            operation(self)
            if len(self._stack) > _MAX_STACK or len(self._marks) > _MAX_MARKS:
                self._fail("the pickle is too deeply nested")
        self._fail(f"the pickle has more than {_MAX_OPCODES} opcodes")

    def _result(self) -> dict[str, PickledTensor]:
        result: dict[str, PickledTensor] = self._pop(dict)
        if self._stack or self._marks or self._position != len(self._data):
            self._fail("something follows the state dict")
        for name, value in result.items():
            if type(value) is not PickledTensor:
                self._fail(f"{name[:80]!r} is not a tensor but of type {_name(type(value))}")
        return result

    def _fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._path}: {problem} (byte {self._position} of data.pkl)")

    def _read(self, length: int) -> bytes:
        end = self._position + length
        if end > len(self._data):
            self._fail("the pickle is truncated")
        data = self._data[self._position : end]
        self._position = end
        return data

    def _unsigned(self, length: int) -> int:
        return int.from_bytes(self._read(length), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + 200)
        if end < 0:
            self._fail("a name in the pickle does not end")
        line = self._read(end + 1 - self._position)
        return line[:-1].decode("ascii", "backslashreplace")

    def _pop(self, kind: type | None = None) -> Any:
        """Take the topmost value, which must be above the last mark and of a kind."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self._fail("the pickle takes more values from its stack than it put there")
        value = self._stack.pop()
        if kind is not None and type(value) is not kind:
            self._fail(f"the pickle has a value of type {_name(type(value))} where {_name(kind)} is expected")
        return value

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            self._fail("the pickle uses a mark that it has not set")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push_tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._stack.append(tuple(values[::-1]))

    def _push_text(self) -> None:
        data = self._read(self._unsigned(4))
        try:
            self._stack.append(data.decode())
        except UnicodeDecodeError:
            self._fail("a string in the pickle is not UTF-8")

    def _push_long(self) -> None:
        length = self._unsigned(1)
        if length > 8:
            self._fail(f"the pickle has a number of {length} bytes")
        self._stack.append(int.from_bytes(self._read(length), "little", signed=True))

    def _push_global(self) -> None:
        module, name = self._line(), self._line()
        full = f"{module}.{name}"
        if full not in _FUNCTIONS and not (module == "torch" and name in _STORAGES):
            if module in ("torch", "torch.storage") and name.endswith("Storage"):
                self._fail(f"it has tensors of type {full}; float32, float16 and bfloat16 are supported")
            self._fail(f"its pickle wants {full[:200]}, which is not allowed")
        self._stack.append(_Global(full))

    def _put(self, index: int) -> None:
        if index in self._memo:
            self._fail(f"the pickle sets its memo {index} twice")
        value = self._pop()
        self._memo[index] = value
        self._stack.append(value)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            self._fail(f"the pickle reads its memo {index} before it is set")
        self._stack.append(self._memo[index])

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop(dict)
        if len(items) % 2:
            self._fail("the pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # hashing a deeply nested tuple would overflow the C stack
                self._fail(f"the pickle has a key of type {_name(type(key))}")
            if key in target:
                self._fail(f"the key {key[:80]!r} appears twice")
            target[key] = value
        self._stack.append(target)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _build(self) -> None:
        """Skip BUILD, which sets attributes of an OrderedDict: the only one, _metadata, is not about tensors."""
        self._pop(dict)
        self._stack.append(self._pop(dict))

    def _persistent(self) -> None:
        match self._pop(tuple):
            case ("storage", _Global(name), str(key), str(), int(numel)) if name.startswith("torch.") and numel >= 0:
                dtype = _STORAGES.get(name.removeprefix("torch."))
                if dtype is not None:
                    self._stack.append(Storage(dtype, key, numel))
                    return
        self._fail("a persistent id of the pickle describes no storage")

    def _reduce(self) -> None:
        arguments = self._pop(tuple)
        name = self._pop(_Global).name
        match name, arguments:
            case "collections.OrderedDict", ():
                self._stack.append({})
            case "torch._utils._rebuild_tensor_v2", (
                Storage() as storage,
                int(offset),
                tuple(shape),
                tuple(stride),
                *rest,
            ):
                if not _is_shape(shape) or not _is_shape(stride) or len(shape) != len(stride) or offset < 0:
                    self._fail("a tensor has an impossible shape, stride or offset")
                # rest: requires_grad, backward hooks, and since torch 2.0 flags (conjugated, negated) if any is set
                if len(rest) not in (2, 3) or any(rest[2:]):
                    self._fail("a tensor is of a kind that is not supported (conjugated, negated or unknown)")
                self._stack.append(PickledTensor(storage, offset, shape, stride))
            case "torch._utils._rebuild_parameter", (PickledTensor() as tensor, _, _):
                self._stack.append(tensor)
            case _:
                self._fail(f"the pickle calls {name} with unexpected arguments")


def _name(kind: type) -> str:
    return kind.__name__.strip("_")


def _is_shape(values: tuple[Any, ...]) -> bool:
    return len(values) <= _MAX_DIMENSIONS and all(type(value) is int and value >= 0 for value in values)


_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"(": lambda m: m._marks.append(len(m._stack)),  # MARK
    b"}": lambda m: m._stack.append({}),  # EMPTY_DICT
    b")": lambda m: m._stack.append(()),  # EMPTY_TUPLE
    b"t": lambda m: m._stack.append(tuple(m._pop_to_mark())),  # TUPLE
    b"\x85": lambda m: m._push_tuple(1),  # TUPLE1
    b"\x86": lambda m: m._push_tuple(2),  # TUPLE2
    b"\x87": lambda m: m._push_tuple(3),  # TUPLE3
    b"N": lambda m: m._stack.append(None),  # NONE
    b"\x88": lambda m: m._stack.append(True),  # NEWTRUE
    b"\x89": lambda m: m._stack.append(False),  # NEWFALSE
    b"K": lambda m: m._stack.append(m._unsigned(1)),  # BININT1
    b"M": lambda m: m._stack.append(m._unsigned(2)),  # BININT2
    b"J": lambda m: m._stack.append(int.from_bytes(m._read(4), "little", signed=True)),  # BININT
    b"\x8a": _Machine._push_long,  # LONG1
    b"X": _Machine._push_text,  # BINUNICODE
    b"c": _Machine._push_global,  # GLOBAL
    b"q": lambda m: m._put(m._unsigned(1)),  # BINPUT
    b"r": lambda m: m._put(m._unsigned(4)),  # LONG_BINPUT
    b"h": lambda m: m._get(m._unsigned(1)),  # BINGET
    b"j": lambda m: m._get(m._unsigned(4)),  # LONG_BINGET
    b"s": _Machine._set_item,  # SETITEM
    b"u": lambda m: m._set_items(m._pop_to_mark()),  # SETITEMS
    b"b": _Machine._build,  # BUILD
    b"Q": _Machine._persistent,  # BINPERSID
    b"R": _Machine._reduce,  # REDUCE
}
