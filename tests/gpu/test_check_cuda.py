"""scripts/cuda/check_cuda.py: what it lists, what it counts, and how it reads machine code."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "scripts" / "cuda"))
    check_cuda, cuda_costs, cuda_kernels, instructions, nvrtc, sass = (
        importlib.import_module(name)
        for name in ("check_cuda", "cuda_costs", "cuda_kernels", "instructions", "nvrtc", "sass")
    )

# A loop of two dp4a with a loop of one FFMA inside, and what is after both.
CODE = """
.text.kernel:
        /*0000*/                   S2R R44, SR_TID.X ;
.L_x_1:
        /*0010*/                   IDP.4A.U8.S8 R54, R55, R20, RZ ;
        /*0020*/              @!P0 LDG.E.NA.128.CONSTANT R16, [R22.64] ;
        /*0030*/                   IDP.4A.U8.S8 R54, R55, R20, R54 ;
.L_x_2:
        /*0040*/                   LDS R31, [R52+0x11c0] ;
        /*0050*/                   FFMA R35, R36, R35, R41 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/              @!P2 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
        /*00b0*/                   NOP;
"""


def parsed() -> tuple[list[Any], dict[str, int]]:
    return sass._parse(CODE)


def test_every_kernel_is_listed() -> None:
    assert cuda_kernels.unlisted() == []
    listed = cuda_kernels.expressions(range(1, 9))
    for name, expressions in listed.items():
        assert {expression.split("<")[0] for expression in expressions} <= cuda_kernels.kernels_of(name)


def test_a_kernel_that_is_not_listed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cuda_kernels.expressions(range(1, 2))
    monkeypatch.setattr(cuda_kernels, "expressions", lambda columns: {"norm": whole["norm"]})
    assert {"sample.cu: sample", "matvec.cu: matvec_swiglu"} <= set(cuda_kernels.unlisted())


def test_instructions_are_sorted_into_kinds() -> None:
    mix = sass.mix(parsed()[0])
    assert (mix["dp4a"], mix["global"], mix["shared"], mix["fma"], mix["barrier"]) == (2, 1, 1, 1, 1)
    assert mix["other"] == 1 and mix["all"] == 11  # S2R; the filling is not counted


def test_loops_are_nested() -> None:
    (outer,) = sass.loops(*parsed())
    (inner,) = outer.inner
    assert len(outer.body) == 8 and len(inner.body) == 3
    assert [i.kind for i in outer.own()] == ["IDP", "LDG", "IDP", "BAR", "BRA"]


def test_a_staged_group_is_counted() -> None:
    loop = instructions.staging_loop("matmul<4, 64>", *parsed())
    assert loop == instructions.StagingLoop(5, 0, uses_mma=False)  # of the outer loop: there is no product in the inner
    wide = (
        CODE.replace("S2R R44, SR_TID.X", "EXIT").replace("LDG.E.NA.128.CONSTANT", "LDS.128").replace("LDS R", "STS R")
    )
    assert instructions.staging_loop("matmul<4, 64>", *sass._parse(wide)).shared_cycles == 4
    assert instructions.staging_loop("matvec<4, 64, 1>", *parsed()) is None


def test_costs_of_7b() -> None:
    # All weights but the embeddings at 4.25 bits: 6.61 billion of them.
    weights = (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096) * 4.25 / 8
    assert weights < cuda_costs.token_bytes("q4") < weights * 1.001
    assert cuda_costs.token_bytes("q8") - cuda_costs.token_bytes("q4") == 32000 * 4096 / 2
    assert cuda_costs.sectors_used() == 1.0
    assert all(count.holds for count in cuda_costs.counts({}))


def test_a_count_beyond_its_bound_does_not_hold() -> None:
    assert cuda_costs.Count("x", 1.5, "", most=1.5).holds
    assert not cuda_costs.Count("x", 1.51, "", most=1.5).holds
    assert not cuda_costs.Count("x", 0.94, "", least=0.95).holds
    per_weight = {"sm_80": {"matvec<4, 64, 1>": 1.7}}
    assert [count.holds for count in cuda_costs.counts(per_weight)][-1] is False


def test_usage_is_read_from_the_assembler() -> None:
    log = """ptxas info    : Compiling entry function 'f' for 'sm_80'
