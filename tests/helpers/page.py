"""The page of a server in a browser, as a person uses it."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys

from helpers.browser import Browser, Scripted
from pyllama2.server.errors import ApiError


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
