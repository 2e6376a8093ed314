"""Loads a model and prints its first token, then the peak of resident bytes. bench_vs_llama_cpp.py times this.

    python benchmarks/start_once.py pyllama2|llama_cpp MODEL THREADS

Imports are part of what is measured, so nothing is imported that the engine does not need.
"""

import sys


def pyllama2(path: str, n_threads: int, tokens: list[int]) -> int:
    """Return the most likely token after tokens, computed by pyllama2."""
    from pyllama2._cpu import CpuBackend
    from pyllama2.backend.base import Batch
    from pyllama2.loading import load_model

    model = load_model(path, quant=None, tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)
    backend = CpuBackend(model, n_threads=n_threads)
    return int(backend.forward(Batch.of_sequence(tokens), backend.new_cache(1, 512)).argmax())


def llama_cpp(path: str, n_threads: int, tokens: list[int]) -> int:
    """Return the most likely token after tokens, computed by llama.cpp."""
    import numpy as np
    from llama_cpp import llama_cpp as c_api

    silence = c_api.llama_log_callback(lambda level, text, data: None)
    c_api.llama_log_set(silence, None)
    c_api.llama_backend_init()
    model = c_api.llama_model_load_from_file(path.encode(), c_api.llama_model_default_params())
    params = c_api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = n_threads
    context = c_api.llama_init_from_model(model, params)
    array = (c_api.llama_token * len(tokens))(*tokens)
    if c_api.llama_decode(context, c_api.llama_batch_get_one(array, len(tokens))) != 0:
        raise RuntimeError("llama_decode failed")
    vocab_size = c_api.llama_vocab_n_tokens(c_api.llama_model_get_vocab(model))
    return int(np.ctypeslib.as_array(c_api.llama_get_logits_ith(context, -1), (vocab_size,)).argmax())


def peak_resident_bytes() -> int:
    """Return the most bytes that this process had resident so far, with mapped files."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) << 10


if __name__ == "__main__":
    engine = {"pyllama2": pyllama2, "llama_cpp": llama_cpp}[sys.argv[1]]
    print(engine(sys.argv[2], int(sys.argv[3]), list(range(1, 9))), flush=True)
    print(peak_resident_bytes())
