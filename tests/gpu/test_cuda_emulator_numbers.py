"""What the emulator computes and counts, against numpy: shuffles, halves, dot products, tensor cores, sectors."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cuda_emulator import CompileError, EmulationError, StandIn, missing_compiler
from cuda_emulator.rewriting import rewrite

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=missing_compiler() or "")

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=["fast", "check count"])
def cupy(request: pytest.FixtureRequest) -> StandIn:
    return StandIn(mode=request.param)


def launch(
    cupy: StandIn, body: str, *arrays: Any, block: int = 32, grid: int = 1, head: str = "", parameters: str
) -> list[np.ndarray]:
    """Runs the statements `body` as a kernel and returns the arrays afterwards."""
    code = f'#include <cuda_fp16.h>\n{head}\nextern "C" __global__ void k({parameters}) {{\n{body}\n}}\n'
    given = [cupy.asarray(array) for array in arrays]
    cupy.RawModule(code=code).get_function("k")((grid,), (block,), tuple(given))
    return [array.get() for array in given]


SHUFFLES = [
    ("__shfl_sync(~0u, x, 5)", lambda i: 5),
    ("__shfl_sync(~0u, x, i + 3, 8)", lambda i: i // 8 * 8 + (i + 3) % 8),
    ("__shfl_xor_sync(~0u, x, 16)", lambda i: i ^ 16),
    ("__shfl_xor_sync(~0u, x, 12, 8)", lambda i: i if (i ^ 12) > (i | 7) else i ^ 12),
    ("__shfl_up_sync(~0u, x, 3)", lambda i: i - 3 if i >= 3 else i),
    ("__shfl_up_sync(~0u, x, 3, 16)", lambda i: i - 3 if i % 16 >= 3 else i),
    ("__shfl_down_sync(~0u, x, 5)", lambda i: i + 5 if i + 5 < 32 else i),
    ("__shfl_down_sync(~0u, x, 5, 8)", lambda i: i + 5 if i % 8 + 5 < 8 else i),
]


@pytest.mark.parametrize(("expression", "source"), SHUFFLES)
@pytest.mark.parametrize("kind", ["float", "int", "unsigned", "double", "long long"])
def test_shuffles(cupy: StandIn, expression: str, source: Any, kind: str) -> None:
    dtype = {"float": "f4", "int": "i4", "unsigned": "u4", "double": "f8", "long long": "i8"}[kind]
    x, out = (100 + 7 * np.arange(32)).astype(dtype), np.zeros(32, dtype)
    body = f"const int i = threadIdx.x; const {kind} x = a[i]; b[i] = {expression};"
    _, out = launch(cupy, body, x, out, parameters=f"const {kind}* a, {kind}* b")
    assert (out == x[[source(i) for i in range(32)]]).all()


def test_votes_and_reductions(cupy: StandIn) -> None:
    body = """
      const unsigned i = threadIdx.x, even = 0x55555555u;
      b[i] = __ballot_sync(~0u, a[i] % 3 == 0);
      b[32 + i] = __any_sync(~0u, a[i] == 31) + 2 * __all_sync(~0u, a[i] < 31) + 4 * __all_sync(~0u, a[i] < 32);
      if (i % 2 == 0) b[64 + i] = __reduce_add_sync(even, a[i]) + __popc(__ballot_sync(even, 1));
      b[96 + i] = __reduce_max_sync(~0u, a[i] ^ 5u);
      b[128 + i] = __match_any_sync(~0u, a[i] / 8);"""
    a = np.arange(32, dtype=np.uint32)
    b = launch(cupy, body, a, np.zeros(160, np.uint32), parameters="const unsigned* a, unsigned* b")[1].reshape(5, 32)
    assert (b[0] == sum(1 << i for i in range(0, 32, 3))).all()
    assert (b[1] == 1 + 4).all()
    assert (b[2, ::2] == sum(range(0, 32, 2)) + 16).all()
    assert (b[3] == 31).all()
    assert (b[4] == [0xFF << (i // 8 * 8) for i in range(32)]).all()


def test_votes_of_a_block(cupy: StandIn) -> None:
    body = """
      const int i = threadIdx.x;
      b[i] = __syncthreads_count(i % 3 == 0) + 1000 * __syncthreads_and(i < 95) + 2000 * __syncthreads_or(i == 95);"""
    assert (launch(cupy, body, np.zeros(96, np.int32), block=96, parameters="int* b")[0] == 2032).all()


def test_dot_products_of_bytes(cupy: StandIn) -> None:
    body = """
      const int i = threadIdx.x;
      int us = c[i], su = c[i];
      asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(us) : "r"(a[i]), "r"(b[i]));
      asm volatile("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(su) : "r"(a[i]), "r"(b[i]), "r"(su));
      out[i] = __dp4a(static_cast<int>(a[i]), static_cast<int>(b[i]), c[i]);
      out[32 + i] = us;
      out[64 + i] = su;
      out[96 + i] = static_cast<int>(__dp4a(a[i], b[i], static_cast<unsigned>(c[i])));"""
    a, b = (RNG.integers(0, 2**32, 32, dtype=np.uint32) for _ in range(2))
    a[:2] = b[:2] = 0x80808080
    c = RNG.integers(-(2**31), 2**31, 32, dtype=np.int32)
    parameters = "const unsigned* a, const unsigned* b, const int* c, int* out"
    out = launch(cupy, body, a, b, c, np.zeros(128, np.int32), parameters=parameters)[3].reshape(4, 32)
    for row, (left, right) in enumerate(
        ((np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8))
    ):
        products = a.view(left).astype(np.int64) * b.view(right)
        assert (out[row] == (c + products.reshape(32, 4).sum(1)).astype(np.int32)).all()


def test_high_half_of_a_product(cupy: StandIn) -> None:
    a, b = (RNG.integers(0, 2**64, 32, dtype=np.uint64) for _ in range(2))
    parameters = "const unsigned long long* a, const unsigned long long* b, unsigned long long* out"
    body = "out[threadIdx.x] = __umul64hi(a[threadIdx.x], b[threadIdx.x]);"
    out = launch(cupy, body, a, b, np.zeros(32, np.uint64), parameters=parameters)[2]
    assert out.tolist() == [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]


def test_bits(cupy: StandIn) -> None:
    body = """
      const int i = threadIdx.x;
      unsigned lop, prm;
      asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(lop) : "r"(a[i]), "n"(0x000f000f), "n"(0x64006400));
      asm("prmt.b32 %0, %1, %2, %3;" : "=r"(prm) : "r"(a[i]), "r"(b[i]), "n"(0x5410));
      out[i] = lop;
      out[32 + i] = prm;
      out[64 + i] = __byte_perm(a[i], b[i], 0x7531) ^ __byte_perm(a[i], b[i], 0xb3a2);
      out[96 + i] = __popc(a[i]) + 100 * __clz(a[i]) + 10000 * __ffs(a[i]);
      out[128 + i] = __funnelshift_r(a[i], b[i], 7);
      out[160 + i] = __brev(a[i]);
      out[192 + i] = __vsubss4(a[i], b[i]);"""
    a, b = (RNG.integers(1, 2**32, 32, dtype=np.uint32) for _ in range(2))
    parameters = "const unsigned* a, const unsigned* b, unsigned* out"
    out = launch(cupy, body, a, b, np.zeros(224, np.uint32), parameters=parameters)[2].reshape(7, 32)
    assert (out[0] == (a & 0x000F000F | 0x64006400)).all()
    assert (out[1] == (a & 0xFFFF | b << np.uint32(16))).all()
    wide = np.stack([a, b], 1).view(np.uint8)
    signs = np.where(wide & 128, 255, 0).astype(np.uint8)
    chosen = np.stack([wide[:, 2], signs[:, 2], wide[:, 3], signs[:, 3]], 1)
    assert (out[2] == (wide[:, [1, 3, 5, 7]].copy().view(np.uint32)[:, 0] ^ chosen.copy().view(np.uint32)[:, 0])).all()
    text = [f"{int(x):032b}" for x in a]
    assert (out[3] == [t.count("1") + 100 * t.index("1") + 10000 * (32 - t.rindex("1")) for t in text]).all()
    assert (out[4] == (a >> np.uint32(7) | b << np.uint32(25))).all()
    assert (out[5] == [int(t[::-1], 2) for t in text]).all()
    difference = a.view(np.int8).astype(int) - b.view(np.int8)
    assert (out[6] == np.clip(difference, -128, 127).astype(np.int8).view(np.uint32)).all()


def is_nearest(result: np.float16, a: np.float16, b: np.float16, c: np.float16) -> bool:
    """Whether no other half is nearer to a * b + c."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if np.isinf(result):
        return abs(exact) >= 65520
    others = [np.nextafter(result, np.float16(limit)) for limit in (-np.inf, np.inf)]
    error = abs(Fraction(float(result)) - exact)
    return all(np.isinf(other) or error <= abs(Fraction(float(other)) - exact) for other in others)