ptxas info    : Function properties for f
ptxas         .     24 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 60 registers, used 1 barriers, 24 bytes cumulative stack size, 12288 bytes smem, 420 bytes cmem[0]
ptxas info    : Compiling entry function 'g' for 'sm_80'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 420 bytes cmem[0]
"""
    assert nvrtc._usage(log) == {"f": nvrtc.Usage(60, 12288, 12, 24), "g": nvrtc.Usage(8, 0, 0, 0)}


def has_wheels() -> bool:
    return nvrtc.wheel_folder("cuda_nvrtc") is not None and nvrtc.wheel_folder("cuda_runtime") is not None


@pytest.mark.slow
@pytest.mark.skipif(not has_wheels(), reason="NVRTC's wheels are not installed")
@pytest.mark.parametrize("architecture", [61, 80])
def test_a_kernel_is_compiled_and_counted(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "expressions", lambda columns: {"matvec": ["matvec<4, 64, 1>"]})
    report = check_cuda.check_file("matvec", architecture, range(1, 2))
    (row,) = report.rows
    assert report.error == "" and report.spills == []
    assert (row.kernel, row.variants, row.spilled) == ("matvec", 1, 0) and 32 <= row.registers <= 64
    if sass.disassembler() and architecture >= 75:
        assert row.instructions["dp4a"] == 64  # half of them in the loop, half after it
        assert row.instructions["local"] == 0
        assert 0.6 < report.per_weight["matvec<4, 64, 1>"] <= 1.5


@pytest.mark.skipif(not has_wheels(), reason="NVRTC's wheels are not installed")
def test_an_error_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = cuda_kernels.source.source("matvec")
    broken = text.replace("constexpr int kWarps = 16;", "constexpr int kWarps = sixteen;")
    monkeypatch.setattr(cuda_kernels.source, "source", lambda *names: broken)
    report = check_cuda.check_file("matvec", 80, range(1, 2))
    assert "product.cu(" in report.error and "sixteen" in report.error


def test_what_to_install_is_told(tmp_path: Path) -> None:
    """-E and -S hide all folders of packages, and with them the wheels; numpy is lent from where it is."""
    import numpy

    folder = tmp_path / "numpy"
    folder.symlink_to(Path(numpy.__file__).parent)
    libraries = Path(numpy.__file__).parent.parent / "numpy.libs"
    if libraries.is_dir():
        (tmp_path / "numpy.libs").symlink_to(libraries)
    code = f"import sys; sys.path.append({str(tmp_path)!r}); sys.argv = ['check_cuda.py']; import runpy; "
    code += f"runpy.run_path({str(ROOT / 'scripts' / 'cuda' / 'check_cuda.py')!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-E", "-S", "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12" in result.stderr


@pytest.mark.skipif(not has_wheels(), reason="NVRTC's wheels are not installed")
def test_too_much_shared_memory_is_named() -> None:
    code = """extern "C" __global__ void k(int* x) {
        __shared__ int s[12289]; s[*x] = 1; __syncthreads(); *x = s[*x + 1]; }"""
    with pytest.raises(nvrtc.CompileError, match="k has 49156 bytes of static shared memory, 49152 are allowed"):
        nvrtc.Nvrtc().compile(code, (), (), 80)


@pytest.mark.skipif(not has_wheels(), reason="NVRTC's wheels are not installed")
def test_denormals_are_flushed_as_with_cupy() -> None:
    """-ftz=true shows in the machine code: the addition has .FTZ."""
    if not (nvdisasm := sass.disassembler()):
        pytest.skip("nvdisasm is not installed")
    code = 'extern "C" __global__ void k(float* x) { *x += x[1]; }'
    compiled = nvrtc.Nvrtc().compile(code, cuda_kernels.source.OPTIONS, (), 80)
    (instructions, _), *_ = sass.disassemble(nvdisasm, compiled.cubin).values()
    assert "FADD.FTZ" in {instruction.mnemonic for instruction in instructions}


@pytest.mark.skipif(not has_wheels(), reason="NVRTC's wheels are not installed")
def test_spills_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = check_cuda.Row("matvec", 80, variants=1, spilled=8)
    report = check_cuda.Report([row], ["matvec<4, 64, 1>, sm_80: 8 bytes"], {})
    monkeypatch.setattr(check_cuda, "run", lambda *arguments: [report])
    monkeypatch.setattr(sys, "argv", ["check_cuda.py", "--json", str(tmp_path / "report.json")])
    assert check_cuda.main() == 1
    assert "spilled registers: matvec<4, 64, 1>, sm_80: 8 bytes" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["failures"]
