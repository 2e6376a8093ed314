"""What the CUDA kernels' arrays mean, in numpy: tiles of 32 rows, quantized vectors, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2._cpu import quantize_matrix
from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu.launchers.matvec import Matvec
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import Norm, VectorKernels
from pyllama2._gpu.layout import DeviceMatrix, Vectors
from pyllama2.storage.weights import Weight

Floats = NDArray[np.float32]
EPS = 1e-5
SMALLEST_SCALE = np.float32(2.0**-100)  # vectors whose scales would be smaller are quantized to zeros


def random_weight(type: str, group_size: int, shape: tuple[int, int], seed: int = 0) -> Weight:
    """A matrix as a model file has it. group_size is that of quantized types."""
    matrix = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if type in ("float16", "float32"):
        return Weight("w", type, shape, matrix.astype(type))  # type: ignore[arg-type]
    codes, scales = quantize_matrix(matrix, type, group_size)
    return Weight("w", type, shape, codes, scales, group_size)


def random_vectors(n: int, columns: int, seed: int = 1) -> Floats:
    """Vectors (n, columns) with an outlier in each, as models have them."""
    x = np.random.default_rng(seed).standard_normal((n, columns), np.float32)
    x[:, columns // 2] *= 30.0
    return x


def matrix_numbers(matrix: DeviceMatrix) -> Floats:
    """Every row of the tiles (tiles * 32, groups * group_size), padding included."""
    if matrix.scales is None:
        tiles, _, _, rows, _ = matrix.codes.shape
        numbers = matrix.codes.get().view(matrix.type)  # (tiles, 16, pieces, 32, numbers of a piece)
        return numbers.transpose(0, 3, 2, 4, 1).reshape(tiles * rows, -1).astype(np.float32)
    codes, scales = matrix.codes.get(), matrix.scales.get().astype(np.float32)
    tiles, groups, pieces, rows, size = codes.shape
    rowwise = codes.transpose(0, 3, 1, 2, 4).reshape(tiles, rows, groups, pieces * size)
    if matrix.type == "q4":
        numbers = np.concatenate([rowwise & 15, rowwise >> 4], axis=-1).astype(np.float32) - 8
    else:
        numbers = rowwise.view(np.int8).astype(np.float32)
    numbers = numbers * scales.transpose(0, 2, 1)[..., None]
    return numbers.reshape(tiles * rows, -1)


def quantized(x: Floats, type: str, group_size: int) -> tuple[NDArray[np.int64], Floats, NDArray[np.int32]]:
    """Codes (n, stride), scales and offsets (n, groups) of finite vectors, with the CPU's rounding."""
    n, columns = x.shape
    groups = -(-columns // group_size)
    padded = np.zeros((n, groups * group_size), np.float32)
    padded[:, :columns] = x
    grouped = padded.reshape(n, groups, group_size)
    limit = np.float32(127 if type == "q4" else 32767)
    most = np.abs(grouped).max(-1)
    most[most < limit * SMALLEST_SCALE] = 0
    factor = np.divide(limit, most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(np.clip(grouped * factor[..., None], -limit, limit)).astype(np.int64)
    return codes.reshape(n, -1), most / limit, (-8 * codes.sum(-1)).astype(np.int32)


def sorted_numbers(vectors: Vectors) -> Floats:
    """The numbers (n, groups * 128) of vectors for float matrices, in the order of a vector."""
    n, _, _ = vectors.codes.shape
    return vectors.codes.get().view(np.float32).transpose(0, 2, 1).reshape(n, -1)


def vector_codes(vectors: Vectors) -> NDArray[np.int64]:
    """Codes (n, stride) of vectors on the device."""
    codes = vectors.codes.get()
    if vectors.type == "q4":
        return codes[:, 0].astype(np.int64)
    return codes[:, 0].astype(np.int64) * 256 + codes[:, 1].view(np.uint8)


def assert_quantized(vectors: Vectors, x: Floats) -> None:
    """The first len(x) of vectors are x quantized, or sorted with zeros after the end, to the bit."""
    n = len(x)
    if vectors.scales is None:
        numbers = sorted_numbers(vectors)[:n]
        assert numbers[:, : x.shape[1]].tobytes() == x.tobytes() and not numbers[:, x.shape[1] :].any()
        return
    codes, scales, offsets = quantized(x, vectors.type, vectors.group_size)
    assert (vector_codes(vectors)[:n] == codes).all()
    assert vectors.scales.get()[:n].tobytes() == scales.tobytes()
    if vectors.type == "q4":
        assert (vectors.offsets.get()[:n] == offsets).all()


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """RMSNorm of vectors (n, dim) with the CPU's order of additions: every 512th square, then the sums in pairs."""
    n, dim = x.shape
    sums = np.zeros((n, 512), np.float32)
    for i in range(0, dim, 512):
        part = x[:, i : i + 512]
        sums[:, : part.shape[1]] += part * part
    pairs = sums.reshape(n, 16, 32)  # within each 32, then of the 16
    for axis, size in ((2, 16), (2, 8), (2, 4), (2, 2), (2, 1), (1, 8), (1, 4), (1, 2), (1, 1)):
        first, second = np.split(pairs, 2, axis)
        assert first.shape[axis] == size
        pairs = first + second
    scale = np.float32(1) / np.sqrt(pairs.reshape(n) / np.float32(dim) + np.float32(eps))
    return x * scale[:, None] * weight


def silu_product(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up with the CPU's polynomial for the exponential."""
    f = np.float32
    x = -gate
    clamped = np.clip(x, f(-87), f(88))
    shifted = clamped * f(1.44269504) + f(12582912)
    exponent = shifted.view(np.int32) - f(12582912).view(np.int32)
    k = shifted - f(12582912)
    r = clamped - k * f(0.693145752) - k * f(1.42860677e-6)
    p = np.full_like(r, f(1) / f(5040))
    for coefficient in (f(1) / f(720), f(1) / f(120), f(1) / f(24), f(1) / f(6), f(0.5), f(1), f(1)):
        p = p * r + coefficient
    p = p * ((exponent + 127) << 23).astype(np.int32).view(np.float32)
    p = np.where(x > 88, f(np.inf), np.where(x < -87, f(0), p))
    return gate / (f(1) + p) * up


def device_vectors(cupy: Any, kernels: Any, x: Floats, type: str, group_size: int) -> Vectors:
    """Vectors x (n, columns) quantized on the device by VectorKernels."""
    vectors = Vectors.empty(cupy, type, len(x), x.shape[1], group_size)
    kernels.quantize(cupy.asarray(x), len(x), vectors)
    return vectors


def assert_goes_to(
    cupy: Any, uploader: Uploader, n: int, own: tuple[str, int], to: tuple[str, int]
) -> tuple[Matvec, Vectors]:
    """What follows products with a matrix of one kind is made for a matrix of another. Returns what was launched."""
    rows, columns = 172, 100  # the last group is padded whatever its size
    weight, up = (random_weight(*own, (rows, columns), seed) for seed in (1, 2))
    x, residual, norm_weight = random_vectors(n, columns), random_vectors(n, rows, 7), random_vectors(1, rows, 8)[0]
    vectors = device_vectors(cupy, VectorKernels(cupy, own[1], "float32"), x, *own)
    matvec, target = Matvec(cupy, *own, n, ["residual", "swiglu"], to), Vectors.empty(cupy, to[0], n, rows, to[1])
    counter, product = cupy.zeros(target.groups, np.uint32), MatrixProduct(weight, n)(x)
    for _ in range(2):  # the counters are ready for the next launch
        fused, gated = cupy.asarray(residual), cupy.empty((n, rows), np.float32)
        matvec.residual(uploader.matrix(weight), vectors, fused, counter, Norm(cupy.asarray(norm_weight), EPS, target))
        assert fused.get().tobytes() == (residual + product).tobytes()
        assert_quantized(target, rms_norm(residual + product, norm_weight, EPS))
        matvec.swiglu(uploader.matrix(weight, up, in_turns=True), vectors, gated, target, counter)
        assert_quantized(target, silu_product(product, MatrixProduct(up, n)(x)))
        assert not counter.get().any()
    return matvec, vectors
