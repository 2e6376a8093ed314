"""Finds the members of a zip file that stores them without compression.

    member             local header (30 bytes, name, extra field), data, sometimes a data descriptor
    central directory  one entry of 46 bytes, name, extra field and comment per member
    [zip64 end record (56 bytes) and its locator (20)]   if a number in the end record needs more than 16 or 32 bits
    end record         22 bytes, the last ones of the file

Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. torch writes such files, with data
descriptors (flag bit 3) and zeros for the sizes in local headers. The standard library's zipfile is not
used, because it accepts overlapping and compressed members, and comments. Checksums are not verified,
since torch has an option to leave them out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import CheckpointError
from ..storage.mapped import MappedFile

# The 723 tensors of a 70B shard take 60 KB.
_MAX_DIRECTORY = 4 << 20

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ALLOWED_FLAGS = 1 << 3 | 1 << 11  # a data descriptor follows; the name is UTF-8
_IN_EXTRA_16, _IN_EXTRA_32 = 0xFFFF, 0xFFFFFFFF  # these mean that the number is in the zip64 fields


@dataclass(frozen=True)
class Member:
    """The data of one member.

    Attributes:
        offset: bytes from the start of the file.
        size: bytes.
    """

    offset: int
    size: int


def read_members(file: MappedFile) -> dict[str, Member]:
    """Read the directory of a zip file.

    Args:
        file: the mapped zip file.

    Returns:
        The members by name.

    Raises:
        CheckpointError: the zip file is damaged or exceeds a limit, or members are compressed, truncated or overlap.
    """
    count, start, end = _find_directory(file)
    if end - start > _MAX_DIRECTORY:
        raise CheckpointError(f"{file.path}: a zip directory of {end - start} bytes exceeds {_MAX_DIRECTORY}")
    directory = file.bytes(start, end - start)
    members: dict[str, Member] = {}
    spans = []  # (offset of the local header, end of the data, name)
    position = 0
    while position < len(directory):
        name, flags, size, header, position = _read_entry(file.path, directory, position)
        if name in members:
            raise CheckpointError(f"{file.path}: the zip member {name[:80]!r} appears twice")
        offset = _check_local_header(file, name, flags, size, header)
        members[name] = Member(offset, size)
        spans.append((header, offset + size, name))
    if len(members) != count:
        raise CheckpointError(f"{file.path}: the zip directory has {len(members)} entries and announces {count}")
    spans.sort()
    for (_, member_end, name), (following, _, _) in zip(spans, [*spans[1:], (start, 0, "")], strict=True):
        if member_end > following:
            raise CheckpointError(f"{file.path}: the zip member {name[:80]!r} overlaps what follows it")
    return members


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """Return the number of entries, the start and the end of the central directory."""
    end = file.size - _END.size
    if end < 0 or file.bytes(end, 4) != b"PK\5\6":
        raise CheckpointError(f"{file.path} is truncated or damaged: it does not end with a zip directory")
    _, disk, start_disk, here, count, size, start, comment = _END.unpack(file.bytes(end, _END.size))
    numbers = (disk, start_disk, here, count, size, start)
    if end >= _LOCATOR.size and file.bytes(end - _LOCATOR.size, 4) == b"PK\6\7":
        end, wide = _read_zip64_end(file, end - _LOCATOR.size)
        for number, full, mark in zip(numbers, wide, (*[_IN_EXTRA_16] * 4, *[_IN_EXTRA_32] * 2), strict=True):
            if number not in (mark, full):
                raise CheckpointError(f"{file.path}: the two end records of the zip directory disagree")
        numbers = wide
    disk, start_disk, here, count, size, start = numbers
    if disk or start_disk or here != count or comment:
        raise CheckpointError(f"{file.path}: a zip file in several parts or with a comment is no checkpoint")
    if start + size != end:
        raise CheckpointError(
            f"{file.path}: the zip directory should end at byte {end}, but it has {size} bytes at {start}"
        )
    return count, start, end


def _read_zip64_end(file: MappedFile, locator: int) -> tuple[int, tuple[int, int, int, int, int, int]]:
    """Read the zip64 end record.

    Returns its offset, and disk, disk of the directory, entries on this disk and in all, size and start.
    """
    _, record_disk, record, disks = _LOCATOR.unpack(file.bytes(locator, _LOCATOR.size))
    if record_disk or disks != 1 or record + _END64.size != locator:
        raise CheckpointError(f"{file.path}: the zip64 locator at byte {locator} is damaged")
    signature, length, _, _, *numbers = _END64.unpack(file.bytes(record, _END64.size))
    if signature != b"PK\6\6" or length != _END64.size - 12:
        raise CheckpointError(f"{file.path}: the zip64 end record at byte {record} is damaged")
    disk, start_disk, here, count, size, start = numbers
    return record, (disk, start_disk, here, count, size, start)


def _read_entry(path: str, directory: bytes, position: int) -> tuple[str, int, int, int, int]:
    """Return name, flags, size, offset of the local header, and where the next entry starts."""
    if len(directory) - position < _ENTRY.size:
        raise CheckpointError(f"{path}: the last entry of the zip directory is cut off")
    fields = _ENTRY.unpack_from(directory, position)
    signature, _, _, flags, method, _, _, _, packed, size, name_length, extra_length, comment_length = fields[:13]
    disk, _, _, header = fields[13:]
    name_end = position + _ENTRY.size + name_length
    extra_end = name_end + extra_length
    following = extra_end + comment_length
    if signature != b"PK\1\2" or following > len(directory):
        raise CheckpointError(f"{path}: the entry at byte {position} of the zip directory is damaged")
    name = _checked_name(path, directory[position + _ENTRY.size : name_end])
    size, packed, header = _zip64_numbers(path, name, directory[name_end:extra_end], [size, packed, header])
    if method != 0 or packed != size:
        raise CheckpointError(f"{path}: the zip member {name!r} is compressed; torch stores members as they are")
    if flags & ~_ALLOWED_FLAGS or disk:
        raise CheckpointError(f"{path}: the zip member {name!r} is encrypted or has the unknown flags {flags:#06x}")
    return name, flags, size, header, following


def _checked_name(path: str, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: the name of a zip member is not UTF-8: {raw[:80]!r}") from error
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise CheckpointError(f"{path}: {name[:80]!r} is no name for a zip member of a checkpoint")
    return name


def _zip64_numbers(path: str, name: str, extra: bytes, numbers: list[int]) -> list[int]:
    """Replace numbers that need more than 32 bits by those in the extra field, which has them in the same order."""
    wanted = [i for i, number in enumerate(numbers) if number == _IN_EXTRA_32]
    if not wanted:
        return numbers
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1 and 8 * len(wanted) <= length <= len(extra) - position:
            for i, number in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, position), strict=True):
                numbers[i] = number
            return numbers
        position += length
    raise CheckpointError(f"{path}: the zip member {name[:80]!r} lacks its zip64 sizes")


def _check_local_header(file: MappedFile, name: str, flags: int, size: int, header: int) -> int:
    """Return where the data of a member starts. Raises CheckpointError if header and directory entry disagree."""
    signature, _, local_flags, method, _, _, _, packed, unpacked, name_length, extra_length = _LOCAL.unpack(
        file.bytes(header, _LOCAL.size)
    )
    # A writer that learns the size only at the end writes 0 here. A writer of zip64 writes the mark.
    sizes = {size, _IN_EXTRA_32} | ({0} if flags & 1 << 3 else set())
    if (
        signature != b"PK\3\4"
        or (local_flags, method) != (flags, 0)
        or not {packed, unpacked} <= sizes
        or file.bytes(header + _LOCAL.size, name_length) != name.encode()
    ):
        raise CheckpointError(f"{file.path}: the zip member {name[:80]!r} and its local header disagree")
    offset: int = header + _LOCAL.size + name_length + extra_length
    if offset + size > file.size:
        raise CheckpointError(
            f"{file.path} is truncated: the zip member {name[:80]!r} has {size} bytes at {offset}, "
            f"the file has {file.size}"
        )
    return offset
