"""scripts/cuda: the model of a step's time, the tables of docs/gpu.md, and calm's published figures."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyllama2._gpu.launchers import prefetch
from pyllama2._gpu.launchers.attention import SPAN
from pyllama2._gpu.launchers.vectors import THREADS
from pyllama2._gpu.planner import CHUNKS

ROOT = Path(__file__).resolve().parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "scripts" / "cuda"))
    batches, cards, compiled, cuda_costs, designs, instructions, nvrtc, prompt_model, sass, step_model, cost_tables = (
        importlib.import_module(name)
        for name in ("batches", "cards", "compiled", "cuda_costs", "designs", "instructions", "nvrtc", "prompt_model",
                     "sass", "step_model", "cost_tables")
    )  # fmt: skip

CARDS = {card.name: card for card in cards.CARDS}
PRODUCTS = ("matvec", "matvec_qkv", "matvec_swiglu")
RESIDUAL = ("matvec_residual", "matvec_residual" + compiled.HALVES)
KERNELS = (*PRODUCTS, *(name + compiled.NORMED for name in PRODUCTS), *RESIDUAL, "attend")
OF_8 = [name + compiled.SEVERAL for name in (*PRODUCTS, "matvec_residual")]
COUNTED = compiled.Counted(89, {
    **{name: compiled.Kernel(64, 16000, 1.2) for name in KERNELS},
    **{name: compiled.Kernel(64, 16000, 2.4, ahead=2) for name in OF_8},
    "matmul": compiled.Kernel(128, 16000, staging=instructions.StagingLoop(300, 70, uses_mma=True)),
})  # fmt: skip


def of_4090() -> cards.Card:
    return CARDS["4090"]


@pytest.mark.parametrize(("bits", "position"), designs.CALM_TOKENS)
def test_calm_is_reproduced(bits: int, position: int) -> None:
    published = designs.CALM_TOKENS[bits, position]
    assert abs(designs.calm(of_4090(), bits, position).per_second(of_4090()) / published - 1) < 0.10


def test_a_chain_is_weighed() -> None:
    card = replace(of_4090(), clock_ghz=2.0, l2_ns=100, dram_ns=400)
    assert step_model.Chain(alu=2, shared=1).cycles == 2 * step_model.ALU_CYCLES + step_model.SHARED_CYCLES
    assert step_model.Chain(l2=1, dram=1).us(card) == pytest.approx(0.5)
    assert step_model.Chain(atomics=1).us(card) == pytest.approx(0.2)
    assert step_model.Chain(barriers=2).us(card) == pytest.approx(2 * step_model.BARRIER_CYCLES / 2.0 / 1000)


def test_what_limits_a_stream() -> None:
    """Bandwidth; the bytes in flight; instructions."""
    card = replace(of_4090(), n_sms=100, attainable_gbs=1000, dram_ns=500)
    node = step_model.Node("x", 50e6, 1000, 64 << 10, 2)
    assert node.stream_us(card) == pytest.approx(50)
    few = replace(node, block_flight=1 << 10)
    assert few.stream_us(card) == pytest.approx(50e6 / (step_model.DUTY * 200 * 1024 / 1.0))
    issuing = 100e-6 * 100 * step_model.LANES * card.clock_ghz * 1e9
    many = replace(node, instructions=issuing)
    assert many.stream_us(card) == pytest.approx(100 + step_model.OVERLAP * 50)


def test_a_head_beside_the_first_load_costs_what_it_is_longer() -> None:
    card = replace(of_4090(), dram_ns=400, l2_ns=100)
    node = step_model.Node("x", 50e6, 1000, 64 << 10, 2)
    hidden, longer = (replace(node, beside=step_model.Chain(l2=n)) for n in (4, 6))
    assert hidden.us(card) == node.us(card)
    assert longer.us(card) == pytest.approx(node.us(card) + 0.2)
    before = replace(node, head=step_model.Chain(l2=1))
    assert before.us(card) == pytest.approx(node.us(card) + 0.1)


def test_what_is_prefetched_comes_between_two_streams() -> None:
    card = replace(of_4090(), n_sms=100, attainable_gbs=1000, l2_gbs=4000, dram_ns=500, l2_ns=100, node_us=1.0)
    before = step_model.Node("x", 0, 1, 0, 1, tail=step_model.Chain(l2=20), until_prefetch=step_model.Chain(l2=5))
    node = step_model.Node("y", 50e6, 1000, 64 << 10, 2, prefetched=10e6)
    assert node.cached(card, None) == replace(node, prefetched=0).cached(card, before) == 0
    # It begins 0.5 us after the last data, for 1.5 us; then there is a boundary, and the wait for the first data.
    assert node.cached(card, before) == pytest.approx(1000e3 * (1.5 + 1.0))
    assert replace(node, prefetched=2e6).cached(card, before) == 2e6
    assert node.us(card) - node.us(card, before) == pytest.approx(2.5)  # memory is never idle
    slow_cache = replace(card, l2_gbs=1500)  # both halves of twice 2.5 MB go through it
    assert node.us(slow_cache) - node.us(slow_cache, before) == pytest.approx(5.0 - 5e6 / 1500e3)
    step = step_model.Step((before, node), 3.0)
    assert step.us(card) == pytest.approx(before.us(card) + node.us(card, before) + 3.0)


def test_a_design_prefetches_all_but_the_first_matrix() -> None:
    attention, prefetch = (next(d for d in designs.STAGES if d.name == name) for name in ("attention", "prefetch"))
    assert not any(node.prefetched for node in designs.ours(of_4090(), COUNTED, attention).nodes)
    for step in (designs.ours(of_4090(), COUNTED, prefetch, 4000), batches.step(of_4090(), COUNTED, 4000)):
        assert {node.name for node in step.nodes if not node.prefetched} == {"embed", "qkv", "sample"}
        assert [node.prefetched > 0 for node in step.nodes if node.name == "qkv"] == [False] + 31 * [True]
        assert all(2 * node.prefetched <= node.n_bytes for node in step.nodes)


def test_blocks_on_a_multiprocessor() -> None:
    sizes = {"registers": (63, 100), "threads": (16, 0), "shared": (16, 40000)}
    counted = compiled.Counted(75, {name: compiled.Kernel(*size, None) for name, size in sizes.items()})
    assert counted.residents("registers", 512, CARDS["A100 80 GB"]) == 2
    assert counted.residents("threads", 512, CARDS["T4"]) == 2
    assert counted.residents("shared", 256, CARDS["T4"]) == 1


def test_a_step_has_the_nodes_and_bytes_that_are_counted() -> None:
    step = designs.ours(of_4090(), COUNTED, designs.STAGES[-1])
    assert len(step.nodes) == len(cuda_costs.BEFORE) + 32 * len(cuda_costs.OF_A_LAYER) + len(cuda_costs.AFTER)
    assert step.n_bytes == pytest.approx(cuda_costs.token_bytes("q8"), rel=1e-3)
    far = designs.ours(of_4090(), COUNTED, designs.STAGES[-1], 3999)
    assert far.n_bytes - step.n_bytes == 3999 * 32 * 2 * 4096 * 2


def test_half_tiles_are_twice_the_blocks_where_multiprocessors_had_none() -> None:
    whole, half = (design for design in designs.STAGES if design.name in ("norms", "half tiles"))
    for card, blocks in ((CARDS["H100"], 256), (of_4090(), 128)):
        before, after = (
            {node.name: node for node in designs.ours(card, COUNTED, design).nodes} for design in (whole, half)
        )
        assert [before[name].blocks for name in ("wo", "w2")] == [128, 128]
        assert [after[name].blocks for name in ("wo", "w2")] == [blocks, blocks]
        assert before["qkv"] == after["qkv"]


def test_designs_have_the_numbers_of_the_source() -> None:
    assert designs.THREADS == THREADS and designs.SPAN == SPAN
    assert designs.TILE_AHEAD == prefetch.TILE_AHEAD and designs.SHARE == prefetch.SHARE
    kernels = {name: (ROOT / "pyllama2/_gpu/kernels" / f"{name}.cu").read_text() for name in ("attention", "common")}
    assert f"kChunk = {designs.CHUNK};" in kernels["attention"]
    assert f"kTileRows = {designs.TILE};" in kernels["common"]


def test_a_step_of_eight_tokens_reads_the_weights_once() -> None:
    one, eight = designs.ours(of_4090(), COUNTED, designs.STAGES[-1]), batches.step(of_4090(), COUNTED)
    assert [node.name for node in eight.nodes] == [node.name for node in one.nodes]
    keys_and_values, norms = 32 * 2 * 4096 * 2, 65 * 4 * 4096  # norms are not read by the products of eight
    assert eight.n_bytes - one.n_bytes == pytest.approx(7 * keys_and_values - norms, rel=0.01)
    assert one.us(of_4090()) < eight.us(of_4090()) < 8 * one.us(of_4090())


def product(**changes: Any) -> prompt_model.Product:
    return replace(prompt_model.Product.counted(COUNTED, of_4090(), 4096, 4096, 256), **changes)


def test_a_block_waits_for_what_is_not_copied_ahead() -> None:
    card, late = of_4090(), product()
    late = replace(late, tiling=replace(late.tiling, ahead=0))
    busy, group = late.busy_cycles(card), late.group_cycles(card, 1)
    assert group > busy + card.dram_ns * card.clock_ghz
    early = replace(late, tiling=replace(late.tiling, ahead=1))
    assert 0 < group - early.group_cycles(card, 1) < card.dram_ns * card.clock_ghz
    soon = replace(late, tiling=replace(late.tiling, ahead=100))
    assert busy < soon.group_cycles(card, 1) == pytest.approx(group - card.dram_ns * card.clock_ghz)


def test_blocks_of_a_multiprocessor_share_its_units() -> None:
    card = of_4090()
    many = product(rows=64 * 128 * 8, resident=8)
    assert many.together(card) == 8 and many.group_cycles(card, 8) == 8 * many.busy_cycles(card)
    assert product(resident=8).together(card) == 1  # there are 128 blocks


@pytest.mark.parametrize(("rows", "n_sms", "resident", "rounds"), [
    (256, 4, 2, (1,)),  # 4 blocks of 64 rows: one for each
    (320, 4, 2, (2,)),  # 5: one multiprocessor has two, at the same time
    (576, 4, 2, (2, 1)),  # 9: one has three, two of them together
    (768, 4, 2, (2, 1)),  # 12: they all have three
    (832, 4, 2, (2, 2)),  # 13: one has four
    (832, 4, 3, (3, 1)), (832, 4, 8, (4,)), (832, 4, 1, (1, 1, 1, 1)), (64, 4, 8, (1,)),
])  # fmt: skip
def test_the_last_round_has_the_blocks_that_are_left(
    rows: int, n_sms: int, resident: int, rounds: tuple[int, ...]
) -> None:
    card = replace(of_4090(), n_sms=n_sms)
    found = product(rows=rows, n=128, resident=resident)
    assert found.together(card) == rounds[0]
    assert found.rounds_cycles(card) == pytest.approx(sum(found.group_cycles(card, blocks) for blocks in rounds))
    assert len({found.group_cycles(card, blocks) for blocks in range(1, 5)}) > 1


def test_a_chunk_has_the_products_of_a_layer() -> None:
    card = of_4090()
    assert CHUNKS[0] == batches.CHUNK and batches.CHUNK % batches.CHUNK_BEFORE == 0
    now, before = batches.chunk(card, COUNTED).products, batches.products_before(card)
    multiplications = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * CHUNKS[0]
    assert sum(p.multiplications for p in now) == sum(p.multiplications for p in before) == multiplications
    assert len(now) == 4 * 32 and len(before) == 2 * 6 * 32


def test_no_product_is_faster_than_tensor_cores() -> None:
    for card in CARDS.values():
        chunk = batches.chunk(card, COUNTED)
        peak = card.int8_per_clock * card.n_sms * card.clock_ghz / 1000 / card.int8_tops
        times = chunk.us(card), batches.products_us(chunk.products, card)
        whole, products = (batches.peak(chunk.products, card, us) for us in times)
        assert 0 < whole < products < peak <= 1.05


def test_tilings_have_the_numbers_of_the_source() -> None:
    folder = ROOT / "pyllama2" / "_gpu" / "kernels"
    mma, without_copies = prompt_model.TILINGS[80], prompt_model.TILINGS[75]
    assert f"kBlockTiles = {mma.rows // designs.TILE}, " in (folder / "matmul.cu").read_text()
    assert f"kMatmulThreads = {mma.warps * 32};" in (folder / "matmul.cu").read_text()
    text = (folder / "matmul_mma.cu").read_text()
    assert f"kMmaVectors = {mma.vectors};" in text and f"kStages = __CUDA_ARCH__ >= 800 ? {mma.ahead + 1} : 2;" in text
    assert without_copies == replace(mma, ahead=0, chained=2 * mma.chained)


def test_tables_are_put_into_a_page() -> None:
    page = "a\n<!-- made: x -->\nold\n<!-- end -->\nb\n"
    assert cuda_costs.written(page, {"x": "new"}) == "a\n<!-- made: x -->\n\nnew\n\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="0 places for the table y"):
        cuda_costs.written(page, {"y": "new"})


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_source() -> None:
    """Tokens per second within two: compilers of another version allocate registers otherwise."""
    if nvrtc.wheel_folder("cuda_nvrtc") is None or not sass.disassembler():
        pytest.skip("the wheels of NVRTC and nvdisasm are not installed")
    page = cuda_costs.PAGE.read_text(encoding="utf-8")
    made = cost_tables.everything({sm: compiled.count(sm) for sm in sorted({card.sm for card in cards.CARDS})})
    again = cuda_costs.written(page, made)
    numbers = re.compile(r"\d+(?:\.\d+)?")
    assert numbers.sub("#", page) == numbers.sub("#", again), "run scripts/cuda/cuda_costs.py --write"
    for old, new in zip(page.splitlines(), again.splitlines(), strict=True):
        for a, b in zip(numbers.findall(old), numbers.findall(new), strict=True):
            assert abs(float(a) - float(b)) <= max(2.0, 0.02 * float(b)), f"{old}\nis now\n{new}"
