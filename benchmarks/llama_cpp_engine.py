"""llama.cpp as an engine of engines.py, through the package llama-cpp-python.

The settings are llama.cpp's defaults (flash attention "auto", repacked weights, a float16 cache), with two exceptions:
prompts and decoding use the same number of threads, and n_batch = n_ubatch = 512.
"""

from __future__ import annotations

import ctypes
import struct
import time
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as c_api

from pyllama2.analysis.benchmark import random_tokens
from pyllama2.checkpoint.gguf_header import read_header
from pyllama2.storage.mapped import MappedFile

_BATCH = 512
_SAMPLE = 16  # tokens whose keys and values are repeated to fill a cache


@c_api.llama_log_callback
def _silence(level: int, text: bytes, data: Any) -> None:
    pass


class LlamaCppEngine:
    """A GGUF file, run with the functions of llama.h.

    Args:
        path: the file.
        flash_attention: whether llama.cpp may use it, as it does by default.
    """

    def __init__(self, path: str, flash_attention: bool = True) -> None:
        self._flash_attention = flash_attention
        c_api.llama_log_set(_silence, None)
        c_api.llama_backend_init()
        self._model = c_api.llama_model_load_from_file(path.encode(), c_api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab_size = c_api.llama_vocab_n_tokens(c_api.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._filled = 0
        kv_dim = c_api.llama_model_n_embd(self._model) // c_api.llama_model_n_head(self._model)
        kv_dim *= c_api.llama_model_n_head_kv(self._model)
        self._cache_bytes = 4 * c_api.llama_model_n_layer(self._model) * kv_dim  # of a position, keys and values
        tensors = read_header(MappedFile(path)).tensors
        tied = "output.weight" not in tensors
        self._weight_bytes = sum(t.nbytes for name, t in tensors.items() if tied or name != "token_embd.weight")

    def configure(self, n_ctx: int, n_sequences: int, n_threads: int) -> None:
        """Make a new context."""
        if self._context is not None:
            c_api.llama_free(self._context)
        params = c_api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx * n_sequences, n_sequences
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = n_threads
        if not self._flash_attention:
            params.flash_attn_type = c_api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = c_api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._filled = 0

    def prompt(self, n: int) -> float:
        """Return the seconds for a prompt of n tokens."""
        self._forget(0)
        tokens = random_tokens(self._vocab_size, n)
        started = time.perf_counter()
        for first in range(0, n, _BATCH):
            self._forward(tokens[first : first + _BATCH])
        return time.perf_counter() - started

    def decode(self, n: int, position: int) -> float:
        """Return the seconds for n tokens, one after the other. Keys and values before them are made up if possible."""
        if position == 0 or self._filled != position:
            self._fill(position)
        self._forget(position)
        started = time.perf_counter()
        for token in random_tokens(self._vocab_size, n):
            self._forward([token])
        return time.perf_counter() - started

    def decode_together(self, n: int, n_sequences: int) -> float:
        """Return the seconds for n steps of n_sequences tokens."""
        self._forget(0)
        tokens = random_tokens(self._vocab_size, n_sequences)
        batch = c_api.llama_batch_init(n_sequences, 0, 1)
        batch.n_tokens = n_sequences
        for i, token in enumerate(tokens):
            batch.token[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, 1, i, 1
        started = time.perf_counter()
        for step in range(n):
            for i in range(n_sequences):
                batch.pos[i] = step
            self._check(c_api.llama_decode(self._context, batch))
            c_api.llama_synchronize(self._context)
        took = time.perf_counter() - started
        c_api.llama_batch_free(batch)
        return took

    def bytes_per_token(self, position: float) -> tuple[int, int]:
        """Return the bytes of weights, and of keys and values, that decoding reads."""
        return self._weight_bytes, round(self._cache_bytes * (position + 1))

    def describe(self) -> dict[str, Any]:
        """Return facts for the report."""
        info = c_api.llama_print_system_info().decode().strip()
        how = "auto (default)" if self._flash_attention else "off"
        return {"llama_cpp_python": llama_cpp.__version__, "system_info": info, "flash_attention": how}

    def _forward(self, tokens: list[int]) -> None:
        array = (c_api.llama_token * len(tokens))(*tokens)
        self._check(c_api.llama_decode(self._context, c_api.llama_batch_get_one(array, len(tokens))))
        c_api.llama_synchronize(self._context)

    def _check(self, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def _forget(self, position: int) -> None:
        """Forget all positions from one on."""
        c_api.llama_memory_seq_rm(c_api.llama_get_memory(self._context), -1, position, -1)
        self._filled = min(self._filled, position)

    def _fill(self, n: int) -> None:
        """Fill n positions of sequence 0."""
        self._forget(0)
        sample = min(n, _SAMPLE)
        if sample:
            self._forward(random_tokens(self._vocab_size, sample))
        if n > sample:
            size = c_api.llama_state_seq_get_size(self._context, 0)
            buffer = (ctypes.c_uint8 * size)()
            c_api.llama_state_seq_get_data(self._context, buffer, size, 0)
            self._forget(0)
            state = tiled_state(bytes(buffer), n)
            if state is not None:
                filled = (ctypes.c_uint8 * len(state)).from_buffer(state)
                if c_api.llama_state_seq_set_data(self._context, filled, len(state), 0) != len(state):
                    state = None
            if state is None:
                self._forget(0)
                for first in range(0, n, _BATCH):
                    self._forward(random_tokens(self._vocab_size, min(_BATCH, n - first)))
        self._filled = n


def tiled_state(state: bytes, n: int) -> bytearray | None:
    """Make the state of a sequence of n tokens by repeating the keys and values of a shorter state.

    The layout is that of llama.cpp in late 2026:

        magic, a word, number of streams (1), number of tokens
        position, 1, 0 for each token
        whether values are transposed (0), number of layers
        for all keys, then for all values of a layer: type, int64 bytes per token, the bytes

    Returns:
        The new state. None if the layout of state is another.
    """
    head, one, count = state[:8], *struct.unpack_from("<2i", state, 8)
    at = 16 + 12 * count
    cells = struct.unpack_from(f"<{3 * count}i", state, 16)
    transposed, layers = struct.unpack_from("<2i", state, at)
    if (one, transposed) != (1, 0) or cells != tuple(x for i in range(count) for x in (i, 1, 0)):
        return None
    result = bytearray(head + struct.pack("<2i", 1, n))
    result += struct.pack(f"<{3 * n}i", *(x for i in range(n) for x in (i, 1, 0)))
    result += state[at : at + 8]
    at += 8
    for _ in range(2 * layers):
        if at + 12 > len(state):
            return None
        row = struct.unpack_from("<q", state, at + 4)[0]
        result += state[at : at + 12]
        rows = state[at + 12 : at + 12 + count * row]
        result += (rows * -(-n // count))[: n * row]
        at += 12 + count * row
    return result if at == len(state) else None


class LlamaCppApi:
    """The class llama_cpp.Llama on a GGUF file."""

    def __init__(self, path: str, n_ctx: int, n_threads: int) -> None:
        self._llm = llama_cpp.Llama(
            path, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, n_batch=_BATCH, verbose=False
        )

    def generate(self, tokens: list[int], n: int, seed: int, sampling: dict[str, float]) -> tuple[float, float]:
        """Return the seconds from the call to the first token, and for each token after it."""
        self._llm.reset()
        started = time.perf_counter()
        counts, times = [], []
        options = dict(sampling)
        options["repeat_penalty"] = options.pop("repetition_penalty")
        for _ in self._llm.create_completion(tokens, max_tokens=n, seed=seed, stream=True, **options):
            times.append(time.perf_counter())
            counts.append(self._llm.n_tokens)
        return times[0] - started, (times[-1] - times[0]) / max(1, counts[-1] - counts[0])
