"""Device memory that a forward pass writes to, made from the plan's list; kept from pass to pass, so that graphs may
hold its addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Batch
from ..config import ModelConfig
from ..sampling.sampler import Draw
from ..storage.weights import Quantization
from .launchers.sample import encode
from .layout import Vectors, allocate
from .planner import DECODE_TOKENS, INPUTS, workspace_arrays


class Workspace:
    """Scratch arrays for passes of up to n_tokens tokens, over sequences of up to max_seq_len.

    x          (n_tokens, dim) float32, the residual stream; q, k, v, attention, gate_up and logits are the others
    normed     quantized vectors: the input of wqkv and of w13; others are wo_input, w2_input, final (of output)
    rope_table (max_seq_len, head_dim / 2, 2) float32, cosine and sine of each position and pair
    tokens, rows, positions, outputs, tiles   int32, of the pass, after put()
    draws      (8, words of a draw) uint64, after put_draws(); sampled (8,) int32
    counters   zeros between two kernels: "last block" counts, in three parts
    """

    def __init__(self, cupy: Any, config: ModelConfig, quantization: Quantization, max_seq_len: int, n_tokens: int):
        shapes = workspace_arrays(config, quantization, max_seq_len, n_tokens)
        arrays = allocate(cupy, shapes)
        self.max_seq_len, self.n_tokens = max_seq_len, max(n_tokens, DECODE_TOKENS)
        self.nbytes = sum(int(array.nbytes) for array in arrays.values())
        self.x, self.q, self.kv, self.attention = (arrays[name] for name in ("x", "q", "kv", "attention"))
        self.k, self.v = self.kv[0], self.kv[1]
        self.gate_up, self.logits, self.rope_table = (arrays[name] for name in ("gate_up", "logits", "rope_table"))
        self.rope_table.set(rope_table(config, max_seq_len))
        self.attention_parts, self.attention_counters = arrays["attention.parts"], arrays["attention.counters"]
        counters = arrays["counters"]
        for zeros in (counters, self.attention_counters):
            zeros.fill(0)
        self.counter, others = counters[:1], counters[1:]
        self.head_counters, self.group_counters = others[: 2 * config.n_kv_heads], others[2 * config.n_kv_heads :]

        def vectors(name: str, type: str, columns: int) -> Vectors:
            codes, scales, offsets = (arrays[f"{name}.{part}"] for part in ("codes", "scales", "offsets"))
            return Vectors(type, codes.shape[0], columns, quantization.group_size, codes, scales, offsets)

        self.normed = vectors("normed", quantization.type, config.dim)
        self.wo_input = vectors("wo_input", quantization.type, config.q_dim)
        self.w2_input = vectors("w2_input", quantization.type, config.hidden_dim)
        self.final = vectors("final", quantization.output_type, config.dim)
        self.draws, self.sampled = arrays["draws"], arrays["sampled"]
        self._inputs = Mirror(cupy, arrays["inputs"].reshape(-1))
        self._draws = Mirror(cupy, self.draws)
        self._fetched = pinned(cupy, self.logits.shape, np.float32)
        self._fetched_ids = pinned(cupy, self.sampled.shape, np.int32)

    def put(self, part: Batch, outputs: NDArray[np.int32], tiles: NDArray[np.int32], *, changes: bool = False) -> None:
        """Copies the inputs of a pass to the device, at once, unless it has them. What was there must not be needed.

        part     the tokens; a pass of decoding has the same addresses, however many they are
        outputs  indices of tokens, for norm -> output
        tiles    (n_tiles, 2) as AttendPrompt.tiles() has them
        changes  whether the pass makes the next one's inputs of them
        """
        n = len(part.tokens)
        room = DECODE_TOKENS if n <= DECODE_TOKENS else self.n_tokens
        inputs = self._inputs.device[: INPUTS * room].reshape(INPUTS, room)
        self.tokens, self.rows, self.positions, self.outputs = (inputs[i] for i in range(4))
        self.tiles = inputs[4:].reshape(room, 2)
        staged = self._inputs.staged
        for i, values in enumerate((part.tokens, part.rows, part.positions, outputs, tiles.reshape(-1))):
            staged[i * room : i * room + len(values)] = values
        self._inputs.push(INPUTS * room)
        if changes:
            self._inputs.forget()

    def put_draws(self, draws: Sequence[Draw]) -> None:
        """Copies the draws of a pass, up to 8, to the device, unless it has them."""
        encode(draws, self._draws.staged)
        self._draws.push(len(self._draws.staged))

    def fetch_sampled(self, n: int) -> NDArray[np.int32]:
        """The first n tokens that were sampled, valid until the next call; waits for the device.

        The device has made them, and positions that are one more, the next step's inputs: put() need not copy those.
        """
        sampled: NDArray[np.int32] = np.asarray(self.sampled[:n].get(out=self._fetched_ids[:n]))
        inputs = self._inputs.staged[: INPUTS * DECODE_TOKENS].reshape(INPUTS, DECODE_TOKENS)
        inputs[0, :n] = np.maximum(sampled, 0)
        inputs[2, :n] += 1
        self._inputs.confirm(INPUTS * DECODE_TOKENS)
        return sampled

    def fetch_logits(self, n: int) -> NDArray[np.float32]:
        """The first n vectors of logits on the host, valid until the next call; waits for the device."""
        return np.asarray(self.logits[:n].get(out=self._fetched[:n]))


class Mirror:
    """A device array and the host's copy of it, from which it is written when it holds something else.

    device   the array, addressed by its first axis
    staged   host memory of the same shape and dtype, to be filled before push()
    """

    def __init__(self, cupy: Any, device: Any) -> None:
        self.device = device
        self.staged = pinned(cupy, device.shape, device.dtype)
        self._held: bytes | None = None  # by the beginning of device; None: unknown

    def push(self, n: int) -> None:
        """Makes device[:n] what staged[:n] is."""
        wanted = self.staged[:n].tobytes()
        if wanted != self._held:
            self._held = None  # until the copy is made
            self.device[:n].set(self.staged[:n])
            self._held = wanted

    def forget(self) -> None:
        """Kernels are about to write to device."""
        self._held = None

    def confirm(self, n: int) -> None:
        """Kernels have written to device[:n] what staged[:n] is."""
        self._held = self.staged[:n].tobytes()


def rope_table(config: ModelConfig, max_seq_len: int) -> NDArray[np.float32]:
    """Cosine and sine of the angle of each position and pair, (max_seq_len, head_dim / 2, 2); float64 until the end."""
    angles = np.outer(np.arange(max_seq_len, dtype=np.float64), np.asarray(config.rope_frequencies(), np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def pinned(cupy: Any, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Host memory that the GPU copies from and to by itself; zeros."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
    array: NDArray[Any] = memory.view(dtype).reshape(shape)
    array.fill(0)
    return array
