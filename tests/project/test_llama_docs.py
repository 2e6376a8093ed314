"""docs/llama.md and its picture are what the script makes of the config and the source, and the figures are right."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from math import prod
from pathlib import Path

import pytest

from pyllama2._cpu.forward import STEPS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import llama_picture  # noqa: E402
import make_llama_docs  # noqa: E402
import source_links  # noqa: E402
from llama_picture import Box  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
# From https://arxiv.org/abs/2307.09288 and the checkpoints that Meta published.
KNOWN = {"7B": 6_738_415_616, "13B": 13_015_864_320, "70B": 68_976_648_192}


@pytest.fixture(scope="module")
def page() -> str:
    return make_llama_docs.PAGE.read_text()


def table_of(page: str, name: str) -> dict[str, list[str]]:
    """The cells of a table by those of its first column."""
    found = re.search(rf"<!-- made: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows[:1] + rows[2:]}


class TestPage:
    @pytest.mark.slow
    def test_is_up_to_date(self, page: str) -> None:
        assert make_llama_docs.page(page) == page, "run python scripts/docs/make_llama_docs.py"
        assert make_llama_docs.PICTURE.read_text() == llama_picture.picture()

    def test_whatever_was_in_its_tables_is_made_anew(self, page: str) -> None:
        changed = page.replace("4,096", "4,097").replace("#L1", "#L9")
        assert changed != page and make_llama_docs.page(changed) == page
        with pytest.raises(SystemExit, match="shapes"):
            make_llama_docs.page(page.replace("made: shapes", "made: sizes"))

    def test_parameters_are_the_published_ones(self, page: str) -> None:
        shapes = table_of(page, "shapes")
        for column, (name, known) in enumerate(KNOWN.items()):
            assert shapes[""][column] == name and int(shapes["parameters"][column].replace(",", "")) == known
            parts = [cells[column].partition(" ")[0] for part, cells in table_of(page, "parameters").items() if part]
            assert sum(int(n.replace(",", "")) for n in parts) == known

    def test_every_tensor_is_there(self, page: str) -> None:
        tensors = table_of(page, "tensors")
        del tensors["tensor (`.weight`)"]
        config = make_llama_docs.MODELS["70B"]
        names = {re.sub(r"layers\.\d+", "layers.N", name).removesuffix(".weight") for name in config.tensor_shapes()}
        assert set(tensors) == names
        for name, cells in tensors.items():
            shape = config.tensor_shapes()[name.replace("N.", "0.") + ".weight"]
            assert [int(n.replace(",", "")) for n in cells[3].split(" × ")] == list(shape) and cells[4]
            letters = {"D": 8192, "F": 28672, "V": 32000, "H": 64, "K": 8, "E": 128}
            factors = [part.split(" × ") for part in cells[0].strip("()").split(", ")]
            assert tuple(prod(letters[letter] for letter in part) for part in factors) == shape

    def test_bytes(self, page: str) -> None:
        """By hand, for 7B: two bytes a number; keys and values of 32 layers of 4096 numbers."""
        read = table_of(page, "one_token")
        matrices = KNOWN["7B"] - 32000 * 4096
        norms = (2 * 32 + 1) * 4096
        assert read["float16 weights"][0] == f"{(2 * (matrices - norms) + 4 * norms) / 1e9:.2f} GB"
        output = 32000 * 4096
        q4 = (matrices - norms - output) * (0.5 + 2 / 64) + output * (1 + 2 / 64) + 4 * norms
        assert read["q4 weights"][0] == f"{q4 / 1e9:.2f} GB"
        cache = table_of(page, "cache")
        assert cache["a token, float16"] == ["512 KiB", "800 KiB", "320 KiB"]
        assert cache["a full context, float16"][0] == f"{2 * 32 * 4096 * 2 * 4096 / 1e9:.2f} GB"
        assert cache["a token, int8"][0] == f"{2 * 32 * 32 * (128 + 4) / 1024:g} KiB"
        both = table_of(page, "memory")["q4 and a full context in float16"][0].removesuffix(" GB")
        assert float(both) == pytest.approx((q4 + output * (0.5 + 2 / 64) + 2**31) / 1e9, abs=0.01)

    def test_steps_are_those_of_the_backend(self, page: str) -> None:
        steps = table_of(page, "steps")
        del steps["step"]
        assert list(steps) == list(STEPS)
        for name, cells in steps.items():
            assert all(re.fullmatch(r"\[`.+`\]\(\.\./pyllama2/\S+#L\d+-L\d+\)", cell) for cell in cells[1:]), name

    @pytest.mark.slow
    def test_check(self, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, content in (("PAGE", page), ("PICTURE", llama_picture.picture())):
            monkeypatch.setattr(make_llama_docs, name, tmp_path / name)
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(sys, "argv", ["make_llama_docs.py", "--check"])
        assert make_llama_docs.main() == 0
        (tmp_path / "PAGE").write_text(page.replace("4,096", "4,097"))
        assert make_llama_docs.main() == 1
        monkeypatch.setattr(sys, "argv", ["make_llama_docs.py"])
        (tmp_path / "PICTURE").unlink()
        assert make_llama_docs.main() == 0 and (tmp_path / "PAGE").read_text() == page
        assert (tmp_path / "PICTURE").read_text() == llama_picture.picture()


class TestSourceLinks:
    def lines(self, place: str) -> list[str]:
        path, _, anchor = source_links.link_to(place).partition("#")
        first, last = (int(n) for n in anchor.replace("L", "").split("-"))
        return (ROOT / "docs" / path).read_text().splitlines()[first - 1 : last]

    def test_lead_to_the_whole_of_a_place(self) -> None:
        lines = self.lines("model.py Attention.forward")
        assert lines[0].startswith("    def forward(self, x: Tensor, cos") and "return self.wo(" in lines[-1]
        lines = self.lines("model.py RMSNorm")
        assert lines[0] == "class RMSNorm(nn.Module):" and "* self.weight" in lines[-1]
        lines = self.lines("forward.pyx _output")
        assert lines[0].startswith("    cdef void _output(") and "mark(" in lines[-1]
        lines = self.lines("matrix.pyx run_products")
        assert lines[0].startswith("cdef void run_products(") and "write(" in lines[-1]
        lines = self.lines("portable.h rms_norm")
        assert "NAME(rms_norm)(" in lines[0] and lines[-1] == "}"
        lines = self.lines("forward.pyx # wo + residual")
        assert lines[0].strip() == "# wo + residual" and "&products, &layer.wo" in "".join(lines)

    @pytest.mark.parametrize(
        "place",
        ["model.py Nothing", "model.py Attention.nothing", "forward.pyx nothing", "nothing.pyx x", "forward.pyx # no"],
    )
    def test_what_is_not_there(self, place: str) -> None:
        with pytest.raises(source_links.PlaceNotFound):
            source_links.link_to(place)


class TestPicture:
    def test_has_every_tensor_and_is_well_formed(self) -> None:
        root = ElementTree.fromstring(llama_picture.picture())
        names = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
        tensors = {name.split(".")[-2] for name in make_llama_docs.MODELS["7B"].tensor_shapes()}
        assert tensors <= set(names)
        assert (
            root.find(f"{SVG}title") is not None
            and root.get("viewBox") == f"0 0 {llama_picture.WIDTH} {llama_picture.HEIGHT}"
        )

    def test_boxes_hold_their_text_and_do_not_touch(self) -> None:
        boxes = list(llama_picture.boxes().values())
        for box in boxes:
            # Bold text of 16 pixels is about 0.6 of them wide per letter, other text of 14 about 0.56.
            assert max(len(box.name) * 16 * 0.6, len(box.note) * 14 * 0.56) < box.width
            assert box.width // 2 <= box.x <= llama_picture.WIDTH - box.width // 2
            assert box.bottom[1] <= llama_picture.HEIGHT
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                assert not self.touch(one, other), (one.name, other.name)

    def test_the_legend_does_not_run_into_itself(self) -> None:
        root = ElementTree.fromstring(llama_picture.picture())
        places = []  # left, right, middle
        for text in root.iter(f"{SVG}text"):
            if text.get("x") and text.get("text-anchor") is None:
                left = float(text.get("x", 0))
                width = len(text.text or "") * (16 * 0.6 if text.get("class") == "name" else 14 * 0.56)
                places.append((left, left + width, float(text.get("y", 0)) - 5))
        for rect in root.iter(f"{SVG}rect"):
            if rect.get("width") == rect.get("height"):
                left, side = float(rect.get("x", 0)), float(rect.get("width", 0))
                places.append((left, left + side, float(rect.get("y", 0)) + side / 2))
        assert len(places) == 2 * (len(llama_picture.LETTERS) + 3)
        for i, (left, right, middle) in enumerate(places):
            assert right < llama_picture.WIDTH
            for other_left, other_right, other_middle in places[i + 1 :]:
                apart = right <= other_left or other_right <= left
                assert apart or abs(middle - other_middle) > 15

    def touch(self, one: Box, other: Box) -> bool:
        apart = abs(one.x - other.x) >= (one.width + other.width) / 2
        return not apart and abs(one.y - other.y) < (one.height + other.height) / 2

    @pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
    def test_reads_well(self, scheme: int) -> None:
        """Contrast as https://www.w3.org/TR/WCAG21 asks for: 4.5 for text, 3 for lines."""
        colours = {name: pair[scheme] for name, pair in llama_picture.COLOURS.items()}
        for fill in llama_picture.FILLS:
            for text in ("text", "faint"):
                assert contrast(colours[text], colours[fill]) >= 4.5, (text, fill)
        for line in ("line", "stream"):
            assert contrast(colours[line], colours["frame"]) >= 3

    def test_follows_the_readers_scheme(self) -> None:
        light, _, dark = llama_picture.picture().partition("@media (prefers-color-scheme: dark)")
        for name, pair in llama_picture.COLOURS.items():
            assert pair[0] in light and pair[1] in dark and pair[1] not in light, name


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
