"""Compare a model in 8 and 4 bits with the same model in float32.

python examples/compare_quantizations.py CHECKPOINT [TEXT_FILE]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import pyllama2

checkpoint = sys.argv[1]
text = Path(sys.argv[2]).read_text() if len(sys.argv) > 2 else "Once upon a time, there was a little girl named Lily."

with tempfile.TemporaryDirectory() as folder:
    exact_path = Path(folder) / "float32.bin"
    pyllama2.export(checkpoint, exact_path)
    with pyllama2.Llama(exact_path, quant=None) as llm:
        tokens = llm.tokenize(text)[: llm.n_ctx]
        exact = llm.score(tokens)
        print(f"float32  {exact_path.stat().st_size:>12,} bytes  {np.exp(-exact.mean()):8.3f} perplexity")
    for type in ("q8", "q4"):
        path = Path(folder) / f"{type}.bin"
        pyllama2.quantize(exact_path, path, type, group_size=32)
        with pyllama2.Llama(path) as llm:
            scores = llm.score(tokens)
        difference = np.abs(scores - exact).mean()
        print(
            f"{type:<8} {path.stat().st_size:>12,} bytes  {np.exp(-scores.mean()):8.3f} perplexity, "
            f"log-probabilities off by {difference:.4f} on average"
        )
