"""Makes the tokenizer of make_random_model.py: SentencePiece's special tokens, bytes, a space, then made-up words.

It encodes any text byte by byte. The output of a random model can be read: word17 word4. "[INST]" has three tokens, as
in Llama-2's vocabulary, so the model gets Llama-2's chat format.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir))

from pyllama2.tokenizer.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, build_model

_CHAT = ("\u2581[", "IN", "ST", "INST")  # merged in this order; "]" is a byte


def vocabulary(vocab_size: int) -> list[tuple[str, float, int]]:
    """Return text, score and type of each piece. Types have the same numbers in GGUF files."""
    entries = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    entries += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    entries += [(text, NORMAL) for text in ("\u2581", *_CHAT)]
    if vocab_size < len(entries):
        raise SystemExit(f"a tokenizer needs a vocabulary of at least {len(entries)} tokens")
    entries += [(f"\u2581word{i}", NORMAL) for i in range(vocab_size - len(entries))]
    return [(text, -float(i), type) for i, (text, type) in enumerate(entries)]


def sentencepiece_model(vocab_size: int) -> bytes:
    """Return the vocabulary as a tokenizer.model."""
    return build_model(vocabulary(vocab_size), unk_id=0, bos_id=1, eos_id=2)
