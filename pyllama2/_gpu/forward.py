"""The forward pass on a GPU: the steps of model.py. A kernel may do several of them.

    decode_step    1 to 8 tokens: five kernels a layer, and two more. sample() is another. The launches do not depend on
                   the tokens, so that a graph of them serves all steps.
    prompt_chunk   more tokens: a kernel for each step.

Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config import ModelConfig
from ..storage.weights import Quantization
from .cache import CudaKVCache
from .device_model import DeviceModel
from .launchers.attention import Attend, AttendPrompt
from .launchers.cache import Append
from .launchers.matmul import Matmul, Rope
from .launchers.matvec import Matvec, QkvMatvec
from .launchers.sample import Sample
from .launchers.vectors import Norm, VectorKernels
from .workspace import Workspace


class Forward:
    """The kernels of one model, compiled for its GPU. Kernels for n tokens are compiled when they are first needed.

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        quantization: of its weights.
        model: the weights.
        kv_dtype: of every cache, "float16" or "int8".
        compute_capability: of the device: 80 for 8.0.
    """

    def __init__(
        self, cupy: Any, config: ModelConfig, quantization: Quantization, model: DeviceModel, kv_dtype: str,
        compute_capability: int,
    ) -> None:  # fmt: skip
        self._cupy, self._config, self._quantization, self._kv_dtype = cupy, config, quantization, kv_dtype
        self._model = model
        type, group_size = quantization.type, quantization.group_size
        self._vectors = VectorKernels(cupy, group_size, model.tok_embeddings.type)
        self._attend = Attend(cupy, config, kv_dtype, group_size)
        self._matmul = Matmul(cupy, type, group_size, compute_capability)
        self._rope, self._append = Rope(cupy), Append(cupy, config.head_dim, kv_dtype)
        self._sample_kernel = Sample(cupy)
        self.attend_prompt = AttendPrompt(cupy, config, kv_dtype)
        self._matvecs: dict[tuple[str, int], Matvec] = {}
        self._qkv_matvecs: dict[int, QkvMatvec] = {}

    def decode_step(self, n: int, cache: CudaKVCache, n_positions: int, wants_logits: bool, work: Workspace) -> None:
        """Compute a step of few tokens. Their keys and values go to the cache.

        Args:
            n: number of tokens, 1 to 8. They are in work, as are their rows and positions.
            cache: the cache.
            n_positions: all positions are below it.
            wants_logits: whether to compute work.logits.
            work: scratch memory, in which Workspace.put() has put the inputs.
        """
        model = self._model
        qkv, few = self._qkv_matvec(n), self._matvec(self._quantization.type, n)
        # embed -> attention_norm of the first layer
        first = self._norm(model.layers[0].attention_norm, work.normed)
        self._vectors.embed(model.tok_embeddings, work.tokens, n, work.x, first)
        for layer, kv, following in zip(model.layers, cache.layers, self._following(work, wants_logits), strict=True):
            # wq wk wv -> rope -> kv append
            qkv(layer.wqkv, work.normed, work.rope_table, work.rows, work.positions, work.q, work.kv,
                work.head_counters, kv.n_positions, kv.keys, kv.values, kv.key_scales, kv.value_scales)  # fmt: skip
            # attention
            self._attend(work.q, kv, work.rows, work.positions, n, n_positions, work.attention_parts,
                         work.attention_counters, work.attention, work.wo_input)  # fmt: skip
            # wo + residual -> ffn_norm
            few.residual(layer.wo, work.wo_input, work.x, work.counter, self._norm(layer.ffn_norm, work.normed))
            # w1 w3 -> silu *
            few.swiglu(layer.w13, work.normed, work.gate_up, work.w2_input, work.group_counters)
            # w2 + residual -> the next layer's attention_norm, or norm
            few.residual(layer.w2, work.w2_input, work.x, work.counter, following)
        if wants_logits:
            # output
            self._matvec(model.output.type, n).product(model.output, work.final, work.logits)

    def sample(self, n: int, work: Workspace) -> None:
        """Sample from the n logits of a decode_step. Tokens and positions in work become those of the next step."""
        self._sample_kernel(
            work.logits, n, self._config.vocab_size, work.draws, work.sampled, work.tokens, work.positions
        )  # fmt: skip

    def prompt_chunk(self, n: int, cache: CudaKVCache, n_tiles: int, work: Workspace) -> None:
        """Compute work.x of n tokens after all layers. Their keys and values go to the cache. logits() comes next.

        Args:
            n: number of tokens.
            cache: the cache.
            n_tiles: number of tiles in work.
            work: scratch memory, in which Workspace.put() has put the inputs.
        """
        config, model, vectors, matmul = self._config, self._model, self._vectors, self._matmul
        # embed
        vectors.embed(model.tok_embeddings, work.tokens, n, work.x)
        for layer, kv in zip(model.layers, cache.layers, strict=True):
            # attention_norm -> wq wk wv
            vectors.rms_norm(work.x, n, self._norm(layer.attention_norm, work.normed))
            for matrix, out in zip(layer.wq_wk_wv, (work.q, work.k, work.v), strict=True):
                matmul(matrix, work.normed, n, out)
            # rope -> kv append
            self._rope(work.q, n, config.q_dim, config.head_dim, work.rope_table, work.positions)
            self._rope(work.k, n, config.kv_dim, config.head_dim, work.rope_table, work.positions)
            self._append(work.k, work.v, work.rows, work.positions, n, kv)
            # attention
            self.attend_prompt(work.q, kv, work.rows, work.positions, n, work.tiles, n_tiles, work.attention)
            # wo + residual
            vectors.quantize(work.attention, n, work.wo_input)
            matmul(layer.wo, work.wo_input, n, work.x, accumulate=True)
            # ffn_norm -> w1 w3 -> silu *
            vectors.rms_norm(work.x, n, self._norm(layer.ffn_norm, work.normed))
            matmul(layer.w13, work.normed, n, work.gate_up)
            vectors.swiglu(work.gate_up, n, work.w2_input)
            # w2 + residual
            matmul(layer.w2, work.w2_input, n, work.x, accumulate=True)

    def logits(self, first: int, n: int, work: Workspace) -> None:
        """norm -> output: work.logits[:n], n at most 8, of the tokens work.outputs[first : first + n]."""
        self._vectors.rms_norm(work.x, n, self._norm(self._model.norm, work.final), work.outputs[first : first + n])
        self._matvec(self._model.output.type, n).product(self._model.output, work.final, work.logits)

    def prepare(self, n: int) -> None:
        """Compile the kernels that a step of n tokens needs."""
        self._qkv_matvec(n)
        for type in {self._quantization.type, self._model.output.type}:
            self._matvec(type, n)

    def _norm(self, weight: Any, to: Any) -> Norm:
        return Norm(weight, self._config.norm_eps, to)

    def _following(self, work: Workspace, wants_logits: bool) -> Iterator[Norm | None]:
        """The norm that is fused with the end of each layer. None: no norm."""
        for layer in self._model.layers[1:]:
            yield self._norm(layer.attention_norm, work.normed)
        yield self._norm(self._model.norm, work.final) if wants_logits else None

    def _matvec(self, type: str, n: int) -> Matvec:
        if (type, n) not in self._matvecs:
            self._matvecs[type, n] = Matvec(self._cupy, type, self._quantization.group_size, n)
        return self._matvecs[type, n]

    def _qkv_matvec(self, n: int) -> QkvMatvec:
        if n not in self._qkv_matvecs:
            q, head_dim = self._quantization, self._config.head_dim
            self._qkv_matvecs[n] = QkvMatvec(self._cupy, q.type, q.group_size, n, head_dim, self._kv_dtype)
        return self._qkv_matvecs[n]
