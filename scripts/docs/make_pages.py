"""Write the pages of the docs site into a folder, from which mkdocs builds it. `nox -s docs` does both.

    python scripts/docs/make_pages.py            # into build/docs
    python scripts/docs/make_pages.py FOLDER

The Markdown files of the project are written for a forge, where a link may lead to any file. What changes for the site:

- README.md and the other files of PAGES become pages beside those of docs/.
- A source file that a page links to becomes a page, too. Its lines have the anchors that a forge gives them.
- `<!-- help: NAME -->` becomes what `pyllama2 NAME --help` prints.
- A public name in backticks becomes a link to its docstring.
- Each room of the package gets a page, which mkdocstrings fills with its docstrings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from unittest import mock

from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from make_architecture import ROOMS  # noqa: E402

import pyllama2  # noqa: E402
from pyllama2.__main__ import COMMANDS  # noqa: E402
from pyllama2.__main__ import main as run_pyllama2  # noqa: E402
from pyllama2.generation.chat_engine import ChatEngine  # noqa: E402

# Pages from outside of docs/.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY_LICENSES.md": "licences.md",
}
# No page of the API: commands are on commands.md, Llama is on api.md, and a room that begins with _ is private.
HIDDEN_ROOMS = {*COMMANDS, "llama", *(room for room in ROOMS if room.startswith("_"))}

_CODE_BLOCK = re.compile(r"^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*\n+)+", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^()\s]+)(?=\)|$)", re.MULTILINE)  # [text](target), [name]: target
_HELP = re.compile(r"^<!-- help: (\w+) -->$", re.MULTILINE)


def make_pages(folder: Path) -> None:
    """Write all pages into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    names = public_names()
    linked: set[str] = set()
    for path in [*tracked("docs"), *PAGES]:
        if not path.endswith(".md"):
            (folder / page_of(path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / page_of(path))
            continue
        text, links = with_site_links((ROOT / path).read_text(encoding="utf-8"), path)
        text = _HELP.sub(lambda match: f"```text\n{help_of(match[1])}```", text)
        write(folder / page_of(path), with_name_links(text, names))
        linked |= links
    for path in with_contents(linked):
        if is_readable(path):
            write(folder / page_of(path), folder_page(path) if (ROOT / path).is_dir() else source_page(path))
    write(folder / "source.css", source_css())
    for room in ROOMS:
        if room not in HIDDEN_ROOMS:
            write(folder / "api" / f"{room}.md", room_page(room))


def write(path: Path, text: str) -> None:
    """Write a file, in folders that are made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tracked(folder: str) -> list[str]:
    """Return the files of a folder that git knows or would add, as paths from the project's root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    return sorted(set(subprocess.check_output(command, cwd=ROOT, text=True).splitlines()))


def with_contents(paths: set[str]) -> set[str]:
    """Add the files and folders in those paths that are folders."""
    found = set(paths)
    for path in paths:
        for file in tracked(path):  # a file lists itself
            while file not in found:
                found.add(file)
                file = posixpath.dirname(file)
    return found


def is_readable(path: str) -> bool:
    """Whether it is a folder, or a file of text."""
    return (ROOT / path).is_dir() or b"\0" not in (ROOT / path).read_bytes()


def page_of(path: str) -> str:
    """Return the place on the site of a file or folder of the project."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}/index.html" if (ROOT / path).is_dir() else f"source/{path}.html"


def with_site_links(text: str, path: str) -> tuple[str, set[str]]:
    """Make the links of a page lead to places on the site.

    Args:
        text: the page.
        path: where it is in the project; links are relative to this.

    Returns:
        The new text, and the files and folders that it links to and that are not in docs/.
    """
    found: set[str] = set()

    def link(match: re.Match[str]) -> str:
        target, mark, anchor = match[2].partition("#")
        if not target or ":" in target:
            return match[0]
        other = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if other not in PAGES and not other.startswith("docs/") and (ROOT / other).exists():
            found.add(other)
            anchor = anchor.partition("-")[0]  # L3-L5: the first line
        page = posixpath.relpath(page_of(other), posixpath.dirname(page_of(path)) or ".")
        return f"{match[1]}{page}{mark}{anchor}"

    return outside_code(text, lambda part: _LINK.sub(link, part)), found


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what is not in code blocks."""
    parts = []
    end = 0
    for block in _CODE_BLOCK.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def with_name_links(text: str, names: dict[str, str]) -> str:
    """Make a public name in backticks a link to its docstring, unless it is in a link or a heading already."""

    def link(match: re.Match[str]) -> str:
        target = names.get(match[1].removesuffix("()"))
        return match[0] if target is None else f"[{match[0]}][{target}]"

    def links(part: str) -> str:
        lines = part.split("\n")
        return "\n".join(
            line if line.startswith("#") else re.sub(r"(?<!\[)`([\w.]+(?:\(\))?)`(?!\])", link, line) for line in lines
        )

    return outside_code(text, links)


def public_names() -> dict[str, str]:
    """Return the public names as pages spell them, and the identifiers that mkdocstrings gives them."""
    found = {}
    for name in pyllama2.__all__:
        value = getattr(pyllama2, name)
        if isinstance(value, type):
            found[name] = f"pyllama2.{name}"
            bases = [one for one in value.__mro__ if one is value or one is ChatEngine]  # api.md has both's methods
            for member, what in [item for one in bases for item in vars(one).items()]:
                if not member.startswith("_") and (callable(what) or isinstance(what, (property, classmethod))):
                    found[f"{name}.{member}"] = f"pyllama2.{name}.{member}"
        elif callable(value):
            found[f"pyllama2.{name}"] = f"{value.__module__}.{name}"
    return found


def help_of(command: str) -> str:
    """Return what `pyllama2 COMMAND --help` prints on a terminal of 100 columns."""
    output = io.StringIO()
    with mock.patch.dict("os.environ", COLUMNS="100", NO_COLOR="1"), contextlib.redirect_stdout(output):
        if run_pyllama2([command, "--help"]) != 0:
            raise SystemExit(f"pyllama2 {command} --help fails")
    return output.getvalue()


def room_page(room: str) -> str:
    """Make the page that mkdocstrings fills with the public names of a room, without those that api.md has."""
    elsewhere = re.findall(r"^::: [\w.]+?(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    return f"""\
# {room}

{ROOMS[room]}.

::: pyllama2.{room}
    options:
      filters: ["!^_", "!^({"|".join(elsewhere)})$"]
      show_root_heading: false
      show_root_toc_entry: false
"""


def folder_page(path: str) -> str:
    """Make the page of a folder: a list of its files, with links to those that are text."""
    lines = []
    for name in sorted({file.removeprefix(f"{path}/").partition("/")[0] for file in tracked(path)}):
        other = f"{path}/{name}"
        if is_readable(other):
            name = f'<a href="{posixpath.relpath(page_of(other), posixpath.dirname(page_of(path)))}">{name}</a>'
        lines.append(name)
    return source_html(path, "\n".join(lines))


def source_page(path: str) -> str:
    """Make the page of a source file: coloured and numbered lines, with the anchors L1, L2, ..."""
    text = (ROOT / path).read_text(encoding="utf-8")
    name = path
    if path.endswith(".ipynb"):
        name, text = "notebook.py", notebook_text(text)
    try:
        lines = highlight(text, get_lexer_for_filename(name, stripnl=False), HtmlFormatter(nowrap=True)).splitlines()
    except ClassNotFound:
        lines = escape(text).splitlines()
    width = len(str(len(lines)))
    numbered = [f'<a id="L{n}" href="#L{n}">{n:>{width}}</a>  {line}' for n, line in enumerate(lines, 1)]
    return source_html(path, "\n".join(numbered))


def source_html(path: str, code: str) -> str:
    """Make a page for the source. It is HTML, since mkdocs takes long to convert so much Markdown."""
    up = posixpath.relpath(".", posixpath.dirname(page_of(path)))
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{path} - pyllama2</title>
<link rel="stylesheet" href="{up}/source.css">
</head>
<body>
<p><a href="{up}/index.html">pyllama2</a> / {path}</p>
<pre>{code}
</pre>
</body>
</html>
"""


def source_css() -> str:
    """Make the style sheet of the source pages, with the light or dark colours of the reader's system."""
    light, dark = (HtmlFormatter(style=name).get_style_defs("pre") for name in ("default", "github-dark"))
    return f"""\
body {{ margin: 1rem; font-family: sans-serif; color-scheme: light dark; }}
pre {{ line-height: 1.4; background: none; }}
pre > a[id] {{ color: gray; text-decoration: none; user-select: none; }}
pre > a:target {{ background: gold; color: black; }}
{light}
@media (prefers-color-scheme: dark) {{
{dark}
}}
"""


def notebook_text(text: str) -> str:
    """Convert a notebook to one Python file. Cells of text become comments."""
    cells = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cells.append(f"# %%\n{source}\n")
        else:
            cells.append("# %% [markdown]\n" + "".join(f"# {line}".rstrip() + "\n" for line in source.splitlines()))
    return "\n".join(cells)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the pages of the docs site.")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "docs", metavar="FOLDER")
    make_pages(parser.parse_args().folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
