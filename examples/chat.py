"""A chat of several turns. The model gets the whole conversation each time, so the program keeps it.

python examples/chat.py [MODEL]

The bundled model tells stories and does not understand questions. Try smollm2, or your own chat model.
"""

import sys

from pyllama2 import Llama

model = sys.argv[1] if len(sys.argv) > 1 else None
template = "llama2" if model is None else None  # the bundled model has no chat template

with Llama(model) as llm:
    messages = [{"role": "system", "content": "Answer in one sentence."}]
    for question in ("What is the capital of France?", "And what is it famous for?"):
        messages.append({"role": "user", "content": question})
        answer = llm.chat(messages, template=template, temperature=0, max_tokens=40)
        messages.append({"role": "assistant", "content": answer.text})

        print(f"> {question}")
        print(answer.text)
        print(f"  ({answer.finish_reason}; {answer.usage.prompt_tokens} tokens of conversation so far)")
