"""Programs that are made for OpenAI's interface, where they are installed: LangChain, and the command llm."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.server import Server

from pyllama2 import Llama

QUESTION = "Why is the sky blue?"


def expected(llm: Llama) -> str:
    return llm.chat([{"role": "user", "content": QUESTION}], temperature=0, top_p=1, max_tokens=20).text


@pytest.mark.slow
def test_langchain(server: Server, chat_llm: Llama) -> None:
    langchain = pytest.importorskip("langchain_openai")
    common = {"base_url": server.url, "api_key": "none", "model": "tiny", "temperature": 0, "max_tokens": 20}
    chat = langchain.ChatOpenAI(**common)
    answer = chat.invoke([("human", QUESTION)])
    assert answer.content == expected(chat_llm)
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + 20
    assert "".join(chunk.content for chunk in chat.stream([("human", QUESTION)])) == answer.content
    complete = langchain.OpenAI(**common)
    both = complete.generate(["Once upon", "One day"]).generations
    texts = [chat_llm.generate(p, temperature=0, max_tokens=20).text for p in ("Once upon", "One day")]
    assert [one[0].text for one in both] == texts


@pytest.mark.slow
def test_the_command_llm(server: Server, chat_llm: Llama, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm") is None:
        pytest.skip("llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: tiny\n  api_base: {server.url}\n  api_key_name: none\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "tiny", "-o", "temperature", "0", "-o", "max_tokens", "20", QUESTION]
    for extra in ([], ["--no-stream"]):
        result = subprocess.run([*command, *extra], capture_output=True, text=True, env=environment, timeout=120)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == expected(chat_llm).strip()
