"""open_checkpoint(): the reader for what is at a path.

Readers of other projects' files are imported when one is needed, so that the import of the package is faster.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import CheckpointError
from ..storage.mapped import MappedFile
from ..storage.model_file import is_model_file
from ..storage.safetensors import looks_like_safetensors
from .base import Checkpoint
from .own_file import OwnCheckpoint


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    max_seq_len: int | None = None,
    norm_eps: float | None = None,
) -> Checkpoint:
    """Open a checkpoint; its contents, not its name, decide which reader is used.

    Args:
        path: a file or a directory.
        tokenizer: path of a tokenizer file that replaces the checkpoint's own.
        max_seq_len: longest sequence in tokens, instead of the checkpoint's.
        norm_eps: epsilon of RMSNorm, instead of the checkpoint's.

    Returns:
        The checkpoint. The caller closes it.

    Raises:
        CheckpointError: there is no checkpoint at path, or it cannot be read.
        ValueError: max_seq_len or norm_eps is out of range.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise CheckpointError(f"there is no file or directory {path}")
    reader = _directory_reader(path) if os.path.isdir(path) else _file_reader(path)
    if reader.kind == "huggingface" and not os.path.isdir(path):
        path = os.path.dirname(path) or os.curdir
    checkpoint = reader(path, None if tokenizer is None else os.fspath(tokenizer))
    if max_seq_len is not None and checkpoint.limit and max_seq_len > checkpoint.limit.n_tokens:
        checkpoint.close()
        raise ValueError(f"max_seq_len must be at most {checkpoint.limit.n_tokens}: {checkpoint.limit.reason}")
    if max_seq_len is not None:
        checkpoint.config = replace(checkpoint.config, max_seq_len=max_seq_len)
    if norm_eps is not None:
        checkpoint.config = replace(checkpoint.config, norm_eps=norm_eps)
    return checkpoint


def _directory_reader(path: str) -> type[Checkpoint]:
    from .huggingface import INDEX, SINGLE, HuggingFaceCheckpoint
    from .meta import MetaCheckpoint, shard_names

    has_weights = any(os.path.exists(os.path.join(path, name)) for name in (SINGLE, INDEX))
    if has_weights and os.path.exists(os.path.join(path, "config.json")):
        return HuggingFaceCheckpoint
    if shard_names(path) or os.path.exists(os.path.join(path, "params.json")):
        return MetaCheckpoint
    names = os.listdir(path)
    hint = ""
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        hint = "; its pytorch_model.bin must be converted to safetensors first"
    elif gguf := [name for name in sorted(names) if name.endswith(".gguf")]:
        hint = f"; give a file in it, such as {gguf[0]}"
    raise CheckpointError(
        f"{path} is no checkpoint: it has neither config.json with {SINGLE} nor params.json with "
        f"consolidated.00.pth{hint}"
    )


def _file_reader(path: str) -> type[Checkpoint]:
    with MappedFile(path) as file:
        return OwnCheckpoint if is_model_file(file) else _foreign_reader(path, file)


def _foreign_reader(path: str, file: MappedFile) -> type[Checkpoint]:
    from .file_kinds import describe_file
    from .gguf import GgufCheckpoint, is_gguf
    from .huggingface import HuggingFaceCheckpoint
    from .llama2c import Llama2cCheckpoint, is_llama2c
    from .meta import MetaCheckpoint
    from .pth import is_zip

    if is_gguf(file):
        return GgufCheckpoint
    if looks_like_safetensors(file):
        if os.path.exists(os.path.join(os.path.dirname(path), "config.json")):
            return HuggingFaceCheckpoint
        raise CheckpointError(f"{path} is a safetensors file, but there is no config.json of its model beside it")
    if is_zip(file):
        return MetaCheckpoint
    if is_llama2c(file):
        return Llama2cCheckpoint
    raise CheckpointError(f"{path} is no checkpoint; it looks like {describe_file(file)}")
