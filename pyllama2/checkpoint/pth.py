"""A torch file (.pth, .pt, .bin) of a state dict, read without torch and mapped in place.

It is a zip file (zip_members.py) with one folder at its top:

    NAME/data.pkl     a pickle (pickle_reader.py): tensors as views of storages
    NAME/data/KEY     the numbers of storage KEY
    NAME/byteorder    "little" or "big", since torch 2.1
    NAME/version, NAME/.data/serialization_id, ...   not needed

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html. Used by meta.py.
"""

from __future__ import annotations

import os

from ..errors import CheckpointError
from ..mapped import MappedFile
from .pickle_reader import MAX_BYTES, PickledTensor, read_state_dict
from .stored_tensor import StoredTensor
from .zip_members import Member, read_members

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
# The first pickle of a file that torch before 1.6 wrote: protocol 2, the number 0x1950a86a20f9469cfc6c.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_zip(file: MappedFile) -> bool:
    """Whether a mapped file starts like a zip file."""
    return file.size >= 4 and file.bytes(0, 4) == b"PK\3\4"


def is_old_torch_file(file: MappedFile) -> bool:
    """Whether a mapped file is of the format that torch wrote before version 1.6."""
    return file.size >= len(_OLD_MAGIC) and file.bytes(0, len(_OLD_MAGIC)) == _OLD_MAGIC


def read_pth(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a torch file by name, none of them read yet. Raises CheckpointError."""
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
    return {name: _locate(file, members, folder, name, tensor) for name, tensor in pickled.items()}


def _folder(file: MappedFile, members: dict[str, Member]) -> str:
    """The one folder at the top of the zip file that has a data.pkl."""
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
    """The tensor in the file, when it lies inside its storage and its storage is what the member holds."""
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
    last, count, row_major = 0, 1, True
    for length, stride in zip(tensor.shape[::-1], tensor.stride[::-1], strict=True):
        row_major = row_major and (stride == count or length == 1)
        last += (length - 1) * stride
        count *= length
    # count: strides of 0 would make a huge tensor of one number
    if not 1 <= count <= storage.numel or tensor.offset + last >= storage.numel:
        raise CheckpointError(
            f"{where} of shape {tensor.shape} at {tensor.offset} does not fit its storage of {storage.numel} numbers"
        )
    strides = None if row_major else tensor.stride
    return StoredTensor(file, storage.dtype, tensor.shape, member.offset + tensor.offset * size, strides)
