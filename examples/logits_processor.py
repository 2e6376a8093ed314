"""Steer a text with logits processors: functions that get the raw logits and may change them.

python examples/logits_processor.py [MODEL]
"""

import sys

import numpy as np

from pyllama2 import Llama


class Forbid:
    """Forbids tokens whose text has one of these letters."""

    def __init__(self, llm, letters):
        pieces = [llm.tokenizer.piece(id).lower() for id in range(llm.config.vocab_size)]
        self.forbidden = np.array([any(letter in piece for letter in letters) for piece in pieces])

    def __call__(self, token_ids, logits):
        """Change the logits in place, so nothing is returned."""
        logits[self.forbidden] = -np.inf


def prefer_short(eos_ids, after):
    """Make a processor that makes the end of the text more likely, the longer the text is."""

    def process(token_ids, logits):
        logits = logits.copy()
        logits[list(eos_ids)] += max(0, len(token_ids) - after) * 0.5
        return logits

    return process


with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    prompt = "Once upon a time"
    options = {"temperature": 0, "max_tokens": 60}
    print("as it is:    ", prompt + llm.generate(prompt, **options).text)
    print("without b, m:", prompt + llm.generate(prompt, logits_processors=[Forbid(llm, "bm")], **options).text)
    short = llm.generate(prompt, logits_processors=[prefer_short(llm.tokenizer.eos_ids, after=10)], **options)
    print("short:       ", prompt + short.text)
