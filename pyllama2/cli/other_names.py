"""What other programs call our commands and flags: llama.cpp, ollama, mlx-lm, transformers, vLLM.

docs/coming-from.md has the same names in a table, which a test compares with these.
"""

from __future__ import annotations

# Commands.
COMMANDS = {
    "run": "chat",
    "talk": "chat",
    "complete": "generate",
    "completion": "generate",
    "server": "serve",
    "convert": "export",
    "quantise": "quantize",
    "benchmark": "bench",
    "eval": "perplexity",
    "evaluate": "perplexity",
    "ppl": "perplexity",
    "pull": "models get",
    "download": "models get",
    "list": "models",
    "ls": "models",
    "rm": "models remove",
    "info": "inspect",
    "show": "inspect",
    "tokenize": "inspect --tokens TEXT",
}

# Flags.
FLAGS = {
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--num-predict": "--max-tokens",
    "--max-new-tokens": "--max-tokens",
    "--repeat-penalty": "--repetition-penalty",
    "--ctx-size": "--ctx",
    "--n-ctx": "--ctx",
    "--num-ctx": "--ctx",
    "--max-model-len": "--ctx",
    "--gpu-layers": "--n-gpu-layers",
    "-ngl": "--n-gpu-layers",
    "--num-gpu": "--n-gpu-layers",
    "--main-gpu": "--device cuda:1",
    "--tensor-split": "--device cuda:0,cuda:1",
    "--gpu": "--device cuda",
    "--n-threads": "--threads",
    "--cache-type-k": "--kv-dtype",
    "--cache-type-v": "--kv-dtype",
    "-ctk": "--kv-dtype",
    "-ctv": "--kv-dtype",
    "--model-draft": "--draft",
    "-md": "--draft",
    "--draft-model": "--draft",
    "-sys": "--system",
    "--sys": "--system",
    "--sys-prompt": "--system",
    "--system-prompt": "--system",
    "--stop-sequence": "--stop",
    "--reverse-prompt": "--stop",
    "--chat-template": "--template",
    "--no-display-prompt": "--no-echo",
    "--model-path": "--model",
    "--adapter-path": "--lora",
    "--lora-scaled": "--lora PATH:SCALE",
    "--hf-repo": "--model ORG/NAME",
    "-hf": "--model ORG/NAME",
    "--load-in-8bit": "--quant q8",
    "--load-in-4bit": "--quant q4",
    "--outfile": "--output",
    "--outtype": "--dtype",
}
