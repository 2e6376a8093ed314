"""Device memory that a forward pass writes to. It stays from pass to pass, so that graphs can have its addresses."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.base import Batch
from ..config import ModelConfig
from ..sampling.sampler import Draw
from ..storage.weights import Quantization
from .launchers.sample import encode
from .layout import VECTOR_PARTS, Kind, Vectors, allocate, copy_to
from .planner import DECODE_TOKENS, INPUTS, input_kinds, vectors_name, workspace_arrays

STEPS_AT_ONCE = 2  # steps that the device may have: it computes one, and has the inputs of the next


class Workspace:
    """Scratch arrays for passes of up to n_tokens tokens, over sequences of up to max_seq_len.

    With hands_over, put_hidden() and fetch_hidden() can be used.

    Attributes:
        x: (n_tokens, dim) float32, the residual stream. logits are float32, too.
        q, attention, kv, gate_up: float32, room for n_tokens. gate_up lies where the others do: they are not needed any
            more when it is.
        normed: vectors, the input of wqkv and w13, quantized or sorted for them. wo_input and w2_input are the input of
            wo and w2. There are vectors of each kind that these matrices have in some layer.
        final: vectors, the input of output.
        rope_table: (max_seq_len, head_dim / 2, 2) float32, cosine and sine of each position and pair.
        tokens, rows, positions, outputs, tiles: int32, the inputs of the pass after put().
        draws: (8, DRAW_WORDS) uint64, after put_draws().
        sampled: (8,) int32.
        counter, head_counters, group_counters, attention_counters: with these a block finds out whether it is the last
            one. They are zeros between two kernels.
    """

    def __init__(
        self, cupy: Any, config: ModelConfig, quantization: Quantization, max_seq_len: int, n_tokens: int, *,
        hands_over: bool = False,
    ) -> None:  # fmt: skip
        shapes = workspace_arrays(config, quantization, max_seq_len, n_tokens)
        arrays = allocate(cupy, shapes)
        self.max_seq_len, self.n_tokens = max_seq_len, max(n_tokens, DECODE_TOKENS)
        self.nbytes = sum(int(array.nbytes) for array in arrays.values())
        self.x, self.logits, self.rope_table = (arrays[name] for name in ("x", "logits", "rope_table"))
        ends = self.n_tokens * np.cumsum([0, config.q_dim, config.q_dim, 2 * config.kv_dim])
        self.q, self.attention, self.kv = (arrays["scratch"][first:end] for first, end in pairwise(ends.tolist()))
        self.gate_up = arrays["scratch"]
        copy_to(cupy, rope_table(config, max_seq_len), self.rope_table)
        self.attention_parts, self.attention_counters = arrays["attention.parts"], arrays["attention.counters"]
        counters = arrays["counters"]
        for zeros in (counters, self.attention_counters):
            zeros.fill(0)
        self.counter, others = counters[:1], counters[1:]
        self.head_counters, self.group_counters = others[: 2 * config.n_kv_heads], others[2 * config.n_kv_heads :]

        inputs = input_kinds(config, quantization)

        def vectors(name: str, columns: int) -> dict[Kind, Vectors]:
            found: dict[Kind, Vectors] = {}
            for kind in inputs[name]:
                type, group_size = kind
                parts: dict[str, Any] = {
                    part: arrays.get(f"{vectors_name(name, kind)}.{part}") for part in VECTOR_PARTS
                }
                found[kind] = Vectors(type, parts["codes"].shape[0], columns, group_size, **parts)
            return found

        self.normed = vectors("normed", config.dim)
        self.wo_input = vectors("wo_input", config.q_dim)
        self.w2_input = vectors("w2_input", config.hidden_dim)
        (self.final,) = vectors("final", config.dim).values()
        self.draws, self.sampled = arrays["draws"], arrays["sampled"]
        self._inputs = Mirror(cupy, arrays["inputs"].reshape(-1))
        self._draws = Mirror(cupy, self.draws, STEPS_AT_ONCE)
        self._fetched = pinned(cupy, self.logits.shape, np.float32)
        self._fetched_ids = pinned(cupy, (STEPS_AT_ONCE, *self.sampled.shape), np.int32)
        self._fetches = [cupy.cuda.Event(disable_timing=True) for _ in range(STEPS_AT_ONCE)]
        self._slot = 0
        self._hidden = pinned(cupy, (2, *self.x.shape), np.float32) if hands_over else None

    def put(self, part: Batch, outputs: NDArray[np.int32], tiles: NDArray[np.int32], *, changes: bool = False) -> None:
        """Copy the inputs of a pass to the device in one piece, unless they are there already.

        The inputs of the last pass must not be needed any more.

        Args:
            part: the tokens. Decoding passes of any number of tokens have the same addresses.
            outputs: indices of tokens, for norm -> output.
            tiles: (n_tiles, 2) as AttendPrompt.tiles() returns them.
            changes: whether the pass turns them into the inputs of the next one.
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
        """Copy the draws of a step, at most 8, to the device, unless they are there already.

        Of the steps before it, only the last one may still be under way.
        """
        encode(draws, self._draws.staged)
        self._draws.push(len(draws))

    def begin_fetch(self, n: int) -> int:
        """Have the first n tokens that a step samples copied to the host. Returns what fetch_sampled() needs.

        The tokens of the step before the last must have been fetched.
        """
        self._slot = (self._slot + 1) % STEPS_AT_ONCE
        self.sampled[:n].get(out=self._fetched_ids[self._slot, :n], blocking=False)
        self._fetches[self._slot].record()
        return self._slot

    def fetch_sampled(self, slot: int, n: int) -> NDArray[np.int32]:
        """Wait for the step for which begin_fetch() gave slot, and for no later one. Returns its n tokens."""
        self._fetches[slot].synchronize()
        return self._fetched_ids[slot, :n].copy()

    def confirm_inputs(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Note that the last step sampled tokens at positions: the device made the inputs of the next one of them.

        put() does not copy those again.
        """
        n = len(tokens)
        inputs = self._inputs.staged[: INPUTS * DECODE_TOKENS].reshape(INPUTS, DECODE_TOKENS)
        inputs[0, :n] = np.maximum(tokens, 0)
        inputs[2, :n] = positions + 1
        self._inputs.confirm(INPUTS * DECODE_TOKENS)

    def put_hidden(self, hidden: NDArray[np.float32]) -> None:
        """Copy the residual stream (n, dim) of a pass to x. The pass must end before this is called again."""
        assert self._hidden is not None
        staged = self._hidden[0, : len(hidden)]
        staged[:] = hidden
        self.x[: len(hidden)].set(staged)

    def fetch_hidden(self, n: int) -> NDArray[np.float32]:
        """Wait for the device. Returns x of the first n tokens, valid until the next call."""
        assert self._hidden is not None
        return np.asarray(self.x[:n].get(out=self._hidden[1, :n]))

    def fetch_logits(self, n: int) -> NDArray[np.float32]:
        """Wait for the device. Returns the first n vectors of logits, valid until the next call."""
        return np.asarray(self.logits[:n].get(out=self._fetched[:n]))


class Mirror:
    """A device array and copies of it on the host. What the device has already is not copied again.

    Args:
        cupy: the module, or a stand-in.
        device: the array.
        n_staged: pieces of host memory, which take turns: one may be filled while another is still to be copied.

    Attributes:
        device: the array.
    """

    def __init__(self, cupy: Any, device: Any, n_staged: int = 1) -> None:
        self.device = device
        self._staged: deque[NDArray[Any]] = deque(pinned(cupy, (n_staged, *device.shape), device.dtype))
        self._held = b""  # bytes at the beginning of device, as far as they are known

    @property
    def staged(self) -> NDArray[Any]:
        """Host memory of the same shape and dtype, to be filled before push()."""
        return self._staged[0]

    def push(self, n: int) -> None:
        """Copy staged[:n] to device[:n], unless they are equal. Then staged is the next piece."""
        wanted = self.staged[:n].tobytes()
        if not self._held.startswith(wanted):
            self._held = b""  # in case the copy fails
            self.device[:n].set(self.staged[:n])
            self._held = wanted
            self._staged.rotate()

    def forget(self) -> None:
        """Note that kernels will write to device."""
        self._held = b""

    def confirm(self, n: int) -> None:
        """Note that kernels have written to device[:n] what is in staged[:n]."""
        self._held = self.staged[:n].tobytes()


def rope_table(config: ModelConfig, max_seq_len: int) -> NDArray[np.float32]:
    """Return cosine and sine of the angle of each position and pair, (max_seq_len, head_dim / 2, 2).

    They are computed in float64 and rounded at the end.
    """
    angles = np.outer(np.arange(max_seq_len, dtype=np.float64), np.asarray(config.rope_frequencies(), np.float64))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * config.rope_attention_factor
    return table.astype(np.float32)


def pinned(cupy: Any, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Allocate pinned host memory, which the GPU can read and write by itself. It is filled with zeros."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: NDArray[Any] = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
    array: NDArray[Any] = memory.view(dtype).reshape(shape)
    array.fill(0)
    return array
