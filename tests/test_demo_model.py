"""The bundled model, the grammar that it learned from, and the script that made it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from pyllama2 import Llama
from pyllama2.modelfile import ModelFile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from story_grammar import BOYS, GIRLS, PLOTS, story  # noqa: E402

# A whole story is pinned to its first sentences: float32 sums may differ in their order on another instruction set.
GREEDY = ", a clever girl named Lucy lived in a town with a big park. She liked to walk to the park"
BUNDLED = Path(str(files("pyllama2.models") / "stories.bin"))


class TestGrammar:
    def test_stories_are_well_formed(self) -> None:
        for seed in range(2000):
            text = story(random.Random(seed))
            assert 60 <= len(text.split()) <= 200, text
            assert not re.search(r"[{}]|  | [.,!?]|\.\.", text), text
            assert text.count('"') % 2 == 0, text
            assert text[0].isupper() and text[-1] in '.!?"', text
            for start in re.findall(r'[.!?]"? (\S+)', text):  # what follows the end of a sentence, or of a speech
                assert start[0].isupper() or start[0] == '"' or '"' in text, text
            assert not re.search(r"\b(a [aeiou]|an [^aeiou\W])", text), text

    def test_seeds_repeat_and_vary(self) -> None:
        assert story(random.Random(1)) == story(random.Random(1))
        assert len({story(random.Random(seed)) for seed in range(1000)}) == 1000
        assert len(PLOTS) >= 6


class TestBundledModel:
    def test_file(self) -> None:
        assert BUNDLED.stat().st_size < 2_000_000
        model = ModelFile.open(BUNDLED)
        assert model.quantization.type == "q8" and model.tokenizer is not None
        assert "story_grammar" in model.source

    def test_any_text_can_be_encoded(self) -> None:
        with Llama() as llm:
            for text in ("Once upon a time", "naïve 日本語 🦙", "  two  spaces\n"):
                assert llm.detokenize(llm.tokenize(text)) == text

    def test_it_tells_stories_that_end(self) -> None:
        with Llama() as llm:
            stories = [llm.generate("Once upon a time", max_tokens=220, echo=True, seed=seed) for seed in range(10)]
        whole = [s for s in stories if s.finish_reason == "stop" and len(s.text.split()) >= 60]
        assert len(whole) >= 9
        assert all(s.text.endswith((".", "!", '."', '!"')) for s in whole)
        assert len({s.text for s in stories}) == 10
        for s in stories:  # a hero and a friend, and no others
            assert len(set(re.findall(r"[A-Z][a-z]+", s.text)) & {*GIRLS, *BOYS}) <= 2, s.text

    def test_greedy_text(self) -> None:
        with Llama(n_threads=1) as one, Llama(n_threads=2) as two:
            texts = [llm.generate("Once upon a time", temperature=0, max_tokens=40).text for llm in (one, two)]
        assert texts[0] == texts[1]
        assert texts[0].startswith(GREEDY)


def test_training_script(tmp_path: Path) -> None:
    """A few steps of a very small model: the script's whole path, stopped and taken up again."""
    out, work = tmp_path / "m.bin", tmp_path / "work"
    command = [
        sys.executable, ROOT / "scripts" / "train_demo_model.py", out, "--work", work, "--stories", "300",
        "--vocab-size", "400", "--dim", "32", "--layers", "1", "--context", "64", "--batch", "2",
    ]  # fmt: skip
    for steps in ("3", "5"):
        result = subprocess.run([*command, "--steps", steps], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert f"step {steps} " in result.stderr
    with Llama(out) as llm:
        assert llm.generate("Once", max_tokens=3, temperature=0, ignore_eos=True).usage.completion_tokens == 3


@pytest.mark.parametrize("prompt", ["The little dog", "One day, Anna", "Lily and Tom went to the park"])
def test_other_beginnings_go_on_in_english(prompt: str) -> None:
    with Llama() as llm:
        text = llm.generate(prompt, temperature=0, max_tokens=60).text
    assert len(re.findall(r"[a-z]{2,}", text)) >= 20
