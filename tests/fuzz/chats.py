"""Targets of chats: templates out of models, messages of users, files of conversations, states of caches."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from helpers.tiny_llama import CHATML, PROMPT, write_tiny
from helpers.tiny_tokenizers import tiny_tokenizer

from pyllama2 import Llama
from pyllama2.chat_formats import make_chat_format
from pyllama2.chat_formats.base import ChatFormat
from pyllama2.cli.conversation import read_messages
from pyllama2.errors import CheckpointError, NumericalError

from .mutation import mutate_json, mutate_safetensors
from .target import Target, file_of

_CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "One <|im_start|> two"},
    {"role": "assistant", "content": "ab </s> [/INST"},
    {"role": "user", "content": "\u2581<s"},
]
_TURNS = [_CHAT[0], _CHAT[1], _CHAT[2], _CHAT[1], _CHAT[2]]
_PLAIN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


def _use_template(data: bytes) -> None:
    """A template out of a model's file. Its errors are the model's, or it refuses the messages (ValueError)."""
    chat = make_chat_format(tiny_tokenizer("bpe"), data.decode("utf-8", "replace"))
    try:
        chat.encode(_PLAIN)
    finally:
        chat.close()


@functools.cache
def _formats() -> list[tuple[ChatFormat, frozenset[int]]]:
    """Some chat formats that stay, each with the ids of its tokenizer's special tokens."""
    made = [("sentencepiece", None, "llama2"), ("bpe", None, "chatml"), ("bpe", CHATML, None), ("bpe", None, "llama3")]
    formats = []
    for kind, template, name in made:
        tokenizer = tiny_tokenizer(kind)
        formats.append((make_chat_format(tokenizer, template, name), frozenset(tokenizer.special_tokens.values())))
    return formats


def _use_messages(data: bytes) -> None:
    """Messages of any content in several formats. They become no special token: there are as many as with "a"."""
    messages = json.loads(data)
    refused: Exception | None = None
    for chat, special in _formats():
        for allow_markers in (False, True):
            try:
                ids = chat.encode(messages, allow_markers=allow_markers)
            except (TypeError, ValueError) as error:
                refused = error
                continue
            harmless = chat.encode([m | dict.fromkeys(m.keys() - {"role"}, "a") for m in messages])
            assert [token_id for token_id in ids if token_id in special] == [
                token_id for token_id in harmless if token_id in special
            ]
    if refused is not None:
        raise refused


def _use_conversation(data: bytes) -> None:
    with file_of(data) as path:
        messages = read_messages(path)
    assert all(set(message) == {"role", "content"} for message in messages)


@functools.cache
def _llama() -> Llama:
    with tempfile.TemporaryDirectory() as folder:
        return Llama(write_tiny(Path(folder, "tiny.bin"), max_seq_len=32), n_threads=1)


@functools.cache
def _states() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        _llama().generate([PROMPT, "The"], seed=1, max_tokens=2, ignore_eos=True)
        _llama().save_state(path)
        return [path.read_bytes()]


def _use_state(data: bytes) -> None:
    """A state is loaded, and generation goes on from it."""
    with file_of(data) as path:
        _llama().load_state(path)
    _llama().generate(PROMPT + " the", seed=1, max_tokens=2, ignore_eos=True)


def _dumped(*chats: object) -> list[bytes]:
    return [json.dumps(chat).encode() for chat in chats]


CHATS = (
    Target("template", _use_template, (CheckpointError, ValueError), lambda: [CHATML.encode()]),
    Target("messages", _use_messages, (ValueError, TypeError), lambda: _dumped(_PLAIN, _CHAT), mutate_json),
    Target("conversation", _use_conversation, (ValueError,), lambda: _dumped(_TURNS, []), mutate_json),
    Target("state", _use_state, (CheckpointError, NumericalError), _states, mutate_safetensors),
)
