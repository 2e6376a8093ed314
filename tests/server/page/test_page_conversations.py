"""Conversations on the page: sending, streaming, stop, edit, and what the browser keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.page import Page
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.subprocess
# A field of the stored conversation.
STORED = """
const [name, done] = arguments, request = indexedDB.open("pyllama2");
request.onsuccess = () => {
  const all = request.result.transaction("conversations").objectStore("conversations").getAll();
  all.onsuccess = () => { request.result.close(); done(all.result[0] && all.result[0][name]); };
};
"""


class TestConversation:
    def test_an_answer_streams(self, page: Page) -> None:
        page.send("Hello there")
        page.done()
        mine, answer = page.messages
        assert mine == "Hello there" and answer
        assert page.app.bodies[0]["messages"] == [{"role": "user", "content": "Hello there"}]
        assert page.app.bodies[0]["stream"] is True
        facts = page.browser.text(".message .facts")
        assert re.search(r"[\d,]+ tokens · [\d.,]+ tokens/s · first after [\d.]+ s", facts)
        assert re.fullmatch(r"[\d,]+ of 4,096 tokens", page.browser.text("#used"))
        assert page.browser.text("#title") == "Hello there" and page.browser.text("#model") == "tiny"
        page.send("More")
        page.done()
        roles = [message["role"] for message in page.app.bodies[1]["messages"]]
        assert roles == ["user", "assistant", "user"]

    def test_keys(self, page: Page) -> None:
        page.browser.type("#input", "one", Keys.SHIFT + Keys.ENTER)
        page.browser.type("#input", "two")
        composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
        page.browser.js(f"document.getElementById('input').dispatchEvent({composing})")
        assert not page.app.bodies and page.messages == []
        page.say("x")
        assert page.messages[0] == "one\ntwoSay it"
        page.browser.type("#input", "  ", Keys.ENTER)
        assert len(page.app.bodies) == 1

    @pytest.mark.parametrize("how", ["button", "Escape"])
    def test_stop(self, page: Page, how: str) -> None:
        page.app.endless = True
        page.send("Talk for long")
        page.browser.until(lambda: page.browser.text(".prose").strip("…"))
        if how == "button":
            page.browser.click("#stop")
        else:
            page.browser.type("body", Keys.ESCAPE)
        page.done()
        assert "stopped" in page.browser.text(".message .facts") and len(page.messages) == 2
        page.browser.until(lambda: page.app.service.idle)  # the server has heard of it
        page.say("still here")
        assert page.messages[-1].strip() == "still here"

    def test_it_scrolls_only_when_the_reader_is_at_the_end(self, page: Page) -> None:
        scroller = "const scroller = document.getElementById('scroller'); "
        at_end = "return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48"
        page.app.replies.append([f"line {i}\n\n" for i in range(600)])
        page.app.pause_s = 0.02
        page.send("Talk for long")
        long = "return scroller.scrollHeight > 2 * scroller.clientHeight"
        page.browser.until(lambda: page.browser.js(scroller + long))
        assert page.browser.js(scroller + at_end)
        page.browser.js(scroller + "scroller.scrollTop = 0")
        page.browser.until(lambda: page.browser.shown("#newest"))
        height = page.browser.js(scroller + "return scroller.scrollHeight")
        page.browser.until(lambda: page.browser.js(scroller + "return scroller.scrollHeight") > height)
        assert page.browser.js(scroller + "return scroller.scrollTop") == 0
        page.browser.click("#newest")
        page.browser.until(lambda: page.browser.js(scroller + at_end) and not page.browser.shown("#newest"))
        page.browser.click("#stop")

    def test_answer_anew(self, page: Page) -> None:
        page.say("first")
        page.app.replies.append(["second"])
        page.browser.click("[aria-label='Answer anew']")
        page.browser.until(lambda: "second" in page.messages[-1])
        page.done()
        assert len(page.messages) == 2 and page.app.bodies[0]["messages"] == page.app.bodies[1]["messages"]

    def test_edit_ones_own_message(self, page: Page) -> None:
        page.say("first")
        page.say("second")
        page.browser.click(".message:first-child [aria-label='Edit your message']")
        assert "replaces the 3 messages after it" in page.browser.text(".editor")
        page.browser.type(".edit", Keys.ESCAPE)
        assert len(page.messages) == 4
        page.browser.click(".message:first-child [aria-label='Edit your message']")
        page.browser.type(".edit", " differently")
        page.app.replies.append(["third"])
        page.browser.type(".edit", Keys.CONTROL + Keys.ENTER)
        page.browser.until(lambda: "third" in page.messages[-1])
        page.done()
        assert [text.strip() for text in page.messages] == ["Say it differently", "third"]
        assert page.app.bodies[-1]["messages"] == [{"role": "user", "content": "Say it differently"}]

    def test_copy(self, page: Page) -> None:
        page.browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite"], origin=page.url.rstrip("/"))
        page.say("**bold** text")
        page.browser.click("[aria-label='Copy the answer']")
        page.browser.until(lambda: page.browser.text("#status") == "Copied")
        assert page.browser.js("return navigator.clipboard.readText()") == "**bold** text"

    def test_sentences_are_spoken(self, page: Page) -> None:
        page.say("One sen", "tence. And an", "other")
        page.browser.until(lambda: page.browser.texts("#spoken p") == ["One sentence.", "And another"])
        assert page.browser.find("#spoken").get_attribute("aria-live") == "polite"
        assert page.browser.find("#log").get_attribute("role") == "log"


class TestKept:
    def test_after_a_reload(self, page: Page) -> None:
        page.say("kept")
        page.browser.type("#input", "a draft")
        page.browser.until(lambda: page.browser.driver.execute_async_script(STORED, "draft") == "a draft")
        page.browser.driver.refresh()
        page.browser.until(lambda: page.messages)
        assert [text.strip() for text in page.messages] == ["Say it", "kept"]
        assert page.browser.find("#input").get_attribute("value") == "a draft"

    def test_a_draft_of_a_conversation_that_has_not_begun(self, page: Page) -> None:
        page.browser.type("#input", "not sent yet")
        page.browser.driver.refresh()
        page.browser.until(lambda: page.browser.text("#model"))
        assert page.browser.find("#input").get_attribute("value") == "not sent yet"
        page.browser.type("#input", Keys.ENTER)
        page.done()
        page.browser.click("#new")
        assert page.browser.find("#input").get_attribute("value") == ""

    def test_several_conversations(self, page: Page) -> None:
        page.say("one")
        page.browser.click("#new")
        assert page.messages == []
        page.say("two")
        assert page.browser.texts("#list .name") == ["Say it", "Say it"]
        page.browser.click("#list li:last-child .name")
        assert page.messages[-1].strip() == "one"
        page.browser.click("#list li.current [aria-label^=Rename]")
        page.browser.type("#list input", "First" + Keys.ENTER)
        page.browser.until(lambda: "First" in page.browser.texts("#list .name"))
        assert page.browser.text("#title") == "First"
        page.browser.click("#list li.current [aria-label^=Delete]")
        page.browser.until(lambda: page.browser.texts("#list .name") == ["Say it"])
        page.browser.click("#toast button")
        page.browser.until(lambda: len(page.browser.all("#list li")) == 2)

    def test_an_answer_goes_on_while_another_conversation_is_open(self, page: Page) -> None:
        page.app.endless = True
        page.send("Talk for long")
        page.browser.until(lambda: page.browser.shown("#stop"))
        page.browser.click("#new")
        assert page.browser.shown("#send") and page.messages == []
        page.say("meanwhile")
        page.browser.until(lambda: page.app.service.idle)
        page.browser.until(lambda: len(page.browser.all("#list li")) == 2)
        page.browser.click("#list li:not(.current) .name")
        page.browser.until(lambda: page.browser.text(".message .facts"))
        assert page.messages[0] == "Talk for long" and page.messages[1]

    def test_what_is_deleted_does_not_come_back(self, page: Page) -> None:
        page.say("first")
        page.app.endless = True
        page.send("Talk for long")
        page.browser.until(
            lambda: page.browser.shown("#stop") and page.browser.text(".message:last-child .prose") != "…"
        )
        page.browser.type("#input", "a draft")
        page.browser.click("#list [aria-label^=Delete]")
        page.browser.until(lambda: page.app.service.idle)
        page.browser.driver.execute_async_script("setTimeout(arguments[0], 600)")  # drafts are kept after 400 ms
        assert page.browser.texts("#list .name") == [] and page.messages == []
        assert page.browser.driver.execute_async_script(STORED, "title") is None
        page.browser.click("#toast button")
        page.browser.until(lambda: len(page.messages) == 4)
        page.browser.type("#input", " goes on")
        kept = (STORED, "draft")
        page.browser.until(lambda: page.browser.driver.execute_async_script(*kept) == "a draft goes on")

    def test_a_draft_stays_when_another_conversation_is_answered(self, page: Page) -> None:
        page.app.replies.append(["slow"] * 4)
        page.app.pause_s = 0.5
        page.send("Talk for long")
        page.browser.until(lambda: page.browser.shown("#stop"))
        page.browser.click("#new")
        assert page.browser.find("#input").get_attribute("value") == ""
        page.browser.type("#input", "a draft")
        page.browser.until(lambda: page.browser.all("#list li"))
        page.browser.driver.refresh()
        page.browser.until(lambda: page.browser.text("#model"))
        assert page.browser.find("#input").get_attribute("value") == "a draft"

    def test_export_and_import(self, page: Page, tmp_path: Path) -> None:
        page.say("to be kept")
        page.browser.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.browser.click("#export")
        page.browser.until(lambda: list(tmp_path.glob("*.json")))
        exported = next(tmp_path.glob("*.json"))
        data = json.loads(exported.read_text())
        assert [message["content"] for message in data["conversations"][0]["messages"]] == ["Say it", "to be kept"]
        page.browser.find("#file").send_keys(str(exported))
        page.browser.until(lambda: len(page.browser.all("#list li")) == 2)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("no json", "The file is not JSON."),
            ("{}", "The file is no export of conversations."),
            ('{"format": "pyllama2.conversations", "conversations": [{"messages": [{"role": 1}]}]}', "be read"),
        ],
    )  # fmt: skip
    def test_import_of_something_else(self, page: Page, tmp_path: Path, content: str, sentence: str) -> None:
        path = tmp_path / "file.json"
        path.write_text(content)
        page.browser.find("#file").send_keys(str(path))
        page.browser.until(lambda: sentence in page.browser.text("#chat-notice"))
