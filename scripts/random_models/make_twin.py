"""Makes a twin of a model whose weights were quantized once: noise breaks the grid that they lie on.

    python scripts/random_models/make_twin.py smollm2 twin.bin

`benchmarks/how_close.py --model twin.bin` measures on it.

Published 4-bit models have weights that some method of 4 bits reproduces to the bit, which says nothing about other
models. Each weight of a twin differs from the model's by up to half a step of a grid of 16 numbers over its group of
32, as if it had been rounded from there. The embedding and norms stay. The twin is our file, in float32.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir))

from pyllama2.checkpoint import open_checkpoint
from pyllama2.model_names import find_model
from pyllama2.storage.model_file import ModelWriter, StoredModel
from pyllama2.storage.weights import Quantization, Weight

GROUP = 32
STEPS = 15  # from the smallest to the largest number of a group


def with_noise(matrix: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a matrix (rows, columns) with up to half a step of noise; its columns are a multiple of GROUP."""
    groups = matrix.reshape(-1, GROUP)
    step = np.ptp(groups, axis=1, keepdims=True) / STEPS
    noise = rng.uniform(-0.5, 0.5, groups.shape).astype(np.float32)
    return (groups + noise * step).reshape(matrix.shape)


def make_twin(model: str, out: str, seed: int) -> None:
    """Write the twin of a model.

    Args:
        model: a name or a path.
        out: the file to write.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    with closing(open_checkpoint(find_model(model))) as source:
        twin = StoredModel(
            source.config, Quantization.of("float32"), source.tokenizer, source.chat_template, f"a twin of {model}"
        )
        with ModelWriter(out, twin) as writer:
            for name, shape, tensor in source.tensors():
                array = np.asarray(tensor.read(), np.float32)
                if name.startswith("layers.") and array.ndim == 2:
                    array = with_noise(array, rng)
                writer.write(Weight(name, "float32", shape, np.ascontiguousarray(array)))
                tensor.release()


def main() -> None:
    """Make the twin that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a path")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    args = parser.parse_args()
    make_twin(args.model, args.out, args.seed)


if __name__ == "__main__":
    main()
