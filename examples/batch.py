"""Decode several prompts together. Each text is the same as when its prompt is decoded alone.

python examples/batch.py [MODEL]
"""

import sys
import time

from pyllama2 import Llama, SamplingParams

prompts = [
    "Once upon a time",
    "One day",
    "There was a little girl",
    "The sun was",
    "A dog",
    "It was dark",
    "Max",
    "Lily",
]
params = SamplingParams(temperature=0.7, seed=3, max_tokens=80)

with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    started = time.perf_counter()
    alone = [llm.generate(prompt, params) for prompt in prompts]
    one_by_one = time.perf_counter() - started

    started = time.perf_counter()
    together = llm.generate(prompts, params)
    at_once = time.perf_counter() - started

for prompt, completion in zip(prompts, together, strict=True):
    print(f"{prompt}{completion.text[:60]}...")
n_tokens = sum(completion.usage.completion_tokens for completion in together)
print(
    f"\n{n_tokens} tokens: one by one {n_tokens / one_by_one:.0f} tokens/s, together {n_tokens / at_once:.0f} tokens/s"
)
print("the same texts:", [c.text for c in alone] == [c.text for c in together])
