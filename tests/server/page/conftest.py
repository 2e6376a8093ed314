"""A browser, and the page of a server whose model says what a test wants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.browser import Browser, Scripted, chromium
from helpers.page import Page
from helpers.server import serving

from pyllama2 import Llama
from pyllama2.serve import create_app


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


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
