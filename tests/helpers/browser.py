"""Chromium without a window, for tests of the server's page."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from pyllama2.server.answers import event
from pyllama2.server.app import App
from pyllama2.server.errors import ApiError
from pyllama2.server.guard import send_error

PATIENCE_S = 60


class Browser:
    """A tab, with short words for what tests do. Elements are named by CSS."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, *, dark: bool = False) -> None:
        """Load a page as a newcomer: nothing of earlier visits is kept."""
        self.resize(width, dark=dark)
        self.driver.get("about:blank")
        origin = url.partition("#")[0].rstrip("/")
        self.cdp("Storage.clearDataForOrigin", origin=origin, storageTypes="all")
        self.driver.get(url)
        self.js("sessionStorage.clear()")
        self.until(lambda: self.text("#model") or self.shown("dialog"))

    def resize(self, width: int, height: int = 800, *, dark: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, css))

    def shown(self, css: str) -> bool:
        return any(element.is_displayed() for element in self.all(css))

    def text(self, css: str) -> str:
        return " ".join(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css))

    def texts(self, css: str) -> list[str]:
        found: list[str] = self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)
        return found

    def click(self, css: str) -> None:
        self.until(lambda: self.shown(css))
        self.find(css).click()

    def type(self, css: str, *keys: str) -> None:
        self.find(css).send_keys(*keys)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.03).until(lambda driver: condition())

    def complaints(self) -> list[str]:
        """What the console has said since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def violations(self) -> list[str]:
        """What axe-core finds, in words."""
        spec = importlib.util.find_spec("axe_core_python")
        assert spec is not None and spec.origin is not None
        self.js(Path(spec.origin).with_name("axe.min.js").read_text())
        code = "const done = arguments[0]; axe.run(document).then(done, error => done({error: String(error)}))"
        result = self.driver.execute_async_script(code)
        assert len(result["passes"]) > 20, result.get("error")
        return [f"{one['id']}: {node['html'][:200]}" for one in result["violations"] for node in one["nodes"]]


def programs() -> tuple[str, str] | None:
    """Chromium and its driver; None if they are not installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; skips the test if there is none."""
    found = programs()
    if found is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))
    try:
        driver.set_script_timeout(PATIENCE_S)
        yield Browser(driver)
    finally:
        driver.quit()


class Scripted:
    """An app that answers chats as a test wants, and notes what it was asked.

    Attributes:
        bodies: of the requests, in order.
        replies: for the next requests: an error, or the parts of an answer. Without one, the model answers.
        endless: whether the model goes on to the end of the context.
        pause_s: seconds between two parts of a reply.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self.service = app.service
        self.bodies: list[dict[str, Any]] = []
        self.replies: list[ApiError | list[str | ApiError]] = []
        self.endless = False
        self.pause_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/v1/chat/completions", "/v1/completions"):
            await self._app(scope, receive, send)
            return
        message = await receive()
        while message["more_body"]:
            more = await receive()
            message = {**more, "body": message["body"] + more["body"]}
        self.bodies.append(json.loads(message["body"]))
        if self.replies:
            await self._reply(self.replies.pop(0), send)
            return
        if self.endless:
            message["body"] = json.dumps({**self.bodies[-1], "ignore_eos": True}).encode()
        messages = [message]
        await self._app(scope, lambda: _next(messages, receive), send)

    async def _reply(self, reply: ApiError | list[str | ApiError], send: Any) -> None:
        if isinstance(reply, ApiError):
            await send_error(reply, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in reply:
            await asyncio.sleep(self.pause_s)
            if isinstance(part, ApiError):
                await send({"type": "http.response.body", "body": event(part.body()), "more_body": True})
                break
            choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
            await send({"type": "http.response.body", "body": event({"choices": [choice]}), "more_body": True})
        else:
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 10, "completion_tokens": len(reply), "total_tokens": 10 + len(reply)}
            data = event({"choices": [end]}) + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _next(messages: list[Any], receive: Any) -> Any:
    return messages.pop() if messages else await receive()
