"""Write what is made in docs/architecture.md: the picture of the layers, the table of rooms, and links to lines.

    python scripts/docs/make_architecture.py            # write them
    python scripts/docs/make_architecture.py --check    # exit 1 if the page is not what would be written

A room is a folder of pyllama2/ or a file beside the folders. The page's text is written by hand. The part between
`<!-- made: NAME -->` and `<!-- end -->` is made here from the imports. Links to lines (source_links.py) are defined at
the end of the page. Run the script after a change of imports, rooms or lines.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from source_links import definitions

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyllama2"
PAGE = ROOT / "docs" / "architecture.md"

# What is in each room, from the bottom up.
ROOMS = {
    "shown": "Makes text from files and users safe to print",
    "errors": "The classes of all errors",
    "families": "Which models are computed as a Llama is, and what to take instead of others",
    "bounded_json": "Parses JSON from files of others, strictly and within bounded memory",
    "arguments": "Checks of arguments, with messages that say what was expected",
    "process": "What concerns whole processes: Ctrl-C, fork, exit, and confined ones for what strangers write",
    "progress": "A progress bar on terminals and in notebooks",
    "config": "`ModelConfig`: the dimensions of a model, and the name and shape of every tensor",
    "tokenizer": "Text to token ids and back",
    "chat_formats": "The messages of a chat to token ids",
    "storage": "Weights: their layout in memory, the model file, mapping it, writing it",
    "checkpoint": "Readers of other projects' files: Meta, Hugging Face, GGUF, llama2.c",
    "writers": "Writers of other projects' files: GGUF, Hugging Face",
    "sampling": "Logits to the next token; stop strings",
    "constraints": "Texts that keep to a JSON schema, a regular expression or a grammar",
    "backend": "The contract of a device, and the choice of one",
    "_cpu": "The CPU backend: Cython and OpenMP, with inner loops in C",
    "_gpu": "The CUDA backend: CuPy and CUDA kernels",
    "_staged": "One model on several devices: layers on GPUs, the rest on the CPU",
    "memory": "Whether a model and its sequences fit into memory",
    "generation": "From a prompt to a text: requests, scheduler, prefix cache, streams",
    "model_names": "From the name of a model to its files: paths, the Hugging Face hub and its cache",
    "adapters": "LoRA adapters, merged into the tensors of a checkpoint",
    "convert": "`export`: any checkpoint to the model file, or to weights in memory",
    "loading": "From the path of a model to weights that a backend can use",
    "llama": "`Llama`: the object that users hold",
    "analysis": "Perplexity, facts about a model, the bandwidth of memory",
    "calibration": "`quantize`: weights of 8 and 4 bits that are chosen for a text",
    "cli": "What the commands share: flags, exit codes, progress",
    "server": "OpenAI's HTTP interface on one `Llama`: routes, checks, queue, streams, metrics",
    "batches": "Requests from files: reading, answering as the server does, results that survive a kill",
    "generate": "The command `generate`",
    "chat": "The command `chat`",
    "serve": "The command `serve`, and `create_app`",
    "batch": "The command `batch`",
    "ray": "Prompts of a dataset, and the server, on the machines of a Ray cluster",
    "export": "The command `export`",
    "quantize": "The command `quantize`",
    "perplexity": "The command `perplexity`",
    "bench": "The command `bench`",
    "inspect": "The command `inspect`",
    "doctor": "The command `doctor`",
    "models": "The command `models`",
    "llm_plugin": "The models of a machine for the command `llm`",
    "__init__": "The public names",
    "__main__": "All commands by their names, as in `python -m pyllama2 inspect`",
}
# These stand apart: model.py is for reading and testing, data is the bundled model.
APART = {"model", "data"}


def imports() -> dict[str, set[str]]:
    """Return the other rooms that each room imports, also inside functions and in compiled files."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd"):
            room = path.relative_to(PACKAGE).with_suffix("").parts[0]
            if room in APART:
                continue
            if room not in ROOMS:
                raise SystemExit(f"{room} is a new room: say in {Path(__file__).name} what is in it")
            found[room].update(other for other in _imported(path) if other in ROOMS and other != room)
    return found


def _imported(path: Path) -> Iterator[str]:
    """Yield the rooms that a file imports, and the names that it imports from pyllama2/__init__.py."""
    package = path.relative_to(PACKAGE).parent.parts
    for dots, module, names in _relative_imports(path):
        parts = [*package[: len(package) + 1 - dots], *filter(None, module.split("."))]
        yield from parts[:1] if parts else names


def _relative_imports(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the dots, the module and the names of each `from ... import`."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                yield node.level, node.module or "", [alias.name for alias in node.names]
    else:  # Cython, where names are those of functions and types
        for dots, module in re.findall(r"^\s*from (\.+)([\w.]+) c?import", text, re.MULTILINE):
            yield len(dots), module, []


def layers(imported: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by layer, from the bottom up. The lowest layer imports no room; each other room stands right above the
    highest room that it imports. Raises SystemExit for a circle.
    """
    left, done, result = list(imported), set[str](), []
    while left:
        layer = [room for room in left if imported[room] <= done]
        if not layer:
            raise SystemExit(f"in or above a circle: {', '.join(left)}")
        result.append(layer)
        done.update(layer)
        left = [room for room in left if room not in done]
    return result


def picture() -> list[str]:
    """Return the layers as text, the highest first."""
    numbered = list(enumerate(layers(imports())))
    return ["```text", *(f"{n:>4}   {'   '.join(rooms)}" for n, rooms in reversed(numbered)), "```"]


def rooms() -> list[str]:
    """Return the table of rooms, from the bottom up."""
    imported = imports()
    lines = ["| room | what is in it | imports |", "|---|---|---|"]
    for room, meaning in ROOMS.items():
        name = room if (PACKAGE / room).is_dir() else f"{room}.py"
        others = " ".join(f"`{other}`" for other in ROOMS if other in imported[room])
        lines.append(f"| [`{name}`](../pyllama2/{name}) | {meaning} | {others} |")
    return lines


_PARTS = {"picture": picture, "rooms": rooms}


def page(text: str) -> str:
    """Renew the made parts of docs/architecture.md. Takes and returns its text."""
    for name, make in _PARTS.items():
        start, end = f"<!-- made: {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(start)
        _, end_mark, after = rest.partition(end)
        if not (mark and end_mark):
            raise SystemExit(f"{PAGE.name} should have a part {start.strip()} ... {end}")
        text = "\n".join([before + mark, *make(), "", end + after])
    body, mark, _ = text.partition("<!-- made: links -->\n")
    if not mark:
        raise SystemExit(f"{PAGE.name} should end with a part <!-- made: links -->")
    return body + mark + "\n".join(["", *definitions(body), ""])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write what is made in docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    check = parser.parse_args().check
    current = PAGE.read_text()
    wanted = page(current)
    if check:
        return 0 if current == wanted else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
