"""The tokenizer and the chat template of a Hugging Face directory.

tokenizer.model            SentencePiece; preferred when it is there
tokenizer.json             everything else
tokenizer_config.json      names of BOS and EOS, add_bos_token, tokens added to a SentencePiece model, chat_template
chat_template.jinja        the chat template, in newer directories
config.json, generation_config.json    bos_token_id, eos_token_id (a number or a list)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from ..tokenizer.base import TokenizerSpec
from ..tokenizer.limits import MAX_SPECIAL_TOKENS, check_special_tokens
from ..tokenizer.sentencepiece_proto import CONTROL, USER_DEFINED, encode_pieces
from .file_kinds import is_tiktoken
from .json_file import JsonObject
from .tokenizer_files import inspect_tokenizer_file
from .tokenizer_json import TokenizerFile

_MAX_TEMPLATE = 1 << 20


@dataclass
class DirectoryTokenizer:
    """The tokenizer and the chat template of a directory.

    Attributes:
        spec: the tokenizer, None when the directory has none.
        chat_template: Jinja source, None when the directory has none.
        files: the files that were read.
    """

    spec: TokenizerSpec | None = None
    chat_template: str | None = None
    files: list[str] = field(default_factory=list)


def read_tokenizer(folder: str, config: JsonObject, path: str | None, vocab_size: int) -> DirectoryTokenizer:
    """Read the tokenizer and the chat template of a directory.

    Args:
        folder: the directory.
        config: its config.json.
        path: a tokenizer file that replaces the directory's own, or None.
        vocab_size: the model's number of tokens.

    Raises:
        CheckpointError: a file is damaged or not supported, or the tokenizer has more tokens than the model.
    """
    settings = _optional(folder, "tokenizer_config.json")
    result = DirectoryTokenizer(files=[settings.path] if settings.values else [])
    result.chat_template = _chat_template(folder, settings, result.files)
    path = path or _find(folder)
    if path is None:
        return result
    result.files.append(path)
    tokenizer = _with_added_tokens(inspect_tokenizer_file(path, vocab_size), settings, vocab_size)
    generation = _optional(folder, "generation_config.json")
    result.spec = _with_special_ids(tokenizer, settings, [generation, config])
    return result


def _optional(folder: str, name: str) -> JsonObject:
    """Read a JSON file of the directory; an absent file is an object without fields."""
    path = os.path.join(folder, name)
    return JsonObject.read(path) if os.path.exists(path) else JsonObject(path, {})


def _find(folder: str) -> str | None:
    model, json = (os.path.join(folder, name) for name in ("tokenizer.model", "tokenizer.json"))
    if os.path.exists(model) and os.path.exists(json):
        with MappedFile(model) as file:
            return json if is_tiktoken(file) else model
    return next((path for path in (model, json) if os.path.exists(path)), None)


def _chat_template(folder: str, settings: JsonObject, files: list[str]) -> str | None:
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        files.append(path)
        with MappedFile(path) as file:
            if file.size > _MAX_TEMPLATE:
                raise CheckpointError(f"{path}: {file.size} bytes exceed the limit of {_MAX_TEMPLATE}")
            try:
                return file.bytes(0, file.size).decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path} is not UTF-8 text") from error
    template = settings.get("chat_template", (str, list))
    if isinstance(template, list):  # several templates, each with a name
        defaults = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = defaults[0].get("template") if defaults else None
    if not isinstance(template, str):
        return None
    if len(template) > _MAX_TEMPLATE:
        raise CheckpointError(f"{settings.path}: a chat template of {len(template)} characters is too long")
    try:
        template.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise CheckpointError(f"{settings.path}: the chat template is not Unicode text: {error.reason}") from error
    return template


def _with_added_tokens(tokenizer: TokenizerFile, settings: JsonObject, vocab_size: int) -> TokenizerFile:
    """Append to a SentencePiece tokenizer the tokens that fine-tuning added, such as <|im_start|>."""
    if tokenizer.spec.kind != "sentencepiece":
        return tokenizer
    added = settings.child("added_tokens_decoder").values
    pieces: list[tuple[str, float, int]] = []
    special = dict(tokenizer.special_ids)
    for token_id in range(tokenizer.n_tokens, vocab_size):
        if str(token_id) not in added:
            break
        entry = added[str(token_id)]
        token = JsonObject(f"{settings.path}: the added token {token_id}", entry if isinstance(entry, dict) else {})
        content = token.get("content", str, "")
        if not content:
            raise CheckpointError(f"{token.path} has no content")
        is_special = token.get("special", bool, False)
        pieces.append((content.replace(" ", "\u2581"), 0.0, CONTROL if is_special else USER_DEFINED))
        if is_special:
            special[content] = token_id
    try:
        check_special_tokens([content for content, _, _ in pieces])
        data = tokenizer.spec.data + encode_pieces(pieces)
    except ValueError as error:  # also for a lone surrogate
        raise CheckpointError(f"{settings.path}: {error!s:.200}") from error
    return TokenizerFile(replace(tokenizer.spec, data=data), special, tokenizer.n_tokens + len(pieces))


def _with_special_ids(tokenizer: TokenizerFile, settings: JsonObject, configs: list[JsonObject]) -> TokenizerSpec:
    """Return the tokenizer's spec with BOS and EOS as the directory names them.

    The files of a directory often disagree on EOS: config.json has that of the base model, and
    generation_config.json or the tokenizer has that of the fine-tuned one. Each of them ends a text.
    """
    spec = tokenizer.spec
    bos_ids = _named_ids(tokenizer, settings, "bos_token")
    eos_ids = []
    for config in configs:
        bos_ids += _ids(config, "bos_token_id")
        eos_ids += _ids(config, "eos_token_id")
    eos_ids += _named_ids(tokenizer, settings, "eos_token")
    bos_id = bos_ids[0] if bos_ids else spec.bos_id
    add_bos = settings.get("add_bos_token", bool, spec.add_bos)
    return TokenizerSpec(
        spec.kind, spec.data, bos_id, tuple(dict.fromkeys(eos_ids)) or spec.eos_ids, add_bos and bos_id is not None
    )


def _ids(config: JsonObject, name: str) -> list[int]:
    value = config.get(name, (int, list), [])
    ids: list[Any] = value if isinstance(value, list) else [value]
    if len(ids) > MAX_SPECIAL_TOKENS:
        raise CheckpointError(f"{config.path}: {name} lists {len(ids)} tokens, more than {MAX_SPECIAL_TOKENS}")
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < 1 << 31:
            raise CheckpointError(f"{config.path}: {name} is {str(token_id)[:40]!r}, which is no token")
    return ids


def _named_ids(tokenizer: TokenizerFile, settings: JsonObject, name: str) -> list[int]:
    """Return the id of a token that the settings give by its text, or by an object with the text as content."""
    value = settings.get(name, (str, dict))
    text = value.get("content") if isinstance(value, dict) else value
    return [tokenizer.special_ids[text]] if isinstance(text, str) and text in tokenizer.special_ids else []
