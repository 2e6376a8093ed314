"""LoRA adapters: low-rank changes of a model's matrices, merged into its weights. Start at with_adapters().

    W + scale * alpha / r * B A        A (r, inputs), B (outputs, r); Hu et al., arXiv:2106.09685

adapter.py     what an adapter holds, and a checkpoint with adapters merged into it
peft.py        adapters of PEFT: adapter_config.json and adapter_model.safetensors
gguf.py        adapters in GGUF files
opening.py     with_adapters(): the reader for what is at a path
"""

from .opening import with_adapters

__all__ = ["with_adapters"]
