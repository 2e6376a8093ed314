"""Which files of a repository make a model.

Safetensors are taken before GGUF files, since they are what the others are made from. Of several GGUF files, a small
model's is taken in 8 bits, since small models lose much in 4, and a large one's in 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from ..shown import shown
from .hub_name import MODEL_SUFFIXES, HubName, quantized_of

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_SETTINGS = (
    "config.json", "quantize_config.json", "generation_config.json", "tokenizer_config.json",
    "chat_template.jinja", *_TOKENIZERS,
)  # fmt: skip
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf|\.safetensors)")
_SMALL_BYTES = 2 * 10**9  # an 8-bit file of at most so many bytes is taken
# Types of GGUF files from the one that is taken first. Those that cannot be read come last: the reader says why.
_OF_8_BITS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0")
_OF_4_BITS = ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0")
_LARGE, _TINY = ("BF16", "F16", "F32"), ("IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")


@dataclass(frozen=True)
class Choice:
    """The files of one model.

    Attributes:
        files: paths in the repository, in the order in which they are downloaded: weights last.
        model: the file that a reader opens; empty for the folder of all of them.
        has_tokenizer: whether a tokenizer is among them.
        remark: what was taken and what was not, where there was a choice; else empty.
    """

    files: tuple[str, ...]
    model: str = ""
    has_tokenizer: bool = True
    remark: str = ""


def choose(name: HubName, sizes: Mapping[str, int], *, adapter: bool = False) -> Choice:
    """Choose the files of a model.

    Args:
        name: what the user asked for.
        sizes: the files that there are, by their paths, in bytes.
        adapter: choose those of a LoRA adapter instead.

    Raises:
        CheckpointError: they make no model that can be read, or lack the file asked for. It says what there is.
    """
    ggufs = sorted(path for path in sizes if path.endswith(".gguf") and not re.search("mmproj|imatrix", path, re.I))
    if name.file:
        if name.file not in sizes:
            models = sorted(path for path in sizes if path.endswith(MODEL_SUFFIXES))
            raise CheckpointError(f"{name.repo} has no file {name.file}{_list(models)}")
        if not name.file.endswith((".gguf", ".bin")):
            raise CheckpointError(f"{name}: of single files .gguf is read; say {name.repo} for the whole model")
        return _of_file(name.file, sizes)
    if name.quantized:
        found = [path for path in ggufs if quantized_of(path) == name.quantized]
        if not found:
            raise CheckpointError(f"{name.repo} has no GGUF file of type {name.quantized}{_list(ggufs)}")
        return _of_file(found[0], sizes)
    if adapter:
        if all(path in sizes for path in _ADAPTER):
            return Choice(_ADAPTER)
        if len(ggufs) == 1:
            return _of_file(ggufs[0], sizes)
        raise CheckpointError(f"{name.repo} has no LoRA adapter: no {_ADAPTER[1]} with {_ADAPTER[0]}{_list(ggufs)}")
    folder = _folder(sizes)
    if folder is not None:
        other = f"; {_list(ggufs, 'also there: ')}" if ggufs else ""
        remark = f"{name.repo} has safetensors, which are taken{other}" if other else ""
        return Choice(folder.files, "", folder.has_tokenizer, remark)
    if ggufs:
        return _of_ggufs(name, ggufs, sizes)
    raise CheckpointError(f"{name.repo} has no model that can be read{_reason(sizes)}")


def _of_ggufs(name: HubName, ggufs: list[str], sizes: Mapping[str, int]) -> Choice:
    first_parts: dict[str, str] = {}
    for path in ggufs:
        first_parts.setdefault(_parts(path)[0], path)
    models = [path for path in first_parts if path in sizes]
    if not models:
        raise CheckpointError(f"{name.repo}: the first part of {ggufs[0]} is missing")
    eight = [size for path in models if quantized_of(path) == "Q8_0" if (size := _total(path, sizes)) <= _SMALL_BYTES]
    order = (*_OF_8_BITS, *_OF_4_BITS) if eight else (*_OF_4_BITS, *_OF_8_BITS[::-1])
    ranks = {kind: rank for rank, kind in enumerate((*order, *_LARGE, *_TINY))}
    taken = min(models, key=lambda path: (ranks.get(quantized_of(path), len(ranks)), path))
    choice = _of_file(taken, sizes)
    others = [path for path in models if path != taken]
    remark = f"of {len(models)} GGUF files {taken} is taken; {_list(others, 'others: ')}" if others else ""
    return Choice(choice.files, choice.model, True, remark)


def _of_file(path: str, sizes: Mapping[str, int]) -> Choice:
    parts = _parts(path)
    for part in parts:
        if part not in sizes:
            raise CheckpointError(f"{path} is one of {len(parts)} parts, and {part} is missing")
    return Choice(parts, parts[0])


def _folder(sizes: Mapping[str, int]) -> Choice | None:
    """The files of Hugging Face's format or of Meta's; None where those are not complete."""
    shards = [path for path in sizes if (match := _PART.fullmatch(path)) and match[4] == ".safetensors"]
    shards = sorted(path for path in shards if "/" not in path)
    settings = tuple(path for path in _SETTINGS if path in sizes)
    has_tokenizer = any(path in sizes for path in _TOKENIZERS)
    if "config.json" in sizes and _SINGLE in sizes:
        return Choice((*settings, _SINGLE), "", has_tokenizer)
    if "config.json" in sizes and _INDEX in sizes and shards and all(part in sizes for part in _parts(shards[0])):
        return Choice((*settings, _INDEX, *shards), "", has_tokenizer)
    meta = sorted(path for path in sizes if re.fullmatch(r"consolidated\.\d\d\.pth", path))
    if "params.json" in sizes and meta:
        tokenizer = tuple(path for path in _TOKENIZERS[:1] if path in sizes)
        return Choice(("params.json", *tokenizer, *meta), "", bool(tokenizer))
    return None


def _parts(path: str) -> tuple[str, ...]:
    """The parts of a model whose part or only file is at path."""
    match = _PART.fullmatch(path)
    if match is None or not 1 <= int(match[3]) <= 1000:
        return (path,)
    return tuple(f"{match[1]}-{i + 1:05}-of-{match[3]}{match[4]}" for i in range(int(match[3])))


def _total(path: str, sizes: Mapping[str, int]) -> int:
    return sum(sizes.get(part, 0) for part in _parts(path))


def _reason(sizes: Mapping[str, int]) -> str:
    if "adapter_config.json" in sizes:
        return ": it is an adapter; give it as --lora, with the model that it is for"
    if any(re.fullmatch(r"pytorch_model.*\.bin", path) for path in sizes):
        return ": its weights are pytorch_model.bin, which may run code and must be converted to safetensors first"
    return ": neither safetensors with config.json, nor a .gguf file, nor consolidated.00.pth with params.json"


def _list(paths: Iterable[str], label: str = "; it has ") -> str:
    """A few names for a message; empty when there are none."""
    names = [shown(path, 80) for path in paths]
    if not names:
        return ""
    return label + ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
