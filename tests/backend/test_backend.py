"""The CPU backend: every weight type and instruction set, the contract of backends, and which backend is selected."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
from helpers import instruction_sets
from helpers.backend_contract import TOKENS, BackendContract, all_logits
from helpers.quantized_reference import reference_logits
from helpers.tiny import CONFIGS, GQA, MHA, TIED, oracle_logits, quantized_model, random_weights

from pyllama2._cpu import CpuBackend, default_threads
from pyllama2.backend import devices, gpu_numbers, select_backend
from pyllama2.backend.base import Backend, Batch
from pyllama2.config import ModelConfig
from pyllama2.errors import BackendUnavailableError, ClosedError

FORMATS = {
    "float32": ("float32", 0), "float16": ("float16", 0), "q8g32": ("q8", 32), "q8g64": ("q8", 64),
    "q8g128": ("q8", 128), "q4g32": ("q4", 32), "q4g64": ("q4", 64), "q4g128": ("q4", 128),
}  # fmt: skip


def make(config: ModelConfig, name: str, n_threads: int = 2, kv_dtype: str = "float32") -> Backend:
    type, group_size = FORMATS[name]
    model = quantized_model(config, random_weights(config), type, group_size)
    return CpuBackend(model, n_threads=n_threads, kv_dtype=kv_dtype)


@pytest.mark.parametrize("name", ["float32", "float16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_float_logits_equal_the_oracle(config: ModelConfig, name: str, isa: str) -> None:
    weights = random_weights(config)
    if name == "float16":
        weights = {k: w if w.ndim == 1 else w.astype(np.float16).astype(np.float32) for k, w in weights.items()}
    expected = oracle_logits(config, weights, TOKENS)
    logits = all_logits(make(config, name), TOKENS)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("q")])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_quantized_logits_equal_the_definition(config: ModelConfig, name: str, isa: str) -> None:
    """An int8 code of an activation may differ by one where float32 rounds otherwise: near for all, close for most."""
    type, group_size = FORMATS[name]
    expected = reference_logits(quantized_model(config, random_weights(config), type, group_size), TOKENS)
    errors = np.abs(all_logits(make(config, name), TOKENS) - expected).max(1) / np.abs(expected).max()
    assert np.median(errors) < (2e-3 if type == "q4" else 1e-4)
    assert errors.max() < (3e-2 if type == "q4" else 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("config", [GQA, MHA, TIED], ids=["gqa", "mha", "tied"])
def test_bits_depend_on_the_sequence_alone(config: ModelConfig, name: str, isa: str) -> None:
    expected = all_logits(make(config, name, n_threads=1), TOKENS)
    for n_threads in (1, 2, 3, 7):
        backend = make(config, name, n_threads=n_threads)
        cache = backend.new_cache(3, 64)
        # The sequence in row 1, in uneven pieces, each amid tokens of other rows.
        rng = np.random.default_rng(n_threads)
        found, start = [], 0
        for length in (1, 1, 5, 30, 8):
            others = int(rng.integers(0, 4))
            piece = [*TOKENS[start : start + length], *rng.integers(0, 50, 2 * others)]
            rows = [1] * length + [0] * others + [2] * others
            positions = [*range(start, start + length), *range(start, start + others), *range(others)]
            order = np.argsort(rng.permutation(rows), kind="stable")  # any interleaving ...
            slots = np.sort(order[:length]), np.sort(order[length : length + others]), np.sort(order[length + others :])
            order = np.argsort(np.concatenate(slots), kind="stable")  # ... in which each row's positions ascend
            tokens, rows, positions = (np.asarray(a, np.int32)[order] for a in (piece, rows, positions))
            found.append(backend.forward(Batch(tokens, rows, positions, np.flatnonzero(rows == 1).astype("i4")), cache))
            start += length
        assert np.array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("name", ["float32", "q8g64", "q4g64"])
def test_instruction_sets_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for isa in instruction_sets.HERE:
        monkeypatch.setenv("PYLLAMA2_CPU_ISA", isa)
        found.append(all_logits(make(MHA, name), TOKENS))
    # Float sums differ in their order; a quantized activation on the edge may then take the other code.
    for other in found[1:]:
        error = np.abs(found[0] - other).max(1) / np.abs(found[0]).max()
        assert np.median(error) < (1e-5 if name == "float32" else 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "q4g64"])
def test_long_prompts_are_taken_in_chunks(name: str) -> None:
    config = replace(GQA, max_seq_len=800)
    tokens = np.random.default_rng(0).integers(0, 70, 791).tolist()
    backend = make(config, name)
    whole = all_logits(backend, tokens)
    cache = backend.new_cache(1, 800)
    parts = [backend.forward(Batch.of_sequence(tokens[a:b], 0, a, "all"), cache) for a, b in [(0, 129), (129, 791)]]
    assert np.array_equal(whole, np.concatenate(parts))
    if name == "float32":
        expected = oracle_logits(config, random_weights(config), tokens)
        assert np.abs(whole - expected).max() < 1e-4 * np.abs(expected).max()


def test_float16_cache_is_close(isa: str) -> None:
    wide = all_logits(make(MHA, "float32"), TOKENS)
    narrow = all_logits(make(MHA, "float32", kv_dtype="float16"), TOKENS)
    assert 0 < np.abs(wide - narrow).max() < 2e-3 * np.abs(wide).max()


class TestContract(BackendContract):
    make = staticmethod(make)


@pytest.mark.slow
def test_ctrl_c_during_a_long_prompt() -> None:
    config = replace(MHA, max_seq_len=20_000)
    backend = make(config, "float32", n_threads=1)
    cache = backend.new_cache(1, 20_000)
    batch = Batch.of_sequence([1] * 20_000)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            backend.forward(batch, cache)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not cache.save_row(0, 20_000)["keys"][:, :, -1].any()  # it ended long before the last position
    expected = all_logits(backend, TOKENS)
    assert np.array_equal(backend.forward(Batch.of_sequence(TOKENS, outputs="all"), cache), expected)


@pytest.mark.slow
def test_nan_and_infinite_weights_stay_visible() -> None:
    for name in FORMATS:
        type, group_size = FORMATS[name]
        for bad in (np.nan, np.inf):
            model = quantized_model(GQA, random_weights(GQA), type, group_size)
            norm = model.weights["layers.1.ffn_norm.weight"]
            norm.data[3] = bad
            assert not np.isfinite(all_logits(CpuBackend(model, n_threads=1), [1, 2])).any(), name


class TestSelection:
    def test_cpu(self) -> None:
        assert select_backend("cpu") == (CpuBackend, "using cpu")

    def test_auto_says_what_it_took(self) -> None:
        chosen, why = select_backend("auto")
        assert why.startswith("using cuda" if chosen is not CpuBackend else "using cpu (no cuda: ")

    def test_cuda_without_a_card_says_what_to_install(self) -> None:
        if select_backend("auto")[0] is not CpuBackend:
            pytest.skip("this machine has a GPU")
        with pytest.raises(BackendUnavailableError, match="cuda"):
            select_backend("cuda")

    def test_unknown(self) -> None:
        for device in ("tpu", "cuda:", "cuda:x", "cuda:0,cpu", "cuda:1,cuda:1", "cuda,cuda", "cuda:0,", ",",
                       "cuda:00", "cuda:\u0661", "cuda:-1", "cuda:1000", "cuda:1\n"):  # fmt: skip
            with pytest.raises(ValueError, match="auto, cpu or cuda, or GPUs such as cuda:1"):
                select_backend(device)

    def test_numbers_of_gpus(self) -> None:
        named = {"cpu": [], "auto": [None], "cuda": [None], "cuda:0": [0], "cuda:10,cuda:2": [10, 2]}
        assert {device: gpu_numbers(device) for device in named} == named

    def test_layers_for_a_gpu(self) -> None:
        assert select_backend("cpu", n_gpu_layers=0) == (CpuBackend, "using cpu")
        assert select_backend("auto", n_gpu_layers=0) == (CpuBackend, "using cpu (n_gpu_layers is 0)")
        with pytest.raises(ValueError, match="n_gpu_layers=3 is for a GPU, and the device is cpu"):
            select_backend("cpu", n_gpu_layers=3)

    def test_registry_names_classes(self) -> None:
        assert set(devices._REGISTRY) == {"cpu", "cuda"}


class TestSettings:
    def test_describe(self) -> None:
        backend = make(GQA, "q4g32", n_threads=3)
        facts = backend.describe()
        assert facts.device == "cpu" and facts.n_threads == 3 and facts.isa in instruction_sets.HERE
        assert facts.weight_bytes > 0 and facts.scratch_bytes > 0
        assert facts.gpu is None and facts.known()["kv_dtype"] == "float32" and "gpu" not in facts.known()

    def test_closed(self) -> None:
        backend = make(GQA, "float32")
        cache = backend.new_cache(1, 4)
        backend.close()
        for use in (
            lambda: backend.forward(Batch.of_sequence([1]), cache), lambda: backend.new_cache(1, 4), backend.describe,
            backend.profile,
        ):  # fmt: skip
            with pytest.raises(ClosedError, match="this Llama is closed"):
                use()

    @pytest.mark.parametrize("settings", [{"n_threads": 0}, {"n_threads": 10**6}, {"kv_dtype": "int3"}])
    def test_out_of_range(self, settings: dict[str, object]) -> None:
        model = quantized_model(GQA, random_weights(GQA), "float32")
        with pytest.raises(ValueError, match=next(iter(settings))):
            CpuBackend(model, **settings)  # type: ignore[arg-type]

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
        assert default_threads() == 3
        monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "5")
        assert default_threads() == 5
        monkeypatch.setenv("PYLLAMA2_NUM_THREADS", "many")
        with pytest.raises(ValueError, match="PYLLAMA2_NUM_THREADS"):
            default_threads()
        monkeypatch.setenv("PYLLAMA2_CPU_ISA", "sse9")
        with pytest.raises(ValueError, match="sse9"):
            make(GQA, "float32")
