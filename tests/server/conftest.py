"""Servers in this process for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.server import Server, serving
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import Llama
from pyllama2.model_names import find_model
from pyllama2.serve import create_app
from pyllama2.server.app import App


@pytest.fixture(scope="module")
def chat_llm(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """A tiny model with a chat template. What it says makes no sense, and it says it at once."""
    path = write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML, max_seq_len=4096)
    with Llama(path) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(chat_llm: Llama) -> Iterator[Server]:
    """A server of that model under the name tiny."""
    with serving(create_app(chat_llm, names=("tiny", "gpt-4o"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return server.client()


@pytest.fixture
def serve(chat_llm: Llama) -> Iterator[Callable[..., Server]]:
    """Starts servers with options of their own."""
    stack: list[Any] = []

    def start(llm: Llama = chat_llm, limits: dict[str, Any] | None = None, **options: Any) -> Server:
        app = create_app(llm, **{"names": "tiny", **options})
        context = serving(App(llm, replace(app.service.settings, **limits)) if limits else app)
        stack.append(context)
        return context.__enter__()

    yield start
    for context in reversed(stack):
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def stories() -> Path:
    """The bundled model."""
    return Path(find_model(None))
