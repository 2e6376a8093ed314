"""What the names of models mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllama2.model_names.hub_name import HubName, parse_name, quantized_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName("org/name")),
        ("hf:org/name", HubName("org/name")),
        ("hf://org/name", HubName("org/name")),
        ("org/name:v1.0", HubName("org/name", "v1.0")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name:refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("org/name/model.Q8_0.gguf", HubName("org/name", file="model.Q8_0.gguf")),
        ("org/name/gguf/model.gguf", HubName("org/name", file="gguf/model.gguf")),
        ("org/name:dev/model.gguf", HubName("org/name", "dev", "model.gguf")),
        ("org/name:q4_k_m", HubName("org/name", quantized="Q4_K_M")),
        ("org/name:Q8_0", HubName("org/name", quantized="Q8_0")),
        ("hf:models/llama.gguf", HubName("models/llama.gguf")),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", HubName("TinyLlama/TinyLlama-1.1B-Chat-v1.0")),
        ("https://huggingface.co/org/name", HubName("org/name")),
        ("https://huggingface.co/org/name/tree/dev", HubName("org/name", "dev")),
        ("https://huggingface.co/org/name/blob/main/m.gguf?download=true", HubName("org/name", file="m.gguf")),
        ("https://huggingface.co/org/name/tree/main/", HubName("org/name")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", HubName("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/tree/refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/blob/refs%2Fpr%2F1/m.gguf", HubName("org/name", "refs/pr/1", "m.gguf")),
        ("https://huggingface.co/org/name/blob/main/a%20b/m.gguf", HubName("org/name", file="a b/m.gguf")),
        ("https://huggingface.co/org/name?library=transformers", HubName("org/name")),
        ("huggingface.co/org/name", HubName("org/name")),
        ("hf.co/org/name", HubName("org/name")),
        ("hf.co/org/name:Q4_K_M", HubName("org/name", quantized="Q4_K_M")),
        ("hf.co/org/name/tree/dev", HubName("org/name", "dev")),
        ("HF:org/name", HubName("org/name")),
    ],
)
def test_names(text: str, expected: HubName) -> None:
    assert parse_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "llama", "llama.bin", "./org/name", "../org", "/org/name", "~/org/name", "org/", "/name", "org//name",
        "org/name/", "models/llama.gguf", "models/llama.bin", "org/na me", "org/name/../x", "org\\name", "a--b/c",
        "org/name:", "org/\x1bname", "hf:name", "hf:", "https://example.org/org/name", "org/name/..", "-x/y",
        "https://huggingface.co/org/name/tree/..%2F..", "https://huggingface.co/org/name/blob/main/../m.gguf",
        "https://huggingface.co/org/name/blob/%2Fetc%2Fpasswd", "https://huggingface.co/a--b/c", "hf.co/name",
        "https://huggingface.co/org/name/tree/main/../..", "hf.co/../org/name",
    ],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert parse_name(text) is None


def test_a_folder_of_that_name_makes_it_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_name("models/llama") is not None
    (tmp_path / "models").mkdir()
    assert parse_name("models/llama") is None
    assert parse_name("hf:models/llama") == HubName("models/llama")


@pytest.mark.parametrize("text", ["org/name", "org/name:dev", "org/name:Q4_K_M", "org/name/m.gguf", "a/b:dev/m.gguf"])
def test_names_are_shown_as_they_are_written(text: str) -> None:
    assert str(parse_name(text)) == text


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct-Q8_0.gguf", "Q8_0"),
        ("llama-2-7b.q5_k_s.gguf", "Q5_K_S"),
        ("sub/Meta-Llama-3-70B-Instruct.Q6_K-00001-of-00002.gguf", "Q6_K"),
        ("Llama-3.2-1B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("model-bf16.gguf", "BF16"),
        ("Llama-3.2-1B-f16.gguf", "F16"),
        ("ggml-model-Q2_K.gguf", "Q2_K"),
        ("model.gguf", ""),
        ("Qwen3-Q.gguf", ""),
    ],
)
def test_the_type_in_the_name_of_a_file(file: str, expected: str) -> None:
    assert quantized_of(file) == expected
