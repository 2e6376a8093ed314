"""Reads the tokenizer file of a checkpoint. Its contents, not its name, decide what it is.

    tokenizer.model    a SentencePiece model, used as it is
    tokenizer.json     of Hugging Face; see tokenizer_json.py
    tok512.bin ...     of llama2.c: int32 max_token_length, then per token float32 score, int32 length, bytes;
                       token 0 is <unk>, 1 "\\n<s>\\n", 2 "\\n</s>\\n", 3 .. 258 <0x00> .. <0xFF>; spaces as they are

Sources: https://github.com/google/sentencepiece and https://github.com/karpathy/llama2.c (tokenizer.py).
"""

from __future__ import annotations

import math
import os
import struct

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.limits import MAX_TOKENS
from ..tokenizer.sentencepiece import open_processor
from ..tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, build_model, read_model_proto
from .file_kinds import describe_file, is_tiktoken
from .tokenizer_json import TokenizerFile, read_tokenizer_json

_MAX_MODEL_BYTES = 16 << 20
_MAX_TOKEN_BYTES = 1 << 16
_SPACE = "\u2581"


def read_tokenizer_file(path: str | os.PathLike[str], vocab_size: int | None = None) -> TokenizerSpec:
    """Read a tokenizer file. The file itself decides on BOS, EOS and add_bos.

    Args:
        path: the file.
        vocab_size: the model's number of tokens; None: not checked.

    Raises:
        CheckpointError: the file is damaged, is no tokenizer, or has more tokens than the model.
    """
    return inspect_tokenizer_file(path, vocab_size).spec


def inspect_tokenizer_file(path: str | os.PathLike[str], vocab_size: int | None = None) -> TokenizerFile:
    """Read a tokenizer file and its special tokens, for checkpoints that choose BOS and EOS in another file.

    Args:
        path: the file.
        vocab_size: the model's number of tokens; None: not checked.

    Raises:
        CheckpointError: the file is damaged, is no tokenizer, or has more tokens than the model.
    """
    with MappedFile(path) as file:
        head = file.bytes(0, min(file.size, 512))
        if head.lstrip()[:1] == b"{":
            return read_tokenizer_json(file.path, vocab_size)
        if is_tiktoken(file):
            raise CheckpointError(
                f"{file.path} is a tiktoken vocabulary, as Llama-3 has it, not a SentencePiece model; "
                "give Hugging Face's tokenizer.json of the same model instead"
            )
        if file.size > _MAX_MODEL_BYTES:
            raise CheckpointError(f"{file.path} is no tokenizer: {file.size} bytes exceed {_MAX_MODEL_BYTES}")
        data = file.bytes(0, file.size)
        if head[:1] == b"\n" and head[1:2] != b"\0":  # the key of the first piece, and not 10 as an int32
            return _sentencepiece(file.path, data, vocab_size)
        if len(data) >= 12 and 0 < int.from_bytes(data[:4], "little") <= _MAX_TOKEN_BYTES:
            return _sentencepiece(file.path, _convert_llama2c(file.path, data, vocab_size), vocab_size)
        raise CheckpointError(f"{file.path} is no tokenizer; it looks like {describe_file(file)}")


def _sentencepiece(path: str, data: bytes, vocab_size: int | None) -> TokenizerFile:
    try:
        n_pieces = read_model_proto(data).n_pieces
        if vocab_size is not None and n_pieces > vocab_size:
            raise CheckpointError(f"{path}: the tokenizer has {n_pieces} tokens, the model only {vocab_size}")
        processor = open_processor(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, or no SentencePiece model: {error}") from error
    control_ids = [token_id for token_id in range(n_pieces) if processor.is_control(token_id)]
    special = {processor.id_to_piece(token_id): token_id for token_id in control_ids}
    bos_id, eos_id = processor.bos_id(), processor.eos_id()
    eos_ids = (eos_id,) if eos_id >= 0 else ()
    spec = TokenizerSpec("sentencepiece", data, bos_id if bos_id >= 0 else None, eos_ids, bos_id >= 0)
    return TokenizerFile(spec, special, n_pieces)


def _convert_llama2c(path: str, data: bytes, vocab_size: int | None) -> bytes:
    """Make a SentencePiece model from a tokenizer file of llama2.c."""
    longest = int.from_bytes(data[:4], "little")
    pieces: list[tuple[str, float, int]] = []
    position = 4
    most = MAX_TOKENS if vocab_size is None else min(vocab_size, MAX_TOKENS)
    while position < len(data):
        token_id = len(pieces)
        if token_id == most:
            reason = "which is what the model has" if token_id == vocab_size else "which is too many"
            raise CheckpointError(f"{path} has more than {most} tokens, {reason}")
        if len(data) - position < 8:
            raise CheckpointError(f"{path} is truncated in token {token_id}")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 < length <= min(longest, len(data) - position) or not math.isfinite(score):
            raise CheckpointError(
                f"{path}: token {token_id} of {length} bytes with score {score} is damaged or cut off"
            )
        pieces.append(_llama2c_piece(path, token_id, data[position : position + length], score))
        position += length
    if len(pieces) < 3 or (vocab_size is not None and len(pieces) != vocab_size):
        raise CheckpointError(f"{path} has {len(pieces)} tokens, the model has {vocab_size or 'at least 3'}")
    return build_model(pieces, unk_id=0, bos_id=1, eos_id=2)


def _llama2c_piece(path: str, token_id: int, raw: bytes, score: float) -> tuple[str, float, int]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: token {token_id} is not UTF-8: {raw[:40]!r}") from error
    if token_id < 3:
        text = text.strip("\n")
        if text != ("<unk>", "<s>", "</s>")[token_id]:
            raise CheckpointError(f"{path} is no tokenizer of llama2.c: its token {token_id} is {text[:40]!r}")
        return text, score, UNKNOWN if token_id == 0 else CONTROL
    if token_id < 259 and text == f"<0x{token_id - 3:02X}>":
        return text, score, BYTE
    return text.replace(" ", _SPACE), score, NORMAL
