"""The pages of the docs site: their links, and what is on them. `nox -s docs` builds the site from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_pages
import pytest

import pyllama2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    make_pages.make_pages(folder)
    return folder


class TestLinks:
    @pytest.mark.parametrize(
        ("path", "link", "wanted"),
        [
            ("README.md", "docs/llama.md#sizes", "llama.md#sizes"),
            ("README.md", "SECURITY.md", "security.md"),
            ("README.md", "examples/chat.py", "source/examples/chat.py.html"),
            ("README.md", "pyllama2", "source/pyllama2/index.html"),
            ("docs/llama.md", "llama.svg", "llama.svg"),
            ("docs/llama.md", "#sizes", "#sizes"),
            ("docs/llama.md", "../README.md", "index.md"),
            ("docs/llama.md", "../pyllama2/model.py#L3-L5", "source/pyllama2/model.py.html#L3"),
            ("docs/llama.md", "https://arxiv.org/abs/2307.09288", "https://arxiv.org/abs/2307.09288"),
        ],
    )
    def test_lead_to_places_on_the_site(self, path: str, link: str, wanted: str) -> None:
        for text, new in ((f"a [b]({link}).", f"a [b]({wanted})."), (f"[b]: {link}", f"[b]: {wanted}")):
            assert make_pages.with_site_links(text, path)[0] == new

    def test_source_files_are_found(self) -> None:
        text = "[a](../pyllama2/model.py#L1) [b](../SECURITY.md) [c](demo-model.md) [d](../pyllama2/_cpu)"
        assert make_pages.with_site_links(text, "docs/x.md")[1] == {"pyllama2/model.py", "pyllama2/_cpu"}

    def test_code_stays_as_it_is(self) -> None:
        text = "```\n[a](README.md)\n```\n\ntext\n\n    [a](README.md) `Llama`\n\n- item\n    `Llama`\n"
        assert make_pages.with_site_links(text, "README.md")[0] == text
        names = {"Llama": "pyllama2.Llama"}
        assert make_pages.with_name_links(text, names) == text.replace(
            "item\n    `Llama`", "item\n    [`Llama`][pyllama2.Llama]"
        )

    def test_public_names_become_links(self) -> None:
        names = make_pages.public_names()
        text = "`Llama.generate()` [`Llama`](x) `llama` `pyllama2.export`\n# `Llama`"
        assert make_pages.with_name_links(text, names) == (
            "[`Llama.generate()`][pyllama2.Llama.generate] [`Llama`](x) `llama` "
            "[`pyllama2.export`][pyllama2.convert.export]\n# `Llama`"
        )


def nav_of(entries: Any) -> Iterator[str]:
    """The pages that the navigation of mkdocs.yml names."""
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else nav_of(value)


class TestPages:
    @pytest.mark.subprocess
    def test_the_navigation_has_them_all(self, folder: Path) -> None:
        yaml = pytest.importorskip("yaml")
        nav = list(nav_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
        assert sorted(nav) == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))

    @pytest.mark.slow
    def test_links_between_them_lead_somewhere(self, folder: Path) -> None:
        for page in folder.rglob("*.md"):
            text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
            for target in re.findall(r"(?:\]\(|^\[[^\]]+\]: )([^()\s#]+)", text, re.MULTILINE):
                assert ":" in target or (page.parent / target).is_file(), (page, target)

    def test_the_interface_has_every_public_name(self) -> None:
        listed = re.findall(r"^::: [\w.]+?(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
        assert {name for name in pyllama2.__all__ if name != "__version__"} <= set(listed)
        assert len(set(listed)) == len(listed)
        places = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
        for name in ("export", "quantize", "perplexity"):
            assert make_pages.public_names()[f"pyllama2.{name}"] in places, name

    @pytest.mark.slow
    def test_lines_of_source_pages_have_anchors(self, folder: Path) -> None:
        text = (ROOT / "pyllama2" / "model.py").read_text()
        page = (folder / "source" / "pyllama2" / "model.py.html").read_text()
        assert re.findall(r'id="L(\d+)"', page) == [str(n + 1) for n in range(text.count("\n"))]
        assert (
            re.sub(r"<[^>]*>", "", page.partition("<pre>")[2]).splitlines()[0].strip() == f"1  {text.splitlines()[0]}"
        )

    @pytest.mark.slow
    def test_source_pages_know_compiled_files_and_notebooks(self, folder: Path) -> None:
        for name in ("pyllama2/_cpu/forward.pyx", "pyllama2/_cpu/kernels/scalar.h", "pyllama2/_gpu/kernels/norm.cu"):
            assert '<span class="k' in (folder / "source" / f"{name}.html").read_text(), name
        notebook = (folder / "source" / "examples" / "quickstart.ipynb.html").read_text()
        assert "# %% [markdown]" in notebook and "&quot;cell_type&quot;" not in notebook
        kernels = (folder / "source" / "pyllama2" / "data" / "index.html").read_text()
        assert '<a href="__init__.py.html">' in kernels and "\nstories.bin\n" in kernels
