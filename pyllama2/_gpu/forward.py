"""The forward pass on a GPU: the steps of model.py. A kernel may do several of them.

    decode_step    1 to 8 tokens: five kernels a layer, or six with a bias of wo, and two more. sample() is another.
                   The launches do not depend on the tokens, so that a graph of them serves all steps. One token is
                   normed by the products with q4 and q8 matrices that need it; several tokens, and those for float
                   matrices, are normed by the kernels that make them.
    prompt_chunk   more tokens: ten kernels a layer, or eleven with a bias of wo.

Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config import ModelConfig
from .availability import Processor
from .cache import CudaKVCache
from .device_model import DeviceModel
from .launchers.attention import Attend, AttendPrompt
from .launchers.cache import FinishQkv
from .launchers.matmul import Bias, Matmul
from .launchers.matvec import Matvec, QkvMatvec, norms_itself
from .launchers.prefetch import Prefetch, keys_ahead
from .launchers.sample import Sample
from .launchers.vectors import Norm, Normed, VectorKernels
from .layout import TILE_ROWS, DeviceMatrix, Kind, Vectors
from .workspace import Workspace


class Forward:
    """The kernels of one model, compiled for its GPU. Kernels for n tokens are compiled when they are first needed.

    A part of a model without embeddings begins with work.x; one without output ends with it.

    Args:
        cupy: the module, or a stand-in.
        config: of the model.
        model: the weights.
        kv_dtype: of every cache, "float16" or "int8".
        processor: of the device.
    """

    def __init__(self, cupy: Any, config: ModelConfig, model: DeviceModel, kv_dtype: str, processor: Processor) -> None:
        self._cupy, self._config, self._kv_dtype = cupy, config, kv_dtype
        self._model = model
        layers, table = model.layers, model.tok_embeddings
        matrices = [matrix for layer in layers for matrix in (layer.wqkv, layer.wo, layer.w13, layer.w2)]
        sizes = {matrix.group_size for matrix in (*matrices, model.output)}
        attention_sizes = {layer.wo.group_size for layer in layers}
        kinds = {matrix.kind for matrix in matrices}
        # By group size of the result; products by type and group size of the matrix.
        self._vectors = {size: VectorKernels(cupy, size, *table.kind) for size in sizes}
        self._attend = {size: Attend(cupy, config, kv_dtype, size) for size in attention_sizes}
        self._matmul = {kind: Matmul(cupy, *kind, processor.compute_capability) for kind in kinds}
        self._finish_qkv = FinishQkv(cupy, config, kv_dtype)
        self._bias = Bias(cupy)
        self._sample_kernel = Sample(cupy)
        self.attend_prompt = AttendPrompt(cupy, config, kv_dtype)
        # With fewer tiles of dim rows than multiprocessors, halves of tiles are given to all of them.
        self._halves = -(-config.dim // TILE_ROWS) < processor.n_multiprocessors
        self._l2_bytes = processor.l2_bytes
        self._matvecs: dict[tuple[tuple[Kind, Kind], int, bool], Matvec] = {}
        self._qkv_matvecs: dict[tuple[Kind, int], QkvMatvec] = {}
        # What products of few tokens there are: kinds of the matrix and of the next one -> methods of Matvec.
        self._methods: dict[tuple[Kind, Kind], set[str]] = {(model.output.kind, model.output.kind): {"product"}}
        following = (*(layer.wqkv for layer in layers[1:]), model.output)
        for layer, after in zip(layers, following, strict=True):
            for matrix, to, method in ((layer.wo, layer.w13, "residual"), (layer.w13, layer.w2, "swiglu"),
                                       (layer.w2, after, "residual")):  # fmt: skip
                self._methods.setdefault(_pair(matrix, to, method), set()).add(method)

    def decode_step(self, n: int, cache: CudaKVCache, n_positions: int, wants_logits: bool, work: Workspace) -> None:
        """Compute a step of few tokens. Their keys and values go to the cache.

        Args:
            n: number of tokens, 1 to 8. They are in work, as are their rows and positions.
            cache: the cache.
            n_positions: all positions are below it.
            wants_logits: whether to compute work.logits.
            work: scratch memory, in which Workspace.put() has put the inputs.
        """
        model, first = self._model, self._model.layers[0]
        # embed -> attention_norm of the first layer
        norm = self._norm(first.attention_norm, work.normed[first.wqkv.kind])
        vectors = self._vectors[first.wqkv.group_size]
        if model.embeds:
            vectors.embed(model.tok_embeddings, work.tokens, n, work.x, _fused(norm, n))
        elif _fused(norm, n):
            vectors.rms_norm(work.x, n, norm)
        after = (*(layer.wqkv for layer in model.layers[1:]), model.output if wants_logits else None)
        for layer, kv, following, next_matrix in zip(
            model.layers, cache.layers, self._following(work), after, strict=True
        ):  # fmt: skip
            ffn_norm = self._norm(layer.ffn_norm, work.normed[layer.w13.kind])
            wo_input, w2_input = work.wo_input[layer.wo.kind], work.w2_input[layer.w2.kind]
            # wq wk wv -> biases -> rope -> kv append
            qkv = self._qkv_matvec(layer.wqkv.kind, n)
            qkv(layer.wqkv, _normed(norm, n, work), work.rope_table, work.rows, work.positions, work.q, work.kv,
                work.head_counters, kv.n_positions, kv.keys, kv.values, kv.key_scales, kv.value_scales,
                layer.wqkv_bias, keys_ahead(self._l2_bytes, n, self._config.n_kv_heads))  # fmt: skip
            # attention
            self._attend[layer.wo.group_size](
                work.q, kv, work.rows, work.positions, n, n_positions, work.attention_parts, work.attention_counters,
                work.attention, wo_input, self._prefetch(layer.wo),
            )  # fmt: skip
            # wo + residual -> ffn_norm
            if layer.wo_bias is not None:
                self._bias(work.x, n, layer.wo_bias)
            few = self._matvec(n, layer.wo, ffn_norm.to, "residual")
            few.residual(layer.wo, wo_input, work.x, work.counter, _fused(ffn_norm, n), self._prefetch(layer.w13))
            # w1 w3 -> silu *
            few = self._matvec(n, layer.w13, w2_input, "swiglu")
            few.swiglu(layer.w13, _normed(ffn_norm, n, work), work.gate_up, w2_input, work.group_counters,
                       self._prefetch(layer.w2))  # fmt: skip
            # w2 + residual -> the next layer's attention_norm, or norm
            few = self._matvec(n, layer.w2, following.to, "residual")
            is_wanted = wants_logits or following.to is not work.final
            few.residual(layer.w2, w2_input, work.x, work.counter, _fused(following, n) if is_wanted else None,
                         self._prefetch(next_matrix))  # fmt: skip
            norm = following
        if wants_logits:
            # output
            self._product(n, _normed(norm, n, work), work)

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
        model, vectors = self._model, self._vectors
        # embed
        if model.embeds:
            vectors[model.output.group_size].embed(model.tok_embeddings, work.tokens, n, work.x)
        for layer, kv in zip(model.layers, cache.layers, strict=True):
            attention_input, ffn_input = work.normed[layer.wqkv.kind], work.normed[layer.w13.kind]
            wo_input, w2_input = work.wo_input[layer.wo.kind], work.w2_input[layer.w2.kind]
            # attention_norm -> wq wk wv
            vectors[attention_input.group_size].rms_norm(work.x, n, self._norm(layer.attention_norm, attention_input))
            self._matmul[layer.wqkv.kind].qkv(layer.wqkv, attention_input, n, work.q, work.kv)
            # biases -> rope -> kv append
            self._finish_qkv(work.q, work.kv, n, layer.wqkv_bias, work.rope_table, work.rows, work.positions, kv)
            # attention
            self.attend_prompt(work.q, kv, work.rows, work.positions, n, work.tiles, n_tiles, work.attention)
            # wo + residual
            if layer.wo_bias is not None:
                self._bias(work.x, n, layer.wo_bias)
            vectors[wo_input.group_size].quantize(work.attention, n, wo_input)
            self._matmul[layer.wo.kind](layer.wo, wo_input, n, work.x, accumulate=True)
            # ffn_norm -> w1 w3 -> silu *
            vectors[ffn_input.group_size].rms_norm(work.x, n, self._norm(layer.ffn_norm, ffn_input))
            self._matmul[layer.w13.kind](layer.w13, ffn_input, n, work.gate_up)
            vectors[w2_input.group_size].swiglu(work.gate_up, n, w2_input)
            # w2 + residual
            self._matmul[layer.w2.kind](layer.w2, w2_input, n, work.x, accumulate=True)

    def logits(self, first: int, n: int, work: Workspace) -> None:
        """norm -> output: work.logits[:n], n at most 8, of the tokens work.outputs[first : first + n]."""
        vectors, outputs = self._vectors[work.final.group_size], work.outputs[first : first + n]
        vectors.rms_norm(work.x, n, self._norm(self._model.norm, work.final), outputs)
        self._product(n, work.final, work)

    def prepare(self, n: int) -> None:
        """Compile the kernels that a step of n tokens needs."""
        for kind in {layer.wqkv.kind for layer in self._model.layers}:
            self._qkv_matvec(kind, n)
        for pair in self._methods:
            self._matvec_of(pair, n)

    def _prefetch(self, matrix: DeviceMatrix | None) -> Prefetch | None:
        """What a kernel prefetches, if the next one reads this matrix."""
        return None if matrix is None else Prefetch.of(matrix, self._l2_bytes)

    def _norm(self, weight: Any, to: Vectors) -> Norm:
        return Norm(weight, self._config.norm_eps, to)

    def _following(self, work: Workspace) -> Iterator[Norm]:
        """The norm that is fused with the end of each layer."""
        for layer in self._model.layers[1:]:
            yield self._norm(layer.attention_norm, work.normed[layer.wqkv.kind])
        yield self._norm(self._model.norm, work.final)

    def _product(self, n: int, x: Vectors | Normed, work: Workspace) -> None:
        output = self._model.output
        matvec = self._matvec_of((output.kind, output.kind), n, norms=isinstance(x, Normed))
        matvec.product(output, x, work.logits)

    def _matvec(self, n: int, matrix: DeviceMatrix, to: DeviceMatrix | Vectors, method: str) -> Matvec:
        return self._matvec_of(_pair(matrix, to, method), n)

    def _matvec_of(self, pair: tuple[Kind, Kind], n: int, *, norms: bool | None = None) -> Matvec:
        """norms: whether product() and swiglu() norm their vector. None: as decode_step() wants it."""
        norms = norms_itself(pair[0], n) if norms is None else norms
        if (pair, n, norms) not in self._matvecs:
            kind, to = pair
            self._matvecs[pair, n, norms] = Matvec(
                self._cupy, *kind, n, sorted(self._methods[pair]), to, norms=norms, halves=norms and self._halves
            )
        return self._matvecs[pair, n, norms]

    def _qkv_matvec(self, kind: Kind, n: int) -> QkvMatvec:
        if (kind, n) not in self._qkv_matvecs:
            head_dim = self._config.head_dim
            norms = norms_itself(kind, n)
            self._qkv_matvecs[kind, n] = QkvMatvec(self._cupy, *kind, n, head_dim, self._kv_dtype, norms=norms)
        return self._qkv_matvecs[kind, n]


def _fused(norm: Norm, n: int) -> Norm | None:
    """The norm, for the kernel that makes the n vectors to be normed. None: the kernel that needs them does it."""
    return None if norms_itself(norm.to.kind, n) else norm


def _normed(norm: Norm, n: int, work: Workspace) -> Vectors | Normed:
    """The norm of work.x, for the kernel that needs it."""
    return Normed(work.x, norm.weight, norm.eps) if norms_itself(norm.to.kind, n) else norm.to


def _pair(matrix: DeviceMatrix, to: DeviceMatrix | Vectors, method: str) -> tuple[Kind, Kind]:
    """The kinds of the matrix and of the next one, as far as the kernel of a method of Matvec depends on them."""
    return matrix.kind, (matrix.type, to.group_size) if method == "residual" else to.kind
