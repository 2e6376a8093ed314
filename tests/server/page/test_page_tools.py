"""The page beside conversations: settings, tokens, the tool that continues a text, and use by everyone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.browser import Browser
from helpers.page import Page
from helpers.server import serving
from helpers.tiny_llama import write_tiny
from selenium.webdriver.common.keys import Keys

from pyllama2 import Llama
from pyllama2.serve import create_app
from pyllama2.server.errors import ApiError

pytestmark = pytest.mark.subprocess


class TestSettings:
    def test_they_are_sent_and_kept(self, page: Page) -> None:
        page.browser.click("#open-settings")
        page.browser.type("#set-system", "Be brief.")
        page.browser.js("document.querySelector('#fields details').open = true")
        for name, value in (("temperature", "0.25"), ("top_k", "7"), ("max_tokens", "3"), ("seed", "5")):
            page.browser.find(f"#set-{name}").clear()
            page.browser.type(f"#set-{name}", value)
        page.browser.type("#set-stop", "END\n\\n\\n")
        page.browser.click("#settings .icon")
        page.browser.driver.refresh()
        page.browser.until(lambda: page.browser.text("#model"))
        page.send("Hi")
        page.done()
        body = page.app.bodies[0]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["top_k"], body["max_tokens"], body["seed"]) == (0.25, 7, 3, 5)
        assert body["stop"] == ["END", "\n\n"]
        assert "at the limit" in page.browser.text(".message .facts")
        page.browser.click("[aria-label='Answer anew']")
        page.browser.until(lambda: len(page.app.bodies) == 2)
        page.done()
        assert page.app.bodies[1]["seed"] == 6  # another text is wanted

    def test_a_wrong_value_is_said_beside_it_and_not_sent(self, page: Page) -> None:
        page.browser.click("#open-settings")
        page.browser.find("#set-temperature").clear()
        page.browser.type("#set-temperature", "7")
        assert page.browser.text("#set-temperature-hint") == "A number from 0 to 2"
        assert page.browser.find("#set-temperature").get_attribute("aria-invalid") == "true"
        page.browser.type("#set-temperature", Keys.ESCAPE)
        page.say("x")
        assert page.app.bodies[0]["temperature"] <= 2

    def test_themes(self, page: Page) -> None:
        colours = set()
        for theme in ("light", "dark"):
            page.browser.click("#theme")
            assert page.browser.js("return document.documentElement.dataset.theme") == theme
            colours.add(page.browser.js("return getComputedStyle(document.body).backgroundColor"))
            page.browser.driver.refresh()
            page.browser.until(lambda: page.browser.text("#model"))
            assert page.browser.js("return document.documentElement.dataset.theme") == theme
        assert len(colours) == 2


class TestTokens:
    def test_colours_and_alternatives(self, page: Page) -> None:
        page.browser.click("#view-tokens")
        assert page.browser.find("#view-tokens").get_attribute("aria-pressed") == "true"
        page.browser.click("#open-settings")
        page.browser.js("document.querySelector('#fields details').open = true")
        page.browser.type("#set-max_tokens", "12", Keys.ESCAPE)
        page.send("Hello")
        page.done()
        assert page.app.bodies[0]["logprobs"] is True
        tokens = page.browser.all(".token")
        assert 1 < len(tokens) <= 12
        page.browser.js("document.querySelector('.message .tokens').focus()")
        assert page.browser.shown("#alternatives") and len(page.browser.all("#alternatives tr")) == 5
        first = page.browser.text("#alternatives")
        page.browser.type(".message .tokens", Keys.ARROW_RIGHT)
        assert page.browser.text("#alternatives") != first
        assert page.browser.find(".token.current").get_attribute("data-i") == "1"
        page.browser.type(".message .tokens", Keys.ESCAPE)
        assert not page.browser.shown("#alternatives")
        page.browser.driver.refresh()
        page.browser.until(lambda: len(page.browser.all(".token")) == len(tokens))
        page.browser.click("#view-tokens")
        assert not page.browser.all(".token") and page.browser.all(".prose")


class TestText:
    def test_continue_and_undo(self, page: Page) -> None:
        page.browser.click("#to-text")
        page.browser.type("#raw", "The sea")
        page.browser.click("#continue")
        page.browser.until(lambda: page.browser.shown("#continue") and page.browser.text("#raw-facts"))
        value = page.browser.find("#raw").get_attribute("value")
        assert value.startswith("The sea") and len(value) > 7
        body = page.app.bodies[0]
        assert body["prompt"] == "The sea" and body["max_tokens"] == 200
        page.browser.click("#raw-undo")
        assert page.browser.find("#raw").get_attribute("value") == "The sea"
        page.browser.driver.refresh()
        page.browser.until(lambda: page.browser.text("#model"))
        assert page.browser.find("#raw").get_attribute("value") == "The sea"

    def test_errors_are_said_here(self, page: Page) -> None:
        page.browser.click("#to-text")
        page.browser.type("#raw", "x")
        page.app.replies.append(ApiError(400, "the prompt is bad"))
        page.browser.click("#continue")
        page.browser.until(lambda: "The prompt is bad." in page.browser.text("#text-notice"))
        assert page.browser.find("#raw").get_attribute("value") == "x"

    def test_a_model_that_does_not_chat_begins_here(self, browser: Browser, tmp_path: Path, one_thread: None) -> None:
        with Llama(write_tiny(tmp_path / "plain.bin", "bpe")) as llm, serving(create_app(llm, names="plain")) as server:
            browser.open(f"http://127.0.0.1:{server.port}/")
            browser.until(lambda: browser.shown("#raw"))
            browser.click("#to-chat")
            assert "no chat format" in browser.text(".welcome")
            browser.complaints()


def states(page: Page) -> Iterator[Callable[[], None]]:
    """What the page can look like."""
    browser = page.browser
    yield lambda: None
    yield lambda: page.say("# Title\n\n- a\n- b\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n```python\nx = 'a'\n```\n\n> `q` <b>")
    yield lambda: page.say("half", ApiError(500, "broken"))
    yield lambda: browser.click("#open-settings")
    yield lambda: browser.click("#settings .icon")
    yield lambda: browser.click(".message:first-child [aria-label^='Edit your']")
    yield lambda: browser.js("document.getElementById('sidebar').showPopover()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_can_be_used_by_everyone(page: Page, width: int, dark: bool) -> None:
    """axe-core finds nothing, and nothing is wider than the window."""
    page.browser.resize(width, 640, dark=dark)
    for go in states(page):
        go()
        assert page.browser.violations() == []
        assert page.browser.js("return document.documentElement.scrollWidth") <= width
        assert page.browser.js("return document.querySelector('#scroller').scrollWidth") <= width
    page.browser.js("location.hash = '#text'")
    page.browser.until(lambda: page.browser.shown("#raw"))
    assert page.browser.violations() == []


def test_the_models_name_is_whole_beside_a_long_title(page: Page) -> None:
    page.browser.resize(360)
    page.app.replies.append(["ok"])
    page.send("A message with so many words that its title has no room on a phone")
    page.done()
    cut = "return ['#title', '#model'].map(css => document.querySelector(css)).map(e => e.scrollWidth > e.clientWidth)"
    page.browser.js("document.querySelector('#model').textContent = 'SmolLM2'")
    assert page.browser.js(cut) == [True, False]
