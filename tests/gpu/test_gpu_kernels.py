"""The kernels for decoding, embedding and uploading: the CPU backend's bits, with nothing found wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import LaunchCounts, StandIn, missing_compiler
from helpers.gpu_layout import (
    assert_goes_to,
    assert_quantized,
    device_vectors,
    matrix_numbers,
    random_vectors,
    random_weight,
    rms_norm,
    silu_product,
    vector_codes,
)

from pyllama2._cpu.matrix import MatrixProduct
from pyllama2._gpu.launchers.matvec import Matvec
from pyllama2._gpu.launchers.sample import DRAW_WORDS, Sample, encode
from pyllama2._gpu.launchers.upload import Uploader
from pyllama2._gpu.launchers.vectors import Norm, Normed, VectorKernels
from pyllama2._gpu.layout import Vectors, matrix_arrays
from pyllama2.sampling import sample as sampling_loops
from pyllama2.sampling.sampler import Draw
from pyllama2.storage.weights import Weight

FORMATS = [(type, group_size) for type in ("q4", "q8") for group_size in (32, 64, 128)]
EPS = 1e-5


@pytest.fixture(scope="module")
def uploader(cupy: Any) -> Uploader:
    return Uploader(cupy)


def counters(cupy: Any, n: int = 1) -> Any:
    return cupy.zeros(n, np.uint32)


@pytest.mark.parametrize("shape", [(32, 128), (75, 172), (8, 30), (130, 576)], ids=str)
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_upload_keeps_every_number(uploader: Uploader, type: str, group_size: int, shape: tuple[int, int]) -> None:
    weight = random_weight(type, group_size, shape)
    numbers = matrix_numbers(uploader.matrix(weight))
    assert (numbers[: shape[0], : shape[1]] == weight.dequantize()).all()
    assert not numbers[shape[0] :].any() and not numbers[:, shape[1] :].any()


def test_upload_lays_matrices_together(uploader: Uploader) -> None:
    parts = [random_weight("q4", 32, (rows, 96), seed) for seed, rows in enumerate((48, 24, 24))]
    numbers = matrix_numbers(uploader.matrix(*parts))
    for first, weight in zip((0, 64, 96), parts, strict=True):
        assert (numbers[first : first + weight.shape[0]] == weight.dequantize()).all()
    gate, up = (random_weight("q8", 64, (100, 64), seed) for seed in (4, 5))
    numbers = matrix_numbers(uploader.matrix(gate, up, in_turns=True)).reshape(-1, 2, 32, 64)
    for i, weight in enumerate((gate, up)):
        assert (numbers[:, i].reshape(-1, 64)[:100] == weight.dequantize()).all()


def test_upload_refuses_what_does_not_go_together(uploader: Uploader) -> None:
    a, b = random_weight("q4", 32, (32, 64)), random_weight("q4", 64, (32, 64))
    with pytest.raises(ValueError, match="one type, width and group size"):
        uploader.matrix(a, b)
    with pytest.raises(ValueError, match="same number of rows"):
        uploader.matrix(a, random_weight("q4", 32, (40, 64)), in_turns=True)


def test_arrays_of_a_matrix_are_as_large_as_in_the_file() -> None:
    for type, group_size in FORMATS:
        shapes = matrix_arrays(type, (4096,), 11008, group_size)
        n_bytes = sum(np.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())
        assert n_bytes == 4096 * 11008 * (int(type[1]) / 8 + 2 / group_size)


@pytest.mark.parametrize("columns", [172, 576, 33])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_vectors_are_quantized_as_on_the_cpu(cupy: Any, type: str, group_size: int, columns: int) -> None:
    x = random_vectors(3, columns)
    x[1, :group_size] = 0.0
    x[2, : min(columns, group_size)] = 1e-44  # too small to divide by
    kernels = VectorKernels(cupy, group_size, "float32")
    assert_quantized(device_vectors(cupy, kernels, x, type, group_size), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", ["q4", "q8"])
def test_what_is_not_finite_stays_visible(cupy: Any, uploader: Uploader, type: str, bad: float) -> None:
    x = random_vectors(2, 128)
    x[1, 70] = bad
    vectors = device_vectors(cupy, VectorKernels(cupy, 64, "float32"), x, type, 64)
    assert np.isnan(vectors.scales.get()).tolist() == [[False, False], [False, True]]
    out = cupy.empty((2, 32), np.float32)
    Matvec(cupy, type, 64, 2, ["product"]).product(uploader.matrix(random_weight(type, 64, (32, 128))), vectors, out)
    assert np.isfinite(out.get()[0]).all() and np.isnan(out.get()[1]).all()


@pytest.mark.parametrize("dim", [576, 172, 30, 2051, 4096])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_norms_are_the_same_wherever_they_are_computed(
    cupy: Any, uploader: Uploader, type: str, group_size: int, dim: int
) -> None:
    x, weight = random_vectors(4, dim), random_vectors(1, dim, seed=5)[0]
    kernels = VectorKernels(cupy, group_size, "float32")
    first, again = (Vectors.empty(cupy, type, 4, dim, group_size) for _ in range(2))
    residual, norm_weight = cupy.asarray(x), cupy.asarray(weight)
    kernels.rms_norm(residual, 4, Norm(norm_weight, EPS, first))
    assert_quantized(first, rms_norm(x, weight, EPS))

    picked = cupy.asarray(np.array([3, 0], np.int32))
    kernels.rms_norm(residual, 2, Norm(norm_weight, EPS, again), picked)
    assert (vector_codes(again)[:2] == vector_codes(first)[[3, 0]]).all()

    out = cupy.empty((4, dim), np.float32)
    tokens = cupy.asarray(np.arange(4, dtype=np.int32))
    kernels.embed(uploader.matrix(Weight("w", "float32", x.shape, x)), tokens, 4, out, Norm(norm_weight, EPS, again))
    assert out.get().tobytes() == x.tobytes()
    for name in ("codes", "scales"):
        assert getattr(first, name).get().tobytes() == getattr(again, name).get().tobytes()


SHAPES = [(64, 172), (75, 576), (32, 11008), (40, 30)]


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_products_have_the_bits_of_the_cpu(cupy: Any, uploader: Uploader, type: str, group_size: int, n: int) -> None:
    kernels, matvec = VectorKernels(cupy, group_size, "float32"), Matvec(cupy, type, group_size, n, ["product"])
    for shape in SHAPES:
        weight, x = random_weight(type, group_size, shape), random_vectors(n, shape[1])
        out = cupy.empty((n, shape[0]), np.float32)
        matvec.product(uploader.matrix(weight), device_vectors(cupy, kernels, x, type, group_size), out)
        assert out.get().tobytes() == MatrixProduct(weight, n)(x).tobytes()


# Fewer groups than warps, some more, a last step that is not full, several steps.
@pytest.mark.parametrize("columns", [172, 1100, 4096])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_a_product_norms_its_vector(cupy: Any, uploader: Uploader, type: str, group_size: int, columns: int) -> None:
    rows = 40
    weight, up = (random_weight(type, group_size, (rows, columns), seed) for seed in (1, 2))
    x, norm_weight = random_vectors(1, columns), random_vectors(1, columns, 8)[0]
    normed = rms_norm(x, norm_weight, EPS)
    to = Vectors.empty(cupy, type, 1, rows, group_size)
    matvec = Matvec(cupy, type, group_size, 1, ["product", "swiglu"], norms=True)
    vector = Normed(cupy.asarray(x[0]), cupy.asarray(norm_weight), EPS)
    out, gated = (cupy.empty((1, rows), np.float32) for _ in range(2))
    counter = counters(cupy, to.groups)
    matvec.product(uploader.matrix(weight), vector, out)
    expected = MatrixProduct(weight, 1)(normed)
    assert out.get().tobytes() == expected.tobytes()
    matvec.swiglu(uploader.matrix(weight, up, in_turns=True), vector, gated, to, counter)
    assert_quantized(to, silu_product(expected, MatrixProduct(up, 1)(normed)))

    vectors = Vectors.empty(cupy, type, 1, columns, group_size)
    with pytest.raises(ValueError, match="compiled for Normed, not for Vectors"):
        matvec.product(uploader.matrix(weight), vectors, out)
    with pytest.raises(ValueError, match="norms one vector, not 2"):
        Matvec(cupy, type, group_size, 2, ["product"], norms=True)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_bad_number_that_is_normed_stays_visible(cupy: Any, uploader: Uploader, bad: float) -> None:
    x = random_vectors(1, 128)[0]
    x[70] = bad
    out, weight = cupy.empty((1, 32), np.float32), uploader.matrix(random_weight("q4", 64, (32, 128)))
    vector = Normed(cupy.asarray(x), cupy.asarray(np.ones(128, np.float32)), EPS)
    Matvec(cupy, "q4", 64, 1, ["product"], norms=True).product(weight, vector, out)
    assert np.isnan(out.get()).all()


@pytest.mark.parametrize("n", [1, 3, 4, 8])
@pytest.mark.parametrize("next_type", ["q4", "q8"])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_residual_is_added_and_normed_by_the_last_block(
    cupy: Any, uploader: Uploader, type: str, group_size: int, next_type: str, n: int
) -> None:
    rows, columns = 100, 172
    weight, x, residual = (
        random_weight(type, group_size, (rows, columns)),
        random_vectors(n, columns),
        random_vectors(n, rows, 7),
    )
    norm_weight = cupy.asarray(random_vectors(1, rows, 8)[0])
    kernels, counter = VectorKernels(cupy, group_size, "float32"), counters(cupy)
    vectors = device_vectors(cupy, kernels, x, type, group_size)
    matvec, matrix = Matvec(cupy, type, group_size, n, ["residual"]), uploader.matrix(weight)
    expected = residual + MatrixProduct(weight, n)(x)

    alone = cupy.asarray(residual)
    matvec.residual(matrix, vectors, alone, counter)
    assert alone.get().tobytes() == expected.tobytes()

    normed, separate = (Vectors.empty(cupy, next_type, n, rows, group_size) for _ in range(2))
    for _ in range(2):  # the counter is ready for the next launch
        fused = cupy.asarray(residual)
        matvec.residual(matrix, vectors, fused, counter, Norm(norm_weight, EPS, normed))
        assert fused.get().tobytes() == expected.tobytes() and counter.get()[0] == 0
        kernels.rms_norm(fused, n, Norm(norm_weight, EPS, separate))
        for name in ("codes", "scales"):
            assert getattr(normed, name).get().tobytes() == getattr(separate, name).get().tobytes()


@pytest.mark.parametrize("columns", [30, 172, 4096, 11008])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_a_block_may_have_half_of_a_tile(
    cupy: Any, uploader: Uploader, type: str, group_size: int, columns: int
) -> None:
    """Of the last tile, too, which has more than half of its rows, or fewer."""
    kernels, matvec = (
        VectorKernels(cupy, group_size, "float32"),
        Matvec(cupy, type, group_size, 1, ["residual"], halves=True),
    )
    x = random_vectors(1, columns)
    vectors = device_vectors(cupy, kernels, x, type, group_size)
    for rows in (40, 57):
        weight, residual = random_weight(type, group_size, (rows, columns)), random_vectors(1, rows, 7)
        out = cupy.asarray(residual)
        matvec.residual(uploader.matrix(weight), vectors, out, counters(cupy))
        assert out.get().tobytes() == (residual + MatrixProduct(weight, 1)(x)).tobytes()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_swiglu_is_quantized_by_the_last_block_of_a_group(
    cupy: Any, uploader: Uploader, type: str, group_size: int, n: int
) -> None:
    hidden_dim, dim = 172, 96
    gate, up = (random_weight(type, group_size, (hidden_dim, dim), seed) for seed in (1, 2))
    x = random_vectors(n, dim)
    kernels = VectorKernels(cupy, group_size, "float32")
    to = Vectors.empty(cupy, type, n, hidden_dim, group_size)
    hidden, counter = cupy.empty((n, hidden_dim), np.float32), counters(cupy, to.groups)
    matrix = uploader.matrix(gate, up, in_turns=True)
    Matvec(cupy, type, group_size, n, ["swiglu"]).swiglu(
        matrix, device_vectors(cupy, kernels, x, type, group_size), hidden, to, counter
    )
    g, u = MatrixProduct(gate, n)(x), MatrixProduct(up, n)(x)
    assert hidden.get().tobytes() == silu_product(g, u).tobytes()
    assert_quantized(to, hidden.get())
    assert not counter.get().any()

    both, again = cupy.asarray(np.stack([g, u], axis=1)), Vectors.empty(cupy, type, n, hidden_dim, group_size)
    kernels.swiglu(both, n, again)
    assert again.codes.get().tobytes() == to.codes.get().tobytes()


@pytest.mark.parametrize(("own", "to"), [(("q4", 64), ("q8", 32)), (("q4", 64), ("q4", 128)), (("q4", 32), ("q8", 64)),
                                         (("q8", 128), ("q4", 64)), (("q8", 64), ("q8", 32))])  # fmt: skip
def test_products_go_to_matrices_of_other_types(
    cupy: Any, uploader: Uploader, own: tuple[str, int], to: tuple[str, int]
) -> None:
    matvec, vectors = assert_goes_to(cupy, uploader, 2, own, to)
    both = uploader.matrix(*(random_weight(*own, (172, 100), seed) for seed in (1, 2)), in_turns=True)
    other, gated = Vectors.empty(cupy, own[0], 2, 172, own[1]), cupy.empty((2, 172), np.float32)
    with pytest.raises(ValueError, match="w1 and w3 does not go with"):
        matvec.swiglu(both, vectors, gated, other, counters(cupy, other.groups))


@pytest.mark.parametrize(("table_group_size", "group_size"), [(64, 32), (32, 128)])
def test_embeddings_are_normed_in_groups_of_another_size(
    cupy: Any, uploader: Uploader, table_group_size: int, group_size: int
) -> None:
    dim, tokens, weight = 172, np.array([0, 69, 33], np.int32), random_weight("q8", table_group_size, (70, 172))
    x, kernels = cupy.empty((3, dim), np.float32), VectorKernels(cupy, group_size, "q8", table_group_size)
    norm_weight, normed = random_vectors(1, dim, seed=5)[0], Vectors.empty(cupy, "q4", 3, dim, group_size)
    norm = Norm(cupy.asarray(norm_weight), EPS, normed)
    kernels.embed(uploader.matrix(weight), cupy.asarray(tokens), 3, x, norm)
    assert x.get().tobytes() == weight.dequantize()[tokens].tobytes()
    assert_quantized(normed, rms_norm(x.get(), norm_weight, EPS))
    with pytest.raises(ValueError, match=f"must be q8 in groups of {table_group_size}"):
        kernels.embed(uploader.matrix(random_weight("q8", group_size, (70, dim))), cupy.asarray(tokens), 3, x, norm)


@pytest.mark.parametrize("dim", [172, 128])
@pytest.mark.parametrize("table_type", ["q4", "q8", "float16", "float32"])
def test_embedding_rows_are_those_of_the_file(cupy: Any, uploader: Uploader, table_type: str, dim: int) -> None:
    shape, tokens = (70, dim), np.array([0, 69, 33, 33, 7], np.int32)
    weight = random_weight(table_type, 64, shape)
    table, expected = uploader.matrix(weight), weight.dequantize()[tokens]
    x, kernels = cupy.empty((5, dim), np.float32), VectorKernels(cupy, 64, table_type)
    kernels.embed(table, cupy.asarray(tokens), 5, x)
    assert x.get().tobytes() == expected.tobytes()
    norm_weight = random_vectors(1, dim, seed=5)[0]
    normed = Vectors.empty(cupy, "q4", 5, dim, 64)
    kernels.embed(table, cupy.asarray(tokens), 5, x, Norm(cupy.asarray(norm_weight), EPS, normed))
    assert_quantized(normed, rms_norm(expected, norm_weight, EPS))


def sample(cupy: Any, logits: np.ndarray, draws: list[Draw]) -> list[int]:
    """What the kernel samples, and leaves as the next step's input."""
    n, vocab_size = logits.shape
    encoded = np.empty((n, DRAW_WORDS), np.uint64)
    encode(draws, encoded)
    tokens, positions = cupy.zeros(n, np.int32), cupy.asarray(np.arange(n, dtype=np.int32))
    sampled = cupy.empty(n, np.int32)
    Sample(cupy)(cupy.asarray(logits), n, vocab_size, cupy.asarray(encoded), sampled, tokens, positions)
    assert positions.get().tolist() == list(range(1, n + 1))
    assert tokens.get().tolist() == np.maximum(sampled.get(), 0).tolist()
    return list(sampled.get().tolist())


