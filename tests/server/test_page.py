"""The page in a browser: what a person does with it, and what a model or a stranger must not do to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.browser import Browser, Scripted, chromium
from helpers.server import serving
from helpers.tiny_llama import write_tiny
from selenium.webdriver.common.keys import Keys

from pyllama2 import Llama
from pyllama2.serve import create_app
from pyllama2.server.errors import ApiError

pytestmark = pytest.mark.subprocess
KEY = "sk-a-key-for-the-page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Page:
    """The page of a server, in a browser."""

    def __init__(self, browser: Browser, app: Scripted, url: str) -> None:
        self.browser = browser
        self.app = app
        self.url = url

    def send(self, text: str) -> None:
        self.browser.type("#input", text, Keys.ENTER)

    def done(self) -> None:
        """Wait for the end of an answer."""
        self.browser.until(lambda: self.browser.shown("#send"))

    def say(self, *parts: str | ApiError) -> None:
        """Have the model say something, and wait for it."""
        self.app.replies.append(list(parts))
        self.send("Say it")
        self.done()

    @property
    def messages(self) -> list[str]:
        return self.browser.texts(".bubble, .prose, .message > .tokens")


@pytest.fixture(scope="module")
def scripted(chat_llm: Llama) -> Iterator[tuple[Scripted, str]]:
    app = Scripted(create_app(chat_llm, names="tiny"))
    with serving(app) as server:  # type: ignore[arg-type]
        yield app, f"http://127.0.0.1:{server.port}/"


@pytest.fixture
def page(browser: Browser, scripted: tuple[Scripted, str]) -> Iterator[Page]:
    app, url = scripted
    app.bodies, app.replies, app.endless, app.pause_s = [], [], False, 0.0
    browser.open(url)
    yield Page(browser, app, url)
    for complaint in browser.complaints():
        assert "status of 4" in complaint or "status of 5" in complaint, complaint
    origins = browser.js("return performance.getEntriesByType('resource').map(one => new URL(one.name).origin)")
    assert {f"{origin}/" for origin in origins} <= {url, "null/"}


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


# A field of the stored conversation.
STORED = """
const [name, done] = arguments, request = indexedDB.open("pyllama2");
request.onsuccess = () => {
  const all = request.result.transaction("conversations").objectStore("conversations").getAll();
  all.onsuccess = () => { request.result.close(); done(all.result[0] && all.result[0][name]); };
};
"""


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
