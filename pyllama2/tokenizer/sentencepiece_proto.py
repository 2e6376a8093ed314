"""A reader and a writer of SentencePiece models (tokenizer.model).

A .model file is a protobuf message. The fields used here are

    ModelProto       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec   4 self_test_data   5 denormalizer_spec
    SentencePiece    1 piece (text)   2 score (float)   3 type
    TrainerSpec      3 model_type   4 vocab_size   35 byte_fallback   40 .. 43 ids and 45 .. 48 names of special pieces
                     44 unk_surface, what an unknown token becomes as text
    NormalizerSpec   1 name   2 precompiled_charsmap   3 add_dummy_prefix (true unless written)
                     4 remove_extra_whitespaces   5 escape_whitespaces

The reader checks a file before the sentencepiece package gets the data. For a hostile file, the package needs memory of
up to twenty times its size. This reader needs little, and counts the pieces, so that a vocabulary larger than the
model's is refused early.

A charsmap is uint32 n, a trie of n bytes, and the replacement texts of characters in the trie, each followed by
a NUL. With a long replacement, a short text could fill all memory.

The writer makes a model from pieces that another format stores.
Source: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .limits import MAX_SPECIAL_LENGTH, MAX_TOKEN_LENGTH, MAX_TOKENS, check_special_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces

# The largest published models have 262,144 pieces in 4.7 MB.
_MAX_BYTES = 16 << 20
# The longest replacement of a character in NFKC has 33 bytes.
_MAX_REPLACEMENT = 64
# Bytes of self_test_data, which the package encodes when it loads the model. Published models have none.
_MAX_SELF_TEST = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_TYPE_BPE = 2
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True)
class ModelProto:
    """What a SentencePiece model says about itself.

    Attributes:
        n_pieces: size of the vocabulary.
        add_dummy_prefix: whether a space is put before every text.
        user_defined: text and id of each piece of type USER_DEFINED, and the offset of the byte with its type.
    """

    n_pieces: int
    add_dummy_prefix: bool
    user_defined: tuple[tuple[str, int, int], ...]


def read_model_proto(data: bytes) -> ModelProto:
    """Read and check a whole SentencePiece model.

    Raises:
        ValueError: data is not a well-formed SentencePiece model, or exceeds a limit.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are too many for a SentencePiece model (at most {_MAX_BYTES})")
    n_pieces = 0
    add_dummy_prefix = True
    user_defined: list[tuple[str, int, int]] = []
    special: list[str] = []
    for field, start, end in _fields(data, 0, len(data)):
        if field == (1, _BYTES):
            n_pieces += 1
            if n_pieces > MAX_TOKENS:
                raise ValueError(f"more than {MAX_TOKENS} pieces")
            text, kind, kind_offset = _read_piece(data, start, end)
            if kind == USER_DEFINED:
                user_defined.append((text, n_pieces - 1, kind_offset))
            if kind in (CONTROL, USER_DEFINED):
                special.append(text)
        elif field == (2, _BYTES):
            _check_trainer(data, start, end)
        elif field == (3, _BYTES):
            add_dummy_prefix = _read_normalizer(data, start, end, add_dummy_prefix)
        elif field == (4, _BYTES) and end - start > _MAX_SELF_TEST:
            raise ValueError(f"self_test_data of {end - start} bytes")
        elif field == (5, _BYTES):
            _read_normalizer(data, start, end, False)
    if not n_pieces:
        raise ValueError("no pieces, so this is not a SentencePiece model")
    check_special_tokens(special)
    return ModelProto(n_pieces, add_dummy_prefix, tuple(user_defined))


def as_control_pieces(data: bytes, offsets: list[int]) -> bytes:
    """Copy a SentencePiece model and change the type of some pieces to CONTROL.

    Args:
        data: the model.
        offsets: where the bytes of their types are, as ModelProto.user_defined has them.
    """
    changed = bytearray(data)
    for offset in offsets:
        changed[offset] = CONTROL
    return bytes(changed)


def build_model(
    pieces: Sequence[tuple[str, float, int]],
    *,
    unk_id: int,
    bos_id: int | None,
    eos_id: int | None,
    add_dummy_prefix: bool = True,
) -> bytes:
    """Make a BPE model. It neither normalizes nor strips text.

    Args:
        pieces: (text, score, type) of each token, in the order of ids. Texts spell a space as U+2581. Higher scores
            are merged first. With BYTE pieces (<0x00> .. <0xFF>), characters without a piece become bytes.
        unk_id: the unknown token.
        bos_id: the token that begins a sequence, None for none.
        eos_id: the token that ends a text, None for none.
        add_dummy_prefix: whether a space is put before every text.

    Returns:
        The bytes of a .model file.

    Raises:
        ValueError: a special id is outside of pieces, or a text has a lone surrogate.
    """
    special = {"unk_id": unk_id, "bos_id": bos_id, "eos_id": eos_id}
    for name, token_id in special.items():
        if token_id is not None and not 0 <= token_id < len(pieces):
            raise ValueError(f"{name} is {token_id}, but there are {len(pieces)} pieces")
    return b"".join(
        [
            encode_pieces(pieces),
            _message(2, _trainer_spec(pieces, [*special.values(), None])),
            _message(3, _normalizer_spec(add_dummy_prefix)),
        ]
    )


