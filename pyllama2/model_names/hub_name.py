"""Names of models on the Hugging Face hub, as users write them.

ORG/NAME                       a repository
ORG/NAME:REVISION              a branch, tag or commit of it
ORG/NAME:Q4_K_M                the GGUF file of that type in it
ORG/NAME/FILE.gguf             a file of it
hf:ORG/NAME...                 any of these, where a path could be meant, too
https://huggingface.co/ORG/NAME/tree/REVISION, or .../blob/REVISION/FILE       from a browser
hf.co/ORG/NAME, hf.co/ORG/NAME:Q4_K_M                                          as ollama has them
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

MODEL_SUFFIXES = (".gguf", ".bin", ".pth", ".safetensors")

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REVISION = r"refs/(?:pr|convert)/[A-Za-z0-9._-]+|[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:[:@]({_REVISION}))?((?:/[A-Za-z0-9_][A-Za-z0-9._+ -]*)*)")
_HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/")
_PAGE = re.compile(rf"({_WORD}/{_WORD})/(?:tree|blob|resolve)/(.*)")
_PREFIX = re.compile(r"hf:(?://)?", re.IGNORECASE)
_QUANTIZED = re.compile(r"(?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|B?F16|F32|MXFP4(?:_[A-Z]+)?|TQ[12]_0)", re.IGNORECASE)


@dataclass(frozen=True)
class HubName:
    """What a name says.

    Attributes:
        repo: ORG/NAME.
        revision: a branch, tag or commit.
        file: the path of a file in the repository; empty: not said.
        quantized: the type of a GGUF file in capitals, such as Q4_K_M; empty: not said.
    """

    repo: str
    revision: str = "main"
    file: str = ""
    quantized: str = ""

    def __str__(self) -> str:
        """The name as users write it."""
        suffix = f":{self.quantized}" if self.quantized else "" if self.revision == "main" else f":{self.revision}"
        return f"{self.repo}{suffix}" + (f"/{self.file}" if self.file else "")


def is_explicit(text: str) -> bool:
    """Whether a name can mean nothing but a model of the hub."""
    return text.startswith(("https://", "http://")) or any(form.match(text) for form in (_PREFIX, _HOST))


def parse_name(text: str) -> HubName | None:
    """Read a name of the hub; None when text is none.

    A name without "hf:" is taken for a path, and so for none of the hub, when its first part is a directory here, or
    when its second part ends like a model file.
    """
    bare = _PREFIX.sub("", text, count=1)
    if host := _HOST.match(bare):
        bare = bare[host.end() :].partition("?")[0].rstrip("/")
        if page := _PAGE.fullmatch(bare):
            return _of_page(page[1], page[2])
    match = _NAME.fullmatch(bare)
    if match is None or "--" in match[1] or ".." in bare:
        return None
    repo, revision, file = match[1], match[2] or "", match[3].removeprefix("/")
    if not is_explicit(text) and (os.path.isdir(repo.partition("/")[0]) or repo.endswith(MODEL_SUFFIXES)):
        return None
    if _QUANTIZED.fullmatch(revision):
        return HubName(repo, file=file, quantized=revision.upper())
    return HubName(repo, revision or "main", file)


def _of_page(repo: str, place: str) -> HubName | None:
    """Read what follows the repository: a revision and a path. In a revision, "/" is written as %2F, or as it is."""
    match = re.fullmatch(rf"({_REVISION})(?:/(.*))?", unquote(place))
    if match is None or "--" in repo or {"", ".", ".."} & set(unquote(place).rstrip("/").split("/")):
        return None
    return HubName(repo, match[1], (match[2] or "").rstrip("/"))


def quantized_of(file: str) -> str:
    """The type that the name of a GGUF file says, in capitals, such as Q4_K_M; empty when it says none."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", file.rpartition("/")[2])
    for word in reversed(re.split(r"[.-]|(?<![A-Za-z]Q\d)_(?=I?Q\d|B?F16|F32)", stem)):
        if _QUANTIZED.fullmatch(word):
            return word.upper()
    return ""
