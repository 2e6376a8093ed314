"""Continue a prompt: greedily, with random sampling, and as a stream.

python examples/completion.py [MODEL]
"""

import sys

from pyllama2 import Llama

with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    prompt = "Once upon a time"

    greedy = llm.generate(prompt, temperature=0, max_tokens=40)
    print("greedy: ", prompt + greedy.text)

    for seed in (1, 2):
        print(f"seed {seed}: ", prompt + llm.generate(prompt, temperature=0.8, seed=seed, max_tokens=40).text)

    print("stream: ", end="")
    for chunk in llm.stream("One day", temperature=0, max_tokens=30, echo=True):
        print(chunk.text, end="", flush=True)
    print()
