"""SentencePiece tokenizers (tokenizer.model), using the sentencepiece package.

A piece spells a space as U+2581. Byte pieces <0xNN> stand for the bytes of characters that have no piece.
Most models put a space before every text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..process.exit_gate import GATE
from ..shown import shown
from .base import Tokenizer, TokenizerSpec, is_chat_marker, utf8
from .sentencepiece_proto import as_control_pieces, read_model_proto

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_SPACE = "\u2581"


def open_processor(data: bytes) -> SentencePieceProcessor:
    """Open a SentencePiece model with the sentencepiece package.

    Args:
        data: the model, which read_model_proto() has checked.

    Raises:
        ValueError: the package refuses the model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise ValueError(shown(error)) from error  # the package quotes pieces, which may have line breaks


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer with the results of the sentencepiece package.

    Text never becomes CONTROL pieces. It may become USER_DEFINED pieces; the exceptions are pieces spelled like
    chat markers, BOS and EOS, which count as CONTROL.

    Args:
        spec: its data is a SentencePiece model.
        vocab_size: the model's number of tokens; None: as many as the tokenizer has.

    Raises:
        CheckpointError: the SentencePiece model is damaged, or has tokens that the model lacks.
    """

    def __init__(self, spec: TokenizerSpec, vocab_size: int | None) -> None:
        try:
            proto = read_model_proto(spec.data)
        except ValueError as error:
            raise CheckpointError(f"the tokenizer is damaged: {error}") from error
        if vocab_size is not None and proto.n_pieces > vocab_size:
            raise CheckpointError(f"the tokenizer has {proto.n_pieces} tokens, the model only {vocab_size}")
        self.prepends_space = proto.add_dummy_prefix
        ends = {spec.bos_id, *spec.eos_ids}
        offsets = [at for name, token_id, at in proto.user_defined if token_id in ends or is_chat_marker(name)]
        try:
            self._processor = open_processor(as_control_pieces(spec.data, offsets))
            special = self._read_pieces(self._processor.id_to_piece(list(range(proto.n_pieces))))
        except ValueError as error:  # of open_processor(), or a text of the package is not UTF-8
            raise CheckpointError(f"the tokenizer is damaged: {error!s:.200}") from error
        super().__init__(spec, proto.n_pieces if vocab_size is None else vocab_size, special)

    def _read_pieces(self, pieces: list[str]) -> dict[str, int]:
        """Note what each piece adds to a text; returns the ids of control pieces by name.

        The package is called once for all pieces. A call for each token during generation would take longer than
        sampling it.
        """
        ids = list(range(len(pieces)))
        unknown: bytes = self._processor.decode([self._processor.unk_id()]).encode()
        processor = self._processor
        kinds = zip(processor.is_control(ids), processor.is_unknown(ids), processor.is_byte(ids), strict=True)
        special: dict[str, int] = {}
        self._bytes: list[bytes] = []
        self._spaced: set[int] = set()  # tokens that begin with a space
        for token_id, (piece, (is_control, is_unknown, is_byte)) in enumerate(zip(pieces, kinds, strict=True)):
            if is_control:
                special[piece] = token_id
                self._bytes.append(b"")
            elif is_unknown:
                self._bytes.append(unknown)
            elif is_byte:
                self._bytes.append(bytes([int(piece[1:-1], 16)]))
            else:
                self._bytes.append(piece.replace(_SPACE, " ").encode())
                if piece.startswith(_SPACE):
                    self._spaced.add(token_id)
        return special

    def encode(self, text: str) -> list[int]:
        """See Tokenizer.encode(). A character without a piece or byte pieces becomes the unknown token."""
        utf8(text)
        with GATE:
            ids: list[int] = self._processor.encode(text)
        return ids

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See Tokenizer.token_bytes()."""
        token_id = self._checked_id(token_id)
        if token_id >= len(self._bytes):
            return b""
        if first and self.prepends_space and token_id in self._spaced:
            return self._bytes[token_id][1:]
        return self._bytes[token_id]