def test_greedy_sampling_takes_the_lowest_of_equals(cupy: Any) -> None:
    size = 3001
    logits = np.random.default_rng(0).standard_normal((8, size), np.float32)
    logits[0, [5, 2999]] = 9.0
    logits[1, [2998, 3000]] = 9.0
    logits[2] = -5.0
    logits[3] = np.where(np.arange(size) % 2 == 0, -0.0, 0.0)
    logits[4, 17] = -np.inf
    logits[5, 0] = np.nan
    logits[6, 100] = np.inf
    expected = [5, 2998, 0, 0, -1, -1, -1, int(logits[7].argmax())]
    assert sample(cupy, logits, [Draw(0.0)] * 8) == expected
    assert sample(cupy, logits[4:7], [Draw(1.0, uniform=0.5)] * 3) == [-1] * 3


@pytest.mark.parametrize("cuts", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_p": 1e-9}, {"min_p": 1.0},
                                  {"top_k": 7, "top_p": 0.8}, {"top_k": 1}, {"top_k": 4000, "top_p": 0.5},
                                  {"top_k": 60, "top_p": 0.95, "min_p": 0.05}])  # fmt: skip
@pytest.mark.parametrize("ties", [False, True])
def test_draws_are_those_of_the_sampler(cupy: Any, cuts: dict[str, Any], ties: bool) -> None:
    rng, size = np.random.default_rng(1), 3001
    for temperature in (0.1, 0.7, 2.0):
        logits = (4 * rng.standard_normal((6, size))).astype(np.float32)
        if ties:
            logits = np.round(logits)  # among them both zeros
        uniforms = [1e-6, *rng.random(4), 1 - 1e-6]
        draws = [Draw(temperature, uniform=uniform, **cuts) for uniform in uniforms]
        expected = [
            sampling_loops.sample(row, float(row.max()), temperature, draw.top_k, draw.top_p, draw.min_p, draw.uniform)
            for row, draw in zip(logits, draws, strict=True)
        ]
        assert sample(cupy, logits, draws) == expected


