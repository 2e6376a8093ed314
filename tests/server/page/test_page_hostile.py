"""What a model or an imported file says does nothing on the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.page import Page

pytestmark = pytest.mark.subprocess


HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload='window.pwned = 1'><animate onbegin='window.pwned = 1'></svg>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "<a href='javascript:window.pwned = 1'>x</a> [x](javascript:window.pwned=1) [y](JaVaScRiPt:window.pwned=1)",
    "[x](data:text/html,<script>window.pwned=1</script>) [y](vbscript:x) [z](/metrics) [w](file:///etc/passwd)",
    "![x](http://127.0.0.1:9/leak.png) ![y](data:image/svg+xml,<svg/onload=window.pwned=1>)",
    "<style>body { display: none }</style><link rel=stylesheet href=//127.0.0.1:9/x.css>",
    "<form action=//127.0.0.1:9><input name=x></form><meta http-equiv=refresh content='0;url=//127.0.0.1:9'>",
    '```html\n<script>window.pwned = 1</script>\n```\n```"onmouseover=window.pwned=1\nx\n```',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.pwned=1&gt;'>",
    '[x](https://example.org "title\\" onmouseover=window.pwned=1")',
    "<div id=input class=main style='position:fixed;inset:0'>x</div>",
]


class TestHostile:
    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
    def test_what_a_model_says_does_nothing(self, page: Page, whole: bool) -> None:
        text = "\n\n".join(HOSTILE)
        page.say(*([text] if whole else [text[i : i + 7] for i in range(0, len(text), 7)]))
        check_harmless(page)
        assert page.browser.all(".prose a")  # the picture that was to be loaded from elsewhere
        assert "<script>" in page.browser.text(".prose pre")

    def test_nor_what_an_imported_file_says(self, page: Page, tmp_path: Path) -> None:
        text = "\n\n".join(HOSTILE)
        top = [[HOSTILE[1], 0.5], ["javascript:x", 0.1]]
        answer = {
            "role": "assistant", "content": text, "finish": text, "facts": {"tokens": HOSTILE[0]},
            "tokens": [{"text": one, "p": 0.5, "top": top} for one in HOSTILE],
        }  # fmt: skip
        settings = {"system": HOSTILE[0], "temperature": "7", "stop": 3, "seed": 1e99}
        conversation = {
            "id": "<img src=x onerror=window.pwned=1>", "title": HOSTILE[1], "settings": settings, "updated": "x",
            "messages": [{"role": "user", "content": text}, answer],
        }  # fmt: skip
        path = tmp_path / "hostile.json"
        path.write_text(json.dumps({"format": "pyllama2.conversations", "conversations": [conversation]}))
        page.browser.find("#file").send_keys(str(path))
        page.browser.click("#list .name")
        page.browser.until(lambda: len(page.messages) == 2)
        check_harmless(page)
        page.browser.click("#view-tokens")
        page.browser.click(".token")
        assert page.browser.shown("#alternatives")
        check_harmless(page)
        page.send("x")
        page.done()
        assert set(page.app.bodies[0]) == {"messages", "stream", "stream_options", "logprobs", "top_logprobs"}

    def test_links(self, page: Page) -> None:
        page.say("[one](https://example.org/a) https://example.org/b ![two](https://example.org/c.png)")
        links = page.browser.all(".prose a")
        assert [link.get_attribute("href").rpartition("/")[2] for link in links] == ["a", "b", "c.png"]
        for link in links:
            assert {"noopener", "noreferrer"} <= set(link.get_attribute("rel").split())
            assert link.get_attribute("target") == "_blank"

    @pytest.mark.parametrize(
        "text", ["x" * 300_000, "word " * 60_000, "- [a\n" * 20_000, "a " + "`" * 5000 + "*_" * 20_000]
    )
    def test_a_huge_answer(self, page: Page, text: str) -> None:
        page.say(*[text[i : i + 20_000] for i in range(0, len(text), 20_000)])
        assert len("".join(page.messages[1].split())) > 10_000
        page.say("short")
        assert page.messages[-1].strip() == "short"


def check_harmless(page: Page) -> None:
    page.browser.js("for (const e of document.querySelectorAll('.message *')) "
                    "e.dispatchEvent(new Event('mouseover', {bubbles: true}))")  # fmt: skip
    assert page.browser.js("return window.pwned") is None
    for css in [
        "script",
        "img",
        "iframe",
        "style",
        "link",
        "form",
        "input",
        "meta",
        "object",
        "embed",
        "math",
        "svg:not(button>svg)",
    ]:
        assert not page.browser.all(f"#log {css}"), css
    for link in page.browser.all("#log a"):
        assert re.match("https?://", link.get_attribute("href"))
    allowed = {
        "class",
        "href",
        "rel",
        "target",
        "title",
        "tabindex",
        "role",
        "type",
        "start",
        "data-i",
        "hidden",
    }  # of the page itself, too
    names = page.browser.js(
        "return [...document.querySelectorAll('#log *')].flatMap(e => e.getAttributeNames())"
        ".filter(name => !name.startsWith('aria-'))"
    )
    assert set(names) <= allowed
    assert page.browser.find("#input").is_displayed()
