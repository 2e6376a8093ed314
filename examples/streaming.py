"""Print a text as it is generated, and stop after two sentences.

python examples/streaming.py [MODEL]
"""

import sys

from pyllama2 import Llama

with Llama(sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    # A chunk has the text that its token made certain. The last one says why the text ended.
    for chunk in llm.stream("Once upon a time", seed=1, stop="\n", max_tokens=60):
        print(chunk.text, end="", flush=True)
    print(f"\n({chunk.finish_reason})\n")

    # close() ends a stream at any time. completion is what has come until then.
    stream = llm.stream("Once upon a time", seed=2, max_tokens=200)
    text = ""
    while text.count(".") < 2 and (chunk := next(stream, None)):
        text += chunk.text
    stream.close()
    done = stream.completion
    print("Once upon a time" + done.text)
    print(f"({done.finish_reason} after {done.usage.completion_tokens} tokens)")
