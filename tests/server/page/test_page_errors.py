"""Errors on the page: what the server refuses, answers that break off, a server that has gone, and keys."""

from __future__ import annotations

import pytest
from helpers.browser import Browser
from helpers.page import Page
from helpers.server import serving
from selenium.webdriver.common.keys import Keys

from pyllama2 import Llama
from pyllama2.serve import create_app
from pyllama2.server.errors import ApiError

pytestmark = pytest.mark.subprocess
KEY = "sk-a-key-for-the-page"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (ApiError(400, "the prompt has 9000 tokens", param="messages"), "The prompt has 9000 tokens."),
            (ApiError(429, "9 requests are waiting"), "The server is busy"),
            (ApiError(503, "the server is ending"), "The server is ending."),
        ],
    )  # fmt: skip
    def test_a_refused_message_is_in_the_draft_again(self, page: Page, error: ApiError, sentence: str) -> None:
        page.app.replies.append(error)
        page.send("a long message")
        page.browser.until(lambda: sentence in page.browser.text("#chat-notice"))
        assert page.browser.find("#chat-notice").get_attribute("role") == "alert"
        assert page.browser.find("#input").get_attribute("value") == "a long message" and page.messages == []
        page.app.replies.append(["fine"])
        page.browser.type("#input", Keys.ENTER)
        page.done()
        assert [text.strip() for text in page.messages] == ["a long message", "fine"]
        assert page.browser.text("#chat-notice") == ""

    def test_an_answer_that_breaks_off_is_kept_and_can_be_tried_again(self, page: Page) -> None:
        page.say("half an ans", ApiError(500, "the model could not go on"))
        assert "half an ans" in page.messages[1] and "broken off" in page.browser.text(".message .facts")
        page.browser.until(lambda: "The model could not go on." in page.browser.text("#chat-notice"))
        page.app.replies.append(["whole"])
        page.browser.click("#chat-notice .quiet")
        page.browser.until(lambda: "whole" in page.messages[-1])
        assert len(page.messages) == 2

    def test_an_answer_that_cannot_be_had_anew_stays(self, page: Page) -> None:
        page.say("first")
        page.app.replies.append(ApiError(429, "busy"))
        page.browser.click("[aria-label='Answer anew']")
        page.browser.until(lambda: page.browser.text("#chat-notice"))
        assert "first" in page.messages[-1]

    def test_an_edit_that_is_refused_stays_in_its_field(self, page: Page) -> None:
        page.say("first")
        page.browser.click("[aria-label='Edit your message']")
        page.browser.type(".edit", " more")
        page.app.replies.append(ApiError(429, "busy"))
        page.browser.type(".edit", Keys.CONTROL + Keys.ENTER)
        page.browser.until(lambda: page.browser.shown(".edit") and page.browser.text("#chat-notice"))
        assert page.browser.find(".edit").get_attribute("value") == "Say it more"

    def test_a_server_that_has_gone(self, browser: Browser, chat_llm: Llama) -> None:
        with serving(create_app(chat_llm, names="tiny")) as server:
            browser.open(f"http://127.0.0.1:{server.port}/")
        browser.type("#input", "hello", Keys.ENTER)
        browser.until(lambda: "cannot be reached" in browser.text("#chat-notice"))
        assert browser.find("#input").get_attribute("value") == "hello"
        browser.complaints()

    def test_a_key_is_asked_for_and_forgotten_with_the_tab(self, browser: Browser, chat_llm: Llama) -> None:
        with serving(create_app(chat_llm, names="tiny", api_keys=[KEY])) as server:
            browser.open(f"http://127.0.0.1:{server.port}/")
            browser.type("#key", "sk-a-wrong-key", Keys.ENTER)
            browser.until(lambda: "does not know this key" in browser.text("#key-error"))
            browser.type("#key", KEY, Keys.ENTER)
            browser.until(lambda: browser.text("#model") == "tiny")
            assert not browser.shown("dialog")
            browser.type("#input", "hello", Keys.ENTER)
            browser.until(lambda: browser.text(".message .facts"))
            kept = browser.js("return [JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
            assert KEY not in kept[0] and KEY in kept[1]
            browser.complaints()