def test_halves_round_once(cupy: StandIn) -> None:
    body = """
      const int i = blockIdx.x * 32 + threadIdx.x;
      const __half x = a[i], y = b[i];
      out[i] = __float2half_rn(f[i]);
      out[n + i] = __hadd(x, y);
      out[2 * n + i] = x * y;
      out[3 * n + i] = __hfma(x, y, a[n - 1 - i]);
      const __half2 two = __hfma2(__halves2half2(x, y), __half2half2(y), __float2half2_rn(0.5f));
      out[4 * n + i] = __low2half(two);
      out[5 * n + i] = __float2half(__half2float(x) + __high2float(two) * 0.0f);
      out[6 * n + i] = __ushort_as_half(__half_as_ushort(x));"""
    n = 4096
    bits = np.arange(0, 65536, 16, dtype=np.uint16)
    a = bits.view(np.float16)
    a = np.where(np.isfinite(a), a, np.float16(1))
    b = RNG.standard_normal(n).astype(np.float16)
    f = np.concatenate([RNG.standard_normal(n - 64) * np.exp(RNG.uniform(-18, 12, n - 64)), np.linspace(-7e4, 7e4, 64)])
    f = f.astype(np.float32)
    parameters = "const __half* a, const __half* b, const float* f, __half* out"
    head = f"constexpr int n = {n};"
    out = launch(cupy, body, a, b, f, np.zeros(7 * n, np.float16), grid=n // 32, head=head, parameters=parameters)[3]
    out = out.reshape(7, n)
    with np.errstate(over="ignore"):
        assert np.array_equal(out[0], f.astype(np.float16))
        assert np.array_equal(out[1], a + b) and np.array_equal(out[2], a * b)
    for result, summand in ((out[3], a[::-1]), (out[4], np.full(n, 0.5, np.float16))):
        assert all(is_nearest(*numbers) for numbers in zip(result, a, b, summand, strict=True))
    assert np.array_equal(out[6].view(np.uint16), a.view(np.uint16))


def test_conversions_saturate(cupy: StandIn) -> None:
    values = np.array([0.5, 1.5, -0.5, -2.5, 3e9, -3e9, np.nan, np.inf, -np.inf, 2.4999998], np.float32)
    body = "const int i = threadIdx.x; b[i] = __float2int_rn(a[i]); b[10 + i] = __float2int_rz(a[i]);"
    out = launch(cupy, body, values, np.zeros(20, np.int32), block=10, parameters="const float* a, int* b")[1]
    high, low = 2**31 - 1, -(2**31)
    assert out.tolist() == [0, 2, 0, -2, high, low, 0, high, low, 2, 0, 1, 0, -2, high, low, 0, high, low, 2]


MMA = {
    # name: dtypes of A and B, rows, depth, registers of A and B
    "m16n8k16.row.col.f32.f16.f16.f32": ("f2", "f2", 16, 16, 4, 2),
    "m16n8k8.row.col.f32.f16.f16.f32": ("f2", "f2", 16, 8, 2, 1),
    "m16n8k16.row.col.s32.s8.s8.s32": ("i1", "i1", 16, 16, 2, 1),
    "m16n8k32.row.col.s32.s8.s8.s32": ("i1", "i1", 16, 32, 4, 2),
    "m16n8k32.row.col.s32.s8.u8.s32": ("i1", "u1", 16, 32, 4, 2),
    "m8n8k16.row.col.s32.s8.s8.s32": ("i1", "i1", 8, 16, 1, 1),
}


def fragments(matrix: np.ndarray, n_registers: int, row_blocks: int) -> np.ndarray:
    """Registers (32, n) of a matrix (rows, depth), as the PTX manual lays them out: rows in blocks of 8, then depth."""
    per_word = 4 // matrix.itemsize
    words = np.ascontiguousarray(matrix).view(np.uint32)  # (rows, depth / per_word)
    assert words.shape[1] == 4 * n_registers // row_blocks and per_word in (2, 4)
    lane = np.arange(32)
    return np.stack(
        [words[lane // 4 + 8 * (r % row_blocks), lane % 4 + 4 * (r // row_blocks)] for r in range(n_registers)], 1
    )


@pytest.mark.parametrize("name", MMA)
def test_tensor_cores(cupy: StandIn, name: str) -> None:
    left, right, rows, depth, n_a, n_b = MMA[name]
    is_half = left == "f2"
    limit = 8 if is_half else 128
    a, b = (RNG.integers(-limit, limit, (n, depth)) for n in (rows, 8))
    a, b = a.astype(left), b.astype(right)  # where bytes have no sign, negative numbers become large ones
    n_d = rows // 4
    c = RNG.integers(-100, 100, (rows, 8)).astype("f4" if is_half else "i4")
    letter, kind = ("f", "float") if is_half else ("r", "int")
    registers = [f"%{i}" for i in range(n_d + n_a + n_b)]
    parts = registers[:n_d], registers[n_d : n_d + n_a], registers[n_d + n_a :], registers[:n_d]
    template = f"mma.sync.aligned.{name} " + ", ".join("{" + ", ".join(part) + "}" for part in parts) + ";"
    outputs = ", ".join(f'"+{letter}"(d[{i}])' for i in range(n_d))
    inputs = ", ".join(f'"r"({x}[lane * {n} + {i}])' for x, n in (("a", n_a), ("b", n_b)) for i in range(n))
    body = f"""
      const int lane = threadIdx.x;
      {kind} d[{n_d}];
      for (int i = 0; i < {n_d}; i++) d[i] = c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2];
      asm volatile("{template}" : {outputs} : {inputs});
      for (int i = 0; i < {n_d}; i++) out[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];"""
    parameters = f"const unsigned* a, const unsigned* b, const {kind}* c, {kind}* out"
    given = (fragments(a, n_a, rows // 8), fragments(b, n_b, 1), c, np.zeros_like(c))
    out = launch(cupy, body, *given, parameters=parameters)[3]
    assert (out == a.astype(np.int64) @ b.astype(np.int64).T + c).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_from_shared_memory(cupy: StandIn, transposed: bool) -> None:
    trans = ".trans" if transposed else ""
    body = f"""
      __shared__ uint4 rows[32];
      const int lane = threadIdx.x;
      rows[lane] = a[lane];
      __syncwarp();
      unsigned d[4];
      const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(&rows[lane]));
      asm volatile("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0, %1, %2, %3}}, [%4];"
                   : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address));
      for (int i = 0; i < 4; i++) out[32 * i + lane] = d[i];"""
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    given = (matrices.view(np.uint32).reshape(-1), np.zeros(128, np.uint32))
    code = "const void* from, unsigned* out"
    body = "const uint4* a = static_cast<const uint4*>(from);" + body
    out = launch(cupy, body, *given, parameters=code)[1].reshape(4, 32)
    expected = matrices.transpose(0, 2, 1) if transposed else matrices
    assert (out == np.ascontiguousarray(expected).view(np.uint32).reshape(4, 32)).all()


@pytest.mark.subprocess
def test_architectures_have_what_they_have() -> None:
    source = 'extern "C" __global__ void k(int* x) { x[0] = __reduce_add_sync(~0u, 1); }'
    StandIn(arch=80).RawModule(code=source).compile()
    with pytest.raises(CompileError, match="__reduce_add_sync"):
        StandIn(arch=75).RawModule(code=source).compile()
    source = 'extern "C" __global__ void k(int* x) { x[0] = __CUDA_ARCH__; }'
    x = (old := StandIn(arch=61)).zeros(1, np.int32)
    old.RawModule(code=source).get_function("k")((1,), (1,), (x,))
    assert x.get()[0] == 610


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x[0] = 1", "expected"),
        ('asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(y));', "tanh_approx_f32"),
        ("atomicAdd(&y, 1.0f);", "atomicAdd is allowed on integers only"),
    ],
)
def test_what_is_not_supported_does_not_compile(code: str, message: str) -> None:
    source = f'extern "C" __global__ void k(int* x) {{\n  float y = 0.0f;\n  {code}\n}}\n'
    with pytest.raises(CompileError, match=message):
        StandIn().RawModule(code='#line 1 "wrong.cu"\n' + source).compile()


def test_options_that_nvrtc_does_not_know_are_refused() -> None:
    with pytest.raises(CompileError, match="-O3"):
        StandIn().RawModule(code="", options=("-O3",)).compile()


def test_rewriting_keeps_lines() -> None:
    code = 'a;\n/* asm("x;") */ b; // asm("y;")\n'
    code += 'asm volatile(\n  "lop3.b32 %0, %1,"\n  " %1, %1, 0x80;"\n : "=r"(f(a, b)) : "r"(c));\nlast;\n'
    lines = rewrite(code).splitlines()
    assert lines[-1] == "last;" and len(lines) == len(code.splitlines())
    assert "emulator_ptx::lop3_b32((f(a, b)), (c), (c), (c), 0x80);" in rewrite(code)


# ---- counts and orders


def counted(body: str, parameters: str = "const float* a, float* b", block: int = 32) -> Any:
    cupy = StandIn(mode="count")
    launch(cupy, body, np.zeros(8192, np.float32), np.zeros(8192, np.float32), block=block, parameters=parameters)
    return cupy.device.counts[0]


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("index", "sectors", "use"),
    [
        ("i", 4, 1.0),
        ("2 * i", 8, 0.5),
        ("8 * i", 32, 1 / 8),
        ("32 * i", 32, 1 / 8),
        ("0", 1, 1 / 8),
        ("i + 1", 5, 0.8),
        ("i ^ 31", 4, 1.0),
    ],
)
def test_sectors_are_counted(index: str, sectors: int, use: float) -> None:
    counts = counted(f"const int i = threadIdx.x; b[i] = a[{index}];")
    loads = [site for site in counts.sites if not site.write]
    assert [(s.requests, s.sectors, s.access_bytes) for s in loads] == [(1, sectors, 4)]
    assert counts.sector_use == counts.memory_use == use
    assert counts.loads == counts.stores == 32 and counts.bytes_written == 128


@pytest.mark.subprocess
def test_requests_of_lanes_that_loop_are_told_apart() -> None:
    body = """
      for (int t = 0; t < 4; t++) {
        const float4 v = reinterpret_cast<const float4*>(a)[t * 32 + threadIdx.x];
        b[threadIdx.x] += v.x + v.w;
      }"""
    counts = counted(body)
    wide = [site for site in counts.sites if site.access_bytes == 16]
    assert [(site.requests, site.sectors, site.used_bytes) for site in wide] == [(4, 64, 2048)]
    assert counts.bytes_read == 2048 + 128


@pytest.mark.subprocess
def test_lanes_that_skip_a_round_do_not_spoil_the_others() -> None:
    body = """
      for (int t = 0; t < 4; t++) {
        if (threadIdx.x % 4 != t) b[threadIdx.x] += a[t * 32 + threadIdx.x];
        __syncwarp();
      }"""
    loads = [site for site in counted(body).sites if not site.write]  # of a and of b, 24 lanes each
    assert [(site.requests, site.sectors, site.used_bytes) for site in loads] == [(8, 32, 768)]


@pytest.mark.subprocess
@pytest.mark.parametrize(("index", "conflicts"), [("i", 1), ("2 * i", 2), ("32 * i", 32), ("33 * i", 1), ("0", 1)])
def test_bank_conflicts_are_counted(index: str, conflicts: int) -> None:
    body = f"""
      __shared__ float s[1056];
      const int i = threadIdx.x;
      for (int k = i; k < 1056; k += 32) s[k] = a[k];
      __syncthreads();
      b[i] = s[{index}];"""
    reads = [site for site in counted(body).sites if site.space == "shared" and not site.write]
    assert [(site.transactions, site.ideal_transactions) for site in reads] == [(conflicts, 1)]


@pytest.mark.subprocess
def test_instructions_are_counted() -> None:
    body = """
      int c = 0;
      for (int t = 0; t < 5; t++) c = __dp4a(t, t, c);
      c = __shfl_xor_sync(~0u, c, 1);
      __syncthreads();
      __threadfence();
      b[threadIdx.x] = c;"""
    counts = counted(body, block=64).instructions
    expected = {"dot_products": 5, "shuffles": 1, "barriers": 1, "fences": 1, "atomics": 0}
    assert {name: counts[name] for name in expected} == {name: 64 * n for name, n in expected.items()}


@pytest.mark.subprocess
def test_orders_differ() -> None:
    body = "if (threadIdx.x == 0) b[atomicAdd(c, 1)] = blockIdx.x;"
    seen = set()
    for order in ("forward", "backward", 1, 2):
        cupy = StandIn(order=order)
        result = launch(cupy, body, np.zeros(8, np.int32), np.zeros(1, np.int32), grid=8, parameters="int* b, int* c")[
            0
        ]
        assert sorted(result) == list(range(8))
        seen.add(tuple(result))
    assert (0, 1, 2, 3, 4, 5, 6, 7) in seen and (7, 6, 5, 4, 3, 2, 1, 0) in seen and len(seen) == 4


@pytest.mark.subprocess
def test_a_wild_pointer_does_not_end_the_process() -> None:
    cupy = StandIn(mode="fast")
    with pytest.raises(EmulationError, match="no memory is"):
        launch(cupy, "b[1ll << 40] = 1.0f;", np.zeros(8, np.float32), parameters="float* b")
    assert (launch(cupy, "b[threadIdx.x] = 1.0f;", np.zeros(32, np.float32), parameters="float* b")[0] == 1).all()


def test_a_failed_assertion_is_a_finding(cupy: StandIn) -> None:
    with pytest.raises(EmulationError, match="assertion b\\[0\\] > 0"):
        launch(cupy, "assert(b[0] > 0);", np.zeros(8, np.float32), parameters="float* b")


def test_threads_of_a_block_may_wait_for_each_other(cupy: StandIn) -> None:
    body = """
      if (threadIdx.x == 0) while (atomicAdd(&b[0], 0) == 0) {}
      if (threadIdx.x == 33) atomicExch(&b[0], 1);"""
    assert launch(cupy, body, np.zeros(1, np.int32), block=64, parameters="int* b")[0][0] == 1


def test_waiting_for_another_block_is_found(cupy: StandIn) -> None:
    body = "if (blockIdx.x == 0) while (atomicAdd(&b[0], 0) == 0) {} else atomicExch(&b[0], 1);"
    with pytest.raises(EmulationError, match="deadlock"):
        launch(cupy, body, np.zeros(1, np.int32), grid=2, parameters="int* b")


def test_launch_bounds_are_kept(cupy: StandIn) -> None:
    code = """
      template <int kWarps>
      __global__ void __launch_bounds__(32 * kWarps, 2) k(int* x) { x[threadIdx.x] = 1; }"""
    kernel = cupy.RawModule(code=code, name_expressions=["k<2>"]).get_function("k<2>")
    x = cupy.zeros(65, np.int32)
    kernel((1,), (64,), (x,))
    with pytest.raises(EmulationError, match="__launch_bounds__ allows 64"):
        kernel((1,), (65,), (x,))


def test_static_shared_arrays_that_are_too_large_together_are_found(cupy: StandIn) -> None:
    body = """
      __shared__ int s[{0}], t[{0}];
      const int i = threadIdx.x;
      s[i] = t[i] = b[i];
      __syncthreads();
      b[i] = s[31 - i] + t[31 - i];"""
    launch(cupy, body.format(6144), np.zeros(32, np.int32), parameters="int* b")
    if cupy.device.settings.checks:
        with pytest.raises(EmulationError, match="static shared arrays of 49160 bytes"):
            launch(cupy, body.format(6145), np.zeros(32, np.int32), parameters="int* b")


def test_too_much_static_shared_memory_does_not_compile(cupy: StandIn) -> None:
    body = "__shared__ int s[13000]; s[threadIdx.x] = b[0]; __syncthreads(); b[threadIdx.x] = s[31 - threadIdx.x];"
    with pytest.raises(CompileError, match="48 KiB"):
        launch(cupy, body, np.zeros(32, np.int32), parameters="int* b")
