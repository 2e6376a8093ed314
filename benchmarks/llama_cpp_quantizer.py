"""llama.cpp's own quantization, by llama-cpp-python, with and without the importance of inputs ("imatrix").

input_mean_squares    the importance, from a text's tokens, by the PyTorch model
quantize              a GGUF file in float32 -> a GGUF file of another type
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyllama2.checkpoint.gguf import NAMES
from pyllama2.model import Transformer

Importance = Mapping[str, NDArray[np.float32]]


def input_mean_squares(model: Path, windows: NDArray[np.int32]) -> Importance:
    """Return the mean square of each input of each matrix in the layers, as llama.cpp's imatrix has it.

    Args:
        model: one of our files in float32.
        windows: int32 (n, tokens), which are independent texts.

    Returns:
        float32 (inputs,) by the tensor's name in GGUF.
    """
    transformer = Transformer.load(model)
    sums: dict[str, torch.Tensor] = {}

    def add(name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].double().square().sum(dim=(0, 1))
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("layers."):
            module.register_forward_pre_hook(add(NAMES.of(f"{name}.weight")))
    with torch.inference_mode():
        for window in windows:
            transformer(torch.from_numpy(window[None].astype(np.int64)))
    return {name: (found / windows.size).float().numpy() for name, found in sums.items()}


def quantize(source: Path, out: Path, type: str, n_threads: int, importance: Importance | None = None) -> None:
    """Write a GGUF file in another type.

    Args:
        source: a GGUF file in float32.
        out: the file to write.
        type: the name of a file type, such as "Q4_0" or "Q4_K_M".
        n_threads: threads.
        importance: of the inputs; None: without.

    Raises:
        RuntimeError: llama.cpp did not do it.
    """
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # its log has a line for each tensor
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = n_threads
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}")
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # a name of NULL ends it
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    if failed:
        raise RuntimeError(f"llama.cpp did not write {out}")