def encode_pieces(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """Encode pieces as fields of a ModelProto. Appended to a finished model, they are its next tokens.

    Args:
        pieces: (text, score, type) of each token.

    Raises:
        ValueError: a text has a lone surrogate.
    """
    piece_key = text_key = _key(1, _BYTES)
    score_key, type_key = _key(2, _FIXED32), _key(3, _VARINT)
    parts: list[bytes] = []
    for text, score, kind in pieces:
        data = text.encode()
        fields = (text_key, _encoded(len(data)), data, score_key, _FLOAT.pack(score), type_key, _encoded(kind))
        piece = b"".join(fields)
        parts += (piece_key, _encoded(len(piece)), piece)
    return b"".join(parts)


def _read_piece(data: bytes, start: int, end: int) -> tuple[str, int, int]:
    """Return text and type of the piece data[start:end], and the offset of the byte with its type."""
    text, kind, kind_offset = "", NORMAL, -1
    for field, at, stop in _fields(data, start, end):
        if field == (1, _BYTES):
            try:
                text = data[at:stop].decode()
            except UnicodeDecodeError:
                raise ValueError(f"the piece at byte {at} of the SentencePiece model is not UTF-8") from None
        elif field == (3, _VARINT):
            kind, kind_offset = data[at], at
            if stop - at > 1:
                raise ValueError(f"a piece of unknown type at byte {at} of the SentencePiece model")
    if len(text) > MAX_TOKEN_LENGTH:
        raise ValueError(f"the piece {text[:40]!r}... of {len(text)} characters is longer than {MAX_TOKEN_LENGTH}")
    return text, kind, kind_offset


def _check_trainer(data: bytes, start: int, end: int) -> None:
    for field, at, stop in _fields(data, start, end):
        if field == (44, _BYTES) and stop - at > MAX_SPECIAL_LENGTH:
            raise ValueError(f"an unk_surface of {stop - at} bytes")


def _read_normalizer(data: bytes, start: int, end: int, add_dummy_prefix: bool) -> bool:
    """Check the NormalizerSpec data[start:end]; returns its add_dummy_prefix, or the argument if it has none."""
    for field, at, stop in _fields(data, start, end):
        if field == (3, _VARINT):
            add_dummy_prefix = data[at] != 0
        elif field == (2, _BYTES) and stop > at:
            texts = at + 4 + int.from_bytes(data[at : at + 4], "little")
            longest = max(map(len, data[texts:stop].split(b"\0")))
            if longest > _MAX_REPLACEMENT:
                raise ValueError(f"its normalizer makes {longest} bytes of one character, more than {_MAX_REPLACEMENT}")
    return add_dummy_prefix


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield the fields of the message data[position:end]: (number, wire type), start and end of the value."""
    while position < end:  # numbers of one byte are read here, without a call: a model has a million of them
        key, start = data[position], position + 1
        if key >= 0x80:
            key, start = _read_varint(data, position, end)
            if key >> 32:
                raise ValueError(f"bad field number at byte {position} of the SentencePiece model")
        wire = key & 7
        if wire == _BYTES:
            if start < end and data[start] < 0x80:
                length, start = data[start], start + 1
            else:
                length, start = _read_varint(data, start, end)
            position = start + length
        elif wire == _VARINT:
            _, position = _read_varint(data, start, end)
        elif wire in (_FIXED32, _FIXED64):
            position = start + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {start - 1} of the SentencePiece model")
        if position > end:
            raise ValueError(f"the field at byte {start} of the SentencePiece model is longer than what it lies in")
        yield (key >> 3, wire), start, position


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number at position (7 bits in each byte, low bits first), and the position after it."""
    if position < end and data[position] < 0x80:
        return data[position], position + 1
    value = 0
    for i in range(position, min(position + 10, end)):
        value |= (data[i] & 0x7F) << 7 * (i - position)
        if data[i] < 0x80:
            if data[i] == 0 and i > position:
                break  # longer than needed: no writer makes such a number, and two readers may disagree on it
            return value, i + 1
    raise ValueError(f"bad number at byte {position} of the SentencePiece model")


def _trainer_spec(pieces: Sequence[tuple[str, float, int]], special: list[int | None]) -> bytes:
    fields = [_number(3, _MODEL_TYPE_BPE), _number(4, len(pieces))]
    if any(kind == BYTE for _, _, kind in pieces):
        fields.append(_number(35, 1))
    for i, token_id in enumerate(special):  # unk, bos, eos, pad
        fields.append(_number(40 + i, -1 if token_id is None else token_id))
        if token_id is not None:
            fields.append(_message(45 + i, pieces[token_id][0].encode()))
    return b"".join(fields)


def _normalizer_spec(add_dummy_prefix: bool) -> bytes:
    return b"".join([_message(1, b"identity"), _number(3, add_dummy_prefix), _number(4, 0), _number(5, 1)])


def _message(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _encoded(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _encoded(value & (1 << 64) - 1)  # a negative int32 takes ten bytes


def _key(field: int, wire: int) -> bytes:
    return _encoded(field << 3 | wire)


def _encoded(value: int) -> bytes:
    """A number as it is in the file: see _read_varint()."""
    if value <= 0x7F:
        return bytes((value,))
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
