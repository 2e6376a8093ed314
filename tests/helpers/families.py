"""Models of other families, which transformers computes: the configs, and the logits that it gave.

The logits are in tests/data/transformers_reference.json, with the version of transformers that computed them. Where
transformers is installed, `python -m helpers.families`, run in tests/, computes them anew.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.foreign import write_huggingface
from helpers.tiny import BIASES, GQA, QWEN2, random_weights
from pyllama2.config import ModelConfig

REFERENCE = Path(__file__).parents[1] / "data" / "transformers_reference.json"
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@dataclass(frozen=True)
class Family:
    """A model.

    Attributes:
        config: its dimensions.
        n_tokens: the number of tokens of its text.
        changes: of the config.json.
    """

    config: ModelConfig
    n_tokens: int
    changes: dict[str, Any] = field(default_factory=dict)

    def tokens(self) -> list[int]:
        """The text."""
        return np.random.default_rng(9).integers(0, self.config.vocab_size, self.n_tokens).tolist()

    def write(self, folder: Path) -> Path:
        """A directory of Hugging Face."""
        return write_huggingface(folder, self.config, random_weights(self.config, seed=3), **self.changes)


_MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
FAMILIES = {
    "qwen2": Family(replace(QWEN2, rope_scaling=None), 40, {"use_sliding_window": False, "sliding_window": 16}),
    "qwen2 yarn": Family(QWEN2, 120, {"rope_scaling": _YARN, "max_position_embeddings": 128}),
    "llama yarn": Family(
        GQA, 60, {"rope_scaling": _YARN | {"factor": 8.0, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0}}
    ),
    "llama yarn mscale": Family(GQA, 60, {"rope_scaling": _YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}}),
    "llama biases": Family(BIASES, 50),
    "llama dynamic": Family(GQA, 64, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama linear": Family(GQA, 64, {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "mistral": Family(GQA, 40, _MISTRAL | {"sliding_window": None}),
    "mistral window": Family(GQA, 24, _MISTRAL | {"sliding_window": 24}),
}


def transformers_logits(family: Family) -> NDArray[np.float32]:
    """Logits (vocab_size,) of the last token, as transformers computes them."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(
            family.write(Path(folder)), dtype=torch.float32, attn_implementation="eager"
        )
        result: NDArray[np.float32] = model(torch.tensor([family.tokens()])).logits[0, -1].numpy()
    return result


def main() -> None:
    """Write the reference."""
    import transformers

    logits = {name: [round(float(x), 5) for x in transformers_logits(family)] for name, family in FAMILIES.items()}
    REFERENCE.write_text(json.dumps({"transformers": transformers.__version__, "logits": logits}) + "\n")


if __name__ == "__main__":
    main()