def test_launchers_refuse_what_kernels_rely_on(cupy: Any, uploader: Uploader) -> None:
    with pytest.raises(ValueError, match="takes 1 to 8 vectors, not 9"):
        Matvec(cupy, "q4", 64, 9)
    matvec, matrix = Matvec(cupy, "q4", 64, 2, ["product"]), uploader.matrix(random_weight("q4", 64, (32, 128)))
    vectors = Vectors.empty(cupy, "q4", 2, 128, 64)
    with pytest.raises(ValueError, match="out must be a contiguous float32 array of 64 numbers"):
        matvec.product(matrix, vectors, cupy.empty((1, 32), np.float32))
    with pytest.raises(ValueError, match="cannot take q8 vectors"):
        matvec.product(matrix, Vectors.empty(cupy, "q8", 2, 128, 64), cupy.empty((2, 32), np.float32))
    with pytest.raises(ValueError, match="room for 1 vectors, not for 2"):
        matvec.product(matrix, Vectors.empty(cupy, "q4", 1, 128, 64), cupy.empty((2, 32), np.float32))


@pytest.mark.subprocess
@pytest.mark.parametrize("n", [1, 4, 8])
@pytest.mark.parametrize(("type", "group_size"), FORMATS)
def test_counted_sectors_are_used(type: str, group_size: int, n: int) -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    cupy = StandIn(mode="count")
    rows, columns = 64, 4096
    matrix = Uploader(cupy).matrix(random_weight(type, group_size, (rows, columns)))
    vectors = device_vectors(
        cupy, VectorKernels(cupy, group_size, "float32"), random_vectors(n, columns), type, group_size
    )
    Matvec(cupy, type, group_size, n, ["product"]).product(matrix, vectors, cupy.empty((n, rows), np.float32))
    counts = cupy.device.counts[-1]
    # Tensor cores take 16 bytes of each vector at a time. The next load finds the rest of the sector in the L1 cache.
    assert counts.sector_use >= (0.75 if n >= 4 else 0.95) and counts.memory_use >= 0.95
    weights = rows * columns * (int(type[1]) / 8 + 2 / group_size)
    of_vectors = n * (columns * int(type[1]) // 4 + 8 * columns // group_size)
    assert weights < counts.bytes_read <= weights + of_vectors


@pytest.mark.subprocess
def test_masses_are_added_up_within_a_warp() -> None:
    """The 32 ids of a warp have the same first digit: one addition instead of 32 that wait for each other."""
    if reason := missing_compiler():
        pytest.skip(reason)
    cupy, n = StandIn(mode="count"), 8192
    logits = np.random.default_rng(3).standard_normal((1, n)).astype(np.float32)
    assert 0 <= sample(cupy, logits, [Draw(1.0, uniform=0.5)])[0] < n
    second_digit = 1 << 11  # ids that have the first digit of the one that is found
    # The mass of a bin has two halves.
    assert cupy.device.counts[-1].instructions["atomics"] <= 2 * (n // 32 + second_digit)


def counted_residual(n: int, rows: int) -> LaunchCounts:
    """What a launch of residual() with a norm costs, with n vectors."""
    if reason := missing_compiler():
        pytest.skip(reason)
    cupy = StandIn(mode="count")
    kernels, matvec = VectorKernels(cupy, 64, "float32"), Matvec(cupy, "q4", 64, n, ["residual"])
    matrix = Uploader(cupy).matrix(random_weight("q4", 64, (rows, 64)))
    vectors, to = device_vectors(cupy, kernels, random_vectors(n, 64), "q4", 64), Vectors.empty(cupy, "q4", n, rows, 64)
    norm = Norm(cupy.asarray(random_vectors(1, rows, 8)[0]), EPS, to)
    matvec.residual(matrix, vectors, cupy.asarray(random_vectors(n, rows, 7)), counters(cupy), norm)
    return cupy.device.counts[-1]  # type: ignore[no-any-return]


@pytest.mark.subprocess
def test_one_thread_of_a_block_fences() -> None:
    """Before it counts the block, and the last block once more."""
    assert counted_residual(1, 96).instructions["fences"] == 3 + 1


@pytest.mark.subprocess
def test_vectors_are_normed_at_the_same_time() -> None:
    """Eight vectors take no more barriers than one. So the chain of additions is as long as that of one vector."""
    one, eight = (counted_residual(n, 96).instructions["barriers"] for n in (1, 8))
    assert one == eight


@pytest.mark.subprocess
@pytest.mark.parametrize("order", ["forward", 1, 2])
def test_no_order_of_threads_and_blocks_changes_a_bit(order: str | int) -> None:
    """The fixture's emulator runs the last first."""
    if reason := missing_compiler():
        pytest.skip(reason)
    cupy, n, rows = StandIn(mode="check", order=order), 2, 200
    weight, x, residual = random_weight("q4", 64, (rows, 172)), random_vectors(n, 172), random_vectors(n, rows, 7)
    kernels, uploader, matvec = VectorKernels(cupy, 64, "float32"), Uploader(cupy), Matvec(cupy, "q4", 64, n)
    vectors, to = device_vectors(cupy, kernels, x, "q4", 64), Vectors.empty(cupy, "q4", n, rows, 64)
    fused, norm_weight, counter = cupy.asarray(residual), random_vectors(1, rows, 8)[0], counters(cupy, 4)
    matvec.residual(uploader.matrix(weight), vectors, fused, counter, Norm(cupy.asarray(norm_weight), EPS, to))
    expected = residual + MatrixProduct(weight, n)(x)
    assert fused.get().tobytes() == expected.tobytes()
    assert_quantized(to, rms_norm(expected, norm_weight, EPS))

    up = random_weight("q4", 64, (rows, 172), 5)
    matrix = uploader.matrix(weight, up, in_turns=True)
    matvec.swiglu(matrix, vectors, cupy.empty((n, rows), np.float32), to, counter)
    assert_quantized(to, silu_product(MatrixProduct(weight, n)(x), MatrixProduct(up, n)(x)))
