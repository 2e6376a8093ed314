"""Reads a torch file (.pth, .pt, .bin) of a state dict, without torch. Its tensors are mapped, not copied.

It is a zip file (zip_members.py) with one folder at its top:

    NAME/data.pkl     a pickle (pickle_reader.py): tensors as views of storages
    NAME/data/KEY     the numbers of storage KEY
    NAME/byteorder    "little" or "big", since torch 2.1
    NAME/version, NAME/.data/serialization_id, ...   not needed

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import os

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from .pickle_reader import MAX_BYTES, PickledTensor, read_state_dict
from .stored_tensor import StoredTensor
from .zip_members import Member, read_members

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
# The most views of one storage that may interleave. Parts of a matrix that was split by columns do.
_MAX_INTERLEAVED = 64
# How files of torch before version 1.6 start: a pickle of protocol 2 with the number 0x1950a86a20f9469cfc6c.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_zip(file: MappedFile) -> bool:
    """Whether a mapped file starts like a zip file."""
    return file.size >= 4 and file.bytes(0, 4) == b"PK\3\4"


def is_old_torch_file(file: MappedFile) -> bool:
    """Whether a mapped file is of the format that torch wrote before version 1.6."""
    return file.size >= len(_OLD_MAGIC) and file.bytes(0, len(_OLD_MAGIC)) == _OLD_MAGIC


def read_pth(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Open a torch file.

    Args:
        path: the file.

    Returns:
        The tensors by name. None of them has been read.

    Raises:
        CheckpointError: the file is damaged, or is not a state dict that torch 1.6 or newer wrote.
    """
    file = MappedFile(path)
    if is_old_torch_file(file):
        raise CheckpointError(
            f"{file.path} was saved by torch before version 1.6; load it with torch and save it again with torch.save"
        )
    if not is_zip(file):
        raise CheckpointError(f"{file.path} is not a torch file: it does not start like a zip file")
    members = read_members(file)
    folder = _folder(file, members)
    _check_byte_order(file, members.get(f"{folder}/byteorder"))
    program = members[f"{folder}/data.pkl"]
    if program.size > MAX_BYTES:
        raise CheckpointError(f"{file.path}: data.pkl of {program.size} bytes exceeds the limit of {MAX_BYTES}")
    pickled = read_state_dict(file.bytes(program.offset, program.size), file.path)
    tensors = {name: _locate(file, members, folder, name, tensor) for name, tensor in pickled.items()}
    _check_apart(file.path, pickled)
    return tensors


def _folder(file: MappedFile, members: dict[str, Member]) -> str:
    """Return the folder at the top of the zip file that has a data.pkl. Raises CheckpointError unless there is one."""
    folders = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(folders) != 1 or "/" in folders[0]:
        raise CheckpointError(f"{file.path} is a zip file, but not one of torch: it should have one NAME/data.pkl")
    return folders[0]


def _check_byte_order(file: MappedFile, member: Member | None) -> None:
    if member is not None and (member.size != 6 or file.bytes(member.offset, 6) != b"little"):
        raise CheckpointError(f"{file.path}: its byte order is not little-endian, which is the only one supported")


def _locate(
    file: MappedFile, members: dict[str, Member], folder: str, name: str, tensor: PickledTensor
) -> StoredTensor:
    """Find a tensor in the file. Raises CheckpointError unless it fits into its storage, and that into its member."""
    where = f"{file.path}: tensor {name[:80]!r}"
    storage = tensor.storage
    member = members.get(f"{folder}/data/{storage.key}")
    if member is None:
        raise CheckpointError(f"{where} needs the member data/{storage.key[:80]}, which is missing")
    size = _ITEM_SIZES[storage.dtype]
    if member.size != storage.numel * size:
        raise CheckpointError(
            f"{where} has a storage of {storage.numel} {storage.dtype} numbers, but its member has {member.size} bytes"
        )
    count, row_major = 1, True
    for length, stride in zip(tensor.shape[::-1], tensor.stride[::-1], strict=True):
        row_major = row_major and (stride == count or length == 1)
        count *= length
    # The check of count: with strides of 0, a huge tensor would fit into a storage of one number.
    if not 1 <= count <= storage.numel or _end(tensor) > storage.numel:
        raise CheckpointError(
            f"{where} of shape {tensor.shape} at {tensor.offset} does not fit its storage of {storage.numel} numbers"
        )
    if not row_major and _overlaps_itself(tensor):
        raise CheckpointError(
            f"{where} of shape {tensor.shape} and strides {tensor.stride} has elements that share their place"
        )
    strides = None if row_major else tensor.stride
    return StoredTensor(file, storage.dtype, tensor.shape, member.offset + tensor.offset * size, strides)


def _end(tensor: PickledTensor) -> int:
    """Return the place after the last element, in its storage."""
    return tensor.offset + 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride, strict=True))


def _overlaps_itself(tensor: PickledTensor) -> bool:
    """Whether a stride is too small for the dimensions with smaller strides. Slicing or transposing never does that."""
    span = 1
    for stride, length in sorted(zip(tensor.stride, tensor.shape, strict=True)):
        if length > 1 and stride < span:
            return True
        span += (length - 1) * stride
    return False


def _check_apart(path: str, tensors: dict[str, PickledTensor]) -> None:
    """Raise CheckpointError for tensors that overlap. Equal views of a storage are allowed: these are tied weights."""
    views: dict[PickledTensor, str] = {}
    for name, tensor in tensors.items():
        views.setdefault(tensor, name)
    before: list[PickledTensor] = []  # earlier views of the same storage that end after the start of this one
    for view in sorted(views, key=lambda view: (view.storage.key, view.offset)):
        before = [other for other in before if other.storage.key == view.storage.key and _end(other) > view.offset]
        for other in before:
            if len(before) > _MAX_INTERLEAVED or _overlap(other, view):
                names = f"{views[other][:80]!r} and {views[view][:80]!r}"
                raise CheckpointError(f"{path}: tensors {names} overlap in their storage {view.storage.key[:80]}")
        before.append(view)


def _overlap(a: PickledTensor, b: PickledTensor) -> bool:
    """Whether two views may share an element. Interleaved views with different strides are taken to share one.

    With equal strides, an element's offset can be written as one index per dimension, largest stride first, like
    the digits of a number. If no index of a view carries into the next dimension, both views are boxes. Two boxes
    share no element if their ranges are apart in at least one dimension.
    """
    if a.stride != b.stride or 0 in a.stride:
        return True
    dimensions = sorted(zip(a.stride, a.shape, b.shape, strict=True), reverse=True)
    a_rest, b_rest = a.offset, b.offset
    for i, (stride, a_length, b_length) in enumerate(dimensions):
        a_start, a_rest = divmod(a_rest, stride)
        b_start, b_rest = divmod(b_rest, stride)
        inner = dimensions[i + 1 :]
        if a_rest + sum((n - 1) * s for s, n, _ in inner) >= stride:
            return True
        if b_rest + sum((n - 1) * s for s, _, n in inner) >= stride:
            return True
        if a_start + a_length <= b_start or b_start + b_length <= a_start:
            return False
    return True
