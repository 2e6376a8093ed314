"""Checks stories of the bundled model, and compares them with the corpus that it learned from.

    python scripts/demo_model/check_demo_model.py                        # ten stories, and the corpus of 11,000
    python scripts/demo_model/check_demo_model.py --seeds 100 --quiet
    python scripts/demo_model/check_demo_model.py --against stories260K.bin --tokenizer tok512.bin   # held out

A story is good if it has at least 60 words, ends by itself with a full stop within 220 tokens, has only words of the
corpus and at most two names, the hero and the friend have different names, and no run of 12 words is in the corpus.
Words are compared in lower case and without punctuation, across the ends of sentences. The exit code is 1 if less than
nine of ten stories are good, two are equal, the first words take more than 0.5 s, or the other model predicts the
held-out stories better.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllama2 import Completion, Llama, perplexity

sys.path.insert(0, str(Path(__file__).resolve().parent))

from story_grammar import held_out_stories, training_stories, word_lists

PROMPT = "Once upon a time"
FEWEST_WORDS, MOST_TOKENS, LONGEST_RUN, MOST_SECONDS = 60, 220, 11, 0.5
KEY = 5  # words that are looked up together


@dataclass
class Verdict:
    """A story with its faults."""

    completion: Completion
    longest_run: int
    faults: list[str]


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())


def longest_runs(texts: Sequence[str], corpus: Iterable[str]) -> list[list[str]]:
    """Find the longest run of words that each text shares with a story of the corpus. Runs below KEY count as empty."""
    words = [words_of(text) for text in texts]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, text in enumerate(words):
        for start in range(len(text) - KEY + 1):
            places.setdefault(tuple(text[start : start + KEY]), []).append((number, start))
    longest: list[list[str]] = [[] for _ in texts]
    for story in map(words_of, corpus):
        for at in range(len(story) - KEY + 1):
            for number, start in places.get(tuple(story[at : at + KEY]), ()):
                text, length = words[number], KEY
                while text[start + length : start + length + 1] == story[at + length : at + length + 1] != []:
                    length += 1
                if length > len(longest[number]):
                    longest[number] = text[start : start + length]
    return longest


def judge(completions: Sequence[Completion], corpus: Sequence[str]) -> list[Verdict]:
    """Judge each story."""
    known = {word for story in corpus for word in words_of(story)}
    names = {*word_lists()["girl"], *word_lists()["boy"]}
    verdicts = []
    runs = longest_runs([completion.text for completion in completions], corpus)
    for completion, run in zip(completions, runs, strict=True):
        text, faults = completion.text, []
        if completion.finish_reason != "stop":
            faults.append(f"does not end within {MOST_TOKENS} tokens")
        elif not text.endswith("."):
            faults.append("does not end with a full stop")
        if len(words_of(text)) < FEWEST_WORDS:
            faults.append(f"has {len(words_of(text))} words")
        if len(run) > LONGEST_RUN:
            faults.append(f"has {len(run)} words in common with the corpus: {' '.join(run)}")
        if unknown := set(words_of(text)) - known:
            faults.append(f"has unknown words: {', '.join(sorted(unknown))}")
        if len(set(re.findall(r"[A-Z][a-z]+", text)) & names) > 2:
            faults.append("has more than two names")
        if re.search(r"\b([A-Z][a-z]+) and \1\b", text):
            faults.append("names hero and friend alike")
        if text.count('"') % 2:
            faults.append("has an open quotation mark")
        verdicts.append(Verdict(completion, len(run), faults))
    return verdicts


def check_stories(args: argparse.Namespace) -> bool:
    """Generate stories and print them with their faults. Returns whether enough are good."""
    with Llama(args.model) as llm:
        completions = [
            llm.generate(PROMPT, temperature=args.temperature, max_tokens=MOST_TOKENS, seed=seed, echo=True)
            for seed in range(args.first_seed, args.first_seed + args.seeds)
        ]
    verdicts = judge(completions, training_stories(args.stories))
    for seed, verdict in enumerate(verdicts, args.first_seed):
        if not args.quiet or verdict.faults:
            story = verdict.completion
            figures = f"{len(words_of(story.text))} words, {story.usage.completion_tokens} tokens"
            print(f"seed {seed}: {figures}, longest run {verdict.longest_run}; {'; '.join(verdict.faults) or 'good'}")
            print(story.text, end="\n\n")
    n_good = sum(not verdict.faults for verdict in verdicts)
    n_different = len({completion.text for completion in completions})
    print(f"{n_good} of {len(verdicts)} stories are good, {n_different} are different")
    return n_good >= 0.9 * len(verdicts) and n_different == len(verdicts)


def check_start(model: str | None) -> bool:
    """Print the median time from the start of the command to the first words. Returns whether it is short enough."""
    command = [sys.executable, "-m", "pyllama2.generate", *(["-m", model] if model else []), PROMPT]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.read(len(PROMPT) + 2)  # a character more than the prompt and a space or comma
            seconds.append(time.perf_counter() - started)
            process.communicate()
    median = statistics.median(seconds)
    print(f"from the start of Python to the first words: {median:.2f} s")
    return median < MOST_SECONDS


def check_held_out(args: argparse.Namespace) -> bool:
    """Compare bits per byte of both models on held-out stories, as pyllama2 perplexity measures them."""
    with Llama(args.model) as ours, Llama(args.against, tokenizer=args.tokenizer) as theirs:
        # One story at a time, so that each starts from BOS as in the training of both models.
        bits, n_bytes = [0.0, 0.0], 0
        for story in held_out_stories(args.held_out):
            n_bytes += len(story.encode())
            for which, llm in enumerate((ours, theirs)):
                found = perplexity(llm, story)
                bits[which] += found.bits_per_byte * found.n_bytes
    print(f"held-out stories, bits per byte: {bits[0] / n_bytes:.3f}, the other model {bits[1] / n_bytes:.3f}")
    return bits[0] < bits[1]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", help="default: the bundled model")
    parser.add_argument("--seeds", type=int, default=10, help="stories to write")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--stories", type=int, default=11_000, help="stories of the corpus, as it was trained on")
    parser.add_argument("--quiet", action="store_true", help="print only stories with faults")
    parser.add_argument("--against", help="a model to compare held-out loss with")
    parser.add_argument("--tokenizer", help="its tokenizer")
    parser.add_argument("--held-out", type=int, default=100, help="held-out stories to compare on")
    args = parser.parse_args()
    checks = [check_stories(args), check_start(args.model)]
    if args.against:
        checks.append(check_held_out(args))
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
