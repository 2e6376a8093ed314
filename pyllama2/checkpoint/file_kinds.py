"""Describes a file that no reader accepts, for the error message."""

from __future__ import annotations

import codecs
import re

from ..storage.mapped import MappedFile
from .pth import is_old_torch_file

_SIGNATURES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself (git lfs pull gets it)"),
    (b"GGUF", "a GGUF file"),
    (b"ggjt", "an old GGML file"),
    (b"lmgg", "an old GGML file"),
    (b"PK\3\4", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"(\xb5/\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80", "a Python pickle, which is never loaded"),
)
_HTML = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def is_tiktoken(file: MappedFile) -> bool:
    """Whether a mapped file is a list of lines "base64 rank", like Llama-3's tokenizer.model."""
    return _TIKTOKEN.match(_head(file)) is not None


def describe_file(file: MappedFile) -> str:
    """Say in a few words what a mapped file seems to be."""
    head = _head(file)
    if is_old_torch_file(file):
        return "a file of torch before version 1.6 (load it with torch and save it again with torch.save)"
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if _HTML.match(head):
        return "a web page"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.lstrip()[:1] in (b"{", b"["):
        return "JSON text"
    if _TIKTOKEN.match(head):
        return "a tiktoken vocabulary"
    if head.count(0) == len(head):
        return "nothing but zeros at its start"
    if _is_text(head):
        return "plain text"
    return f"an unknown kind of data (first bytes {head[:8].hex(' ')})"


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _head(file: MappedFile) -> bytes:
    return file.bytes(0, min(file.size, 512))
