"""Print how likely each generated token was, the alternatives, and how likely a given text is.

python examples/logprobs.py [MODEL]
"""

import sys
from math import exp

from pyllama2 import Llama

with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    completion = llm.generate("Once upon a time", temperature=0, max_tokens=12, logprobs=3)
    for entry in completion.logprobs or []:
        others = ", ".join(f"{text!r} {exp(logprob):.0%}" for _, text, logprob in entry.top)
        print(f"{entry.token!r:>12} {exp(entry.logprob):4.0%}   of {others}")

    print()
    for text in ("Once upon a time there was a dog.", "Once upon a time there was a tax."):
        scores = llm.score(text)  # one for each token after the first
        tokens = llm.tokenize(text)[1:]
        worst = min(range(len(scores)), key=lambda i: scores[i])
        print(f"{text}  {scores.sum():.1f} nats; least expected: {llm.tokenizer.piece(tokens[worst])!r}")
