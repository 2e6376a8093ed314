"""One model on several devices, on the pretended driver with two GPUs: the bits of either device alone."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.backend_contract import BackendContract
from helpers.gpu_backend import assert_same_logits, make_model, pretended, random_tokens, run_ragged
from helpers.tiny import BIASES, GQA, MHA, QWEN2, TIED, quantized_model, random_weights
from helpers.tiny_llama import PROMPTS, write_tiny
from numpy.typing import NDArray
from pretended_driver import Machine

from pyllama2 import Llama
from pyllama2._cpu import CpuBackend
from pyllama2._gpu import CudaBackend
from pyllama2._gpu.planner import CHUNKS, plan
from pyllama2._staged import StagedBackend
from pyllama2._staged import backend as staged_backend
from pyllama2._staged.placement import place
from pyllama2.backend import select_backend
from pyllama2.backend.base import Backend, Batch
from pyllama2.backend.kv_cache import KVCache
from pyllama2.backend.stages import Layers, part_of
from pyllama2.config import ModelConfig
from pyllama2.errors import BackendUnavailableError, ClosedError, DeviceMemoryError
from pyllama2.memory import rows_that_fit
from pyllama2.sampling.sampler import Draw
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import Quantization, StorageType

pytestmark = pytest.mark.subprocess
# GPUs, and how many layers of three they have
WAYS = [((0,), 1), ((1,), 2), ((0, 1), 3), ((1, 0), 2), ((0,), 3)]
# Whose layers are large beside the rest: 5 MiB for each.
WIDE = ModelConfig(
    dim=1024, hidden_dim=2048, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=128, vocab_size=100, max_seq_len=4096
)  # fmt: skip
SMALL = replace(GQA, n_layers=3)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with pretended().machine(n_devices=2) as machine:
        yield machine


def logits_of(backend: Backend, cache: KVCache, tokens: list[int]) -> list[NDArray[np.float32]]:
    """Those of a prompt of 20 tokens, and of the steps after it."""
    found = [backend.forward(Batch.of_sequence(tokens[:20], outputs="all"), cache)]
    return found + [backend.forward(Batch.of_sequence([t], start=20 + i), cache) for i, t in enumerate(tokens[20:])]


@pytest.mark.usefixtures("machine")
class TestContract(BackendContract):
    @staticmethod
    def make(config: ModelConfig, name: str, kv_dtype: str = "float32") -> StagedBackend:
        model = make_model(config, "q4" if name.startswith("q4") else "q8")
        of_caches = kv_dtype.replace("float32", "int8")  # it has no float32
        return StagedBackend(model, n_threads=1, kv_dtype=of_caches, gpus=(1,), n_gpu_layers=1)

    def test_bytes_of_a_cache(self) -> None:
        backend = self.make(MHA, "q8", kv_dtype="float16")
        cache = backend.new_cache(2, 32)
        assert cache.nbytes == backend.kv_cache_bytes(2, 32) == 2 * 2 * (2 * 32 * 4 * 16) * 3

    def test_bounds_of_a_cache(self) -> None:
        cache = self.make(GQA, "q8").new_cache(2, 10)
        for arguments in ((0, 2, 1), (-1, 0, 1), (0, 1, 11)):
            with pytest.raises(ValueError):
                cache.copy_prefix(*arguments)
        with pytest.raises(ValueError, match="do not fit"):
            cache.load_row(0, {"keys": np.zeros((2, 3, 4, 8), "f4"), "values": np.zeros((2, 3, 4, 8), "f4")})


class TestBits:
    @pytest.mark.parametrize("config", [GQA, MHA, TIED, QWEN2, BIASES], ids=["gqa", "mha", "tied", "qwen2", "biases"])
    def test_of_all_architectures(self, machine: Machine, config: ModelConfig) -> None:
        config = replace(config, n_layers=3)
        tokens, model = random_tokens(config, 26), make_model(config)
        cpu = CpuBackend(model, n_threads=1, kv_dtype="float16")
        expected = logits_of(cpu, cpu.new_cache(1, 30), tokens)
        for gpus, n in WAYS:
            staged = StagedBackend(model, n_threads=1, gpus=gpus, n_gpu_layers=n)
            found = logits_of(staged, staged.new_cache(1, 30), tokens)
            for one, other in zip(expected, found, strict=True):
                assert_same_logits(cpu, one, other)
            launches = staged.describe().launches
            assert launches == "one graph for each decoding step"
            staged.close()

    @pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
    def test_of_several_sequences(self, machine: Machine, kv_dtype: str) -> None:
        model = make_model(SMALL, "q8")
        sequences = [random_tokens(SMALL, 30, seed) for seed in range(3)]
        pieces = [[12, 3, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [4, 0, 9]]
        cpu = CpuBackend(model, n_threads=1, kv_dtype=kv_dtype)
        expected = run_ragged(cpu, cpu.new_cache(3, 40), sequences, pieces)
        for gpus, n in WAYS[:3]:
            staged = StagedBackend(model, n_threads=1, kv_dtype=kv_dtype, gpus=gpus, n_gpu_layers=n)
            for one, other in zip(
                expected, run_ragged(staged, staged.new_cache(3, 40), sequences, pieces), strict=True
            ):
                assert_same_logits(cpu, one, other)

    @pytest.mark.parametrize("type", ["float16", "float32"])
    def test_of_float_types(self, machine: Machine, type: str) -> None:
        self.assert_cpus_logits(make_model(MHA, type, 0))

    def test_of_mixed_types_and_chunks(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """The layers of a part have its own types. A prompt goes through in chunks."""
        monkeypatch.setattr(staged_backend, "CHUNK", 7)
        q4, q8 = StorageType("q4", 64), StorageType("q8", 64)
        layers = ((q4, q8, q8, q4), (q8, q4, q4, q8), (q4, q4, q8, q8))
        self.assert_cpus_logits(quantized_model(MHA, random_weights(MHA), "q4", 64, layers=layers))

    def assert_cpus_logits(self, model: StoredModel) -> None:
        tokens = random_tokens(model.config, 24)
        cpu = CpuBackend(model, n_threads=1, kv_dtype="float16")
        expected = logits_of(cpu, cpu.new_cache(1, 30), tokens)
        for gpus, n in WAYS[:3]:
            staged = StagedBackend(model, n_threads=1, gpus=gpus, n_gpu_layers=n)
            for one, other in zip(expected, logits_of(staged, staged.new_cache(1, 30), tokens), strict=True):
                assert_same_logits(cpu, one, other)

    def test_of_what_is_kept(self, machine: Machine) -> None:
        """Rows that are saved on one combination of devices are the same on another, and go on there."""
        model, tokens = make_model(SMALL), random_tokens(SMALL, 24)
        cpu = CpuBackend(model, n_threads=1, kv_dtype="float16")
        cache = cpu.new_cache(1, 30)
        cpu.forward(Batch.of_sequence(tokens), cache)
        saved = cache.save_row(0, 24)
        for gpus, n in WAYS:
            staged = StagedBackend(model, n_threads=1, gpus=gpus, n_gpu_layers=n)
            ours = staged.new_cache(2, 30)
            staged.forward(Batch.of_sequence(tokens[:20]), ours)
            ours.copy_prefix(0, 1, 20)
            staged.forward(Batch.of_sequence(tokens[20:], row=1, start=20), ours)
            found = ours.save_row(1, 24)
            assert all(np.array_equal(saved[name], found[name]) for name in saved)
            assert ours.nbytes == staged.kv_cache_bytes(2, 30)

    def test_a_stage_that_gives_wrong_numbers_is_found(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        run = CudaBackend.run
        monkeypatch.setattr(
            CudaBackend, "run", lambda *given: np.nextafter(run(*given), np.float32(9), dtype=np.float32)
        )
        with pytest.raises(AssertionError):
            self.test_of_all_architectures(machine, GQA)


class TestSampling:
    def test_the_last_gpu_samples(self, machine: Machine) -> None:
        """The CPU cannot; logits are sampled then."""
        model, tokens = make_model(SMALL), random_tokens(SMALL, 5)
        two = StagedBackend(model, n_threads=1, gpus=(0, 1))
        rest = StagedBackend(model, n_threads=1, gpus=(0,), n_gpu_layers=1)
        ours, theirs = two.new_cache(1, 30), rest.new_cache(1, 30)
        for position, token in enumerate(tokens):
            step = Batch.of_sequence([token], start=position)
            assert rest.sample(step, theirs, [Draw(0.0)]) is None
            expected = rest.forward(step, theirs).argmax(1)
            sampled = two.sample(step, ours, [Draw(0.0)])
            assert sampled is not None and np.array_equal(sampled, expected)
        assert two.sample(Batch.of_sequence(tokens * 2), ours, [Draw(0.0)]) is None
        assert "sample" in machine.launches

    @pytest.mark.parametrize("settings", [{"n_gpu_layers": 1}, {"device": "cuda:0,cuda:1"}, {"device": "cuda:1"}])
    def test_texts(self, machine: Machine, tmp_path: Path, settings: dict[str, Any]) -> None:
        """Greedy ones and others, several together, with the prefix cache, saved and loaded."""
        path = write_tiny(tmp_path / "tiny.bin", weight_type="q4")
        common: dict[str, Any] = {"n_threads": 1, "kv_dtype": "float16", "seed": 4}
        found = []
        for where in ({"device": "cpu"}, settings):
            with Llama(path, **where, **common) as llm:
                texts = [completion.token_ids for completion in llm.generate(PROMPTS, max_tokens=8, temperature=0)]
                texts += [llm.generate(PROMPTS[2], max_tokens=8, temperature=t).token_ids for t in (0, 0.8)]
                llm.save_state(tmp_path / "state")
                texts.append(llm.generate(PROMPTS[2] + " and", max_tokens=4).token_ids)
                facts = llm.describe()
            with Llama(path, **where, **common) as other:
                other.load_state(tmp_path / "state")
                texts.append(other.generate(PROMPTS[2], max_tokens=8, temperature=0).token_ids)
                clone = pickle.loads(pickle.dumps(other))
                assert clone.describe()["device"] == facts["device"]
                clone.close()
            found.append(texts)
        assert found[0] == found[1]
        gpus = {"n_gpu_layers": "cuda,cpu"}
        assert facts["device"] == settings.get("device", gpus["n_gpu_layers"])


class TestPlacement:
    @staticmethod
    def capacity(n_layers: int, *, outputs: bool = False) -> int:
        """The least memory of a GPU that has the first layers of WIDE."""
        layers = Layers(0, n_layers, n_layers if outputs else n_layers + 1)
        part = replace(WIDE, n_layers=n_layers)
        return plan(part, Quantization.of("q4", 32), 1, 2048, "float16", CHUNKS[-1], layers=layers).needed

    def test_as_many_as_fit(self, machine: Machine) -> None:
        model = make_model(WIDE)
        for n in (1, 3, 5):
            machine.settings.total_bytes = self.capacity(n)
            (first, rest) = place(model, (None,), None, "float16")
            assert (str(first), str(rest)) == (f"{Layers(0, n, 6)} on cuda", f"{Layers(n, 6, 6)} on cpu")
            chosen, why = select_backend("auto", model, "float16")
            assert why.startswith(f"using {first}, {rest} (no cuda: the model needs ")
            staged = chosen(model, n_threads=1)
            assert staged.describe().layers == f"{first}, {rest}" and staged.describe().device == "cuda,cpu"
            assert machine.used[0] <= machine.settings.total_bytes
            staged.close()
        machine.settings.total_bytes = self.capacity(1) - 1
        chosen, why = select_backend("auto", model)
        assert chosen is CpuBackend and "no cuda: the model needs" in why
        with pytest.raises(BackendUnavailableError, match="no cuda: the model needs"):
            select_backend("cuda", model)

    def test_keys_and_values_of_8_bits_come_before_the_cpu(self, machine: Machine) -> None:
        """If the whole model fits with them, it is on the GPU."""
        model = make_model(WIDE)
        machine.settings.total_bytes = self.capacity(6, outputs=True) - 1
        assert select_backend("auto", model) == (CudaBackend, "using cuda")
        assert "on cpu" in select_backend("auto", model, "float16")[1]

    def test_so_many_were_asked_for(self, machine: Machine) -> None:
        model = make_model(WIDE)
        machine.settings.total_bytes = self.capacity(3)
        for n in (4, -1, 99):
            with pytest.raises(DeviceMemoryError, match=r"GiB of GPU memory.* n_gpu_layers=3 would fit"):
                place(model, (0,), n, "float16")
        with pytest.raises(BackendUnavailableError, match="n_gpu_layers=3 would fit"):
            select_backend("cuda", model, None, 4)
        assert [str(where) for where in place(model, (0,), 2, "float16")] == [
            "layers 0 to 1 on cuda:0", "layers 2 to 5 on cpu"
        ]  # fmt: skip
        machine.settings.total_bytes = 1 << 30
        for n in (6, 7, -1):
            assert [str(where) for where in place(model, (0,), n, "float16")] == ["layers 0 to 5 on cuda:0"]
        make, why = select_backend("cuda:1", model, None, -1)
        assert why == "using cuda:1" and isinstance(make(model), CudaBackend)

    def test_two_gpus_share_by_what_fits(self, machine: Machine) -> None:
        model = make_model(WIDE)
        assert [len(where.layers) for where in place(model, (0, 1), None, "float16")] == [3, 3]
        machine.used[0] = machine.settings.total_bytes - self.capacity(2)
        assert [str(where) for where in place(model, (0, 1), None, "float16")] == [
            "layer 0 on cuda:0", "layers 1 to 5 on cuda:1"
        ]  # fmt: skip
        machine.settings.total_bytes = self.capacity(3)
        machine.used[0] = machine.settings.total_bytes - self.capacity(2)
        assert [str(where) for where in place(model, (1, 0), None, "float16")] == [
            "layers 0 to 2 on cuda:1", "layers 3 to 4 on cuda:0", "layer 5 on cpu"
        ]  # fmt: skip
        machine.used[0] = 0
        assert not any(machine.used.values())

    def test_several_gpus_that_are_too_small(self, machine: Machine) -> None:
        """What they have together counts, and what one needs for one layer."""
        model = make_model(WIDE)
        machine.settings.total_bytes = self.capacity(2)
        said = r"cuda:0,cuda:1: 6 layers do not fit on 2 GPUs; n_gpu_layers=4 would fit$"
        with pytest.raises(BackendUnavailableError, match=said):
            select_backend("cuda:0,cuda:1", model, "float16", -1)
        machine.settings.total_bytes = self.capacity(1) - 1
        with pytest.raises(DeviceMemoryError, match=r"^layer 0 of the model needs .*; not one layer fits$"):
            place(model, (0, 1), None, "float16")

    def test_devices_that_are_not_there(self, machine: Machine) -> None:
        for device, wrong in (("cuda:2", 2), ("cuda:0,cuda:7", 7)):
            with pytest.raises(
                BackendUnavailableError, match=f"there is no GPU cuda:{wrong}; there are cuda:0 to cuda:1"
            ):
                select_backend(device, make_model(SMALL))
        with pytest.raises(BackendUnavailableError, match="there is no GPU cuda:5"):
            StagedBackend(make_model(SMALL), gpus=(5,), n_gpu_layers=1)

    def test_types_that_a_gpu_does_not_have(self, machine: Machine) -> None:
        model = make_model(SMALL)
        assert "using cpu (no cuda: the CUDA backend has" in select_backend("auto", model, "float32", 1)[1]
        with pytest.raises(BackendUnavailableError, match="the CUDA backend has"):
            StagedBackend(model, kv_dtype="float32", n_gpu_layers=1)

    def test_floats_are_types_that_it_has(self, machine: Machine) -> None:
        model = make_model(SMALL, "float32", 0)
        assert select_backend("auto", model, None, 1)[1].startswith("using layer 0 on cuda, layers 1 to")

    def test_parts_have_all_weights_once(self) -> None:
        """But a table that both ends need."""
        for config in (SMALL, replace(TIED, n_layers=3)):
            model = make_model(config)
            parts = [part_of(model, Layers(first, stop, 3)) for first, stop in pairwise((0, 1, 3))]
            shared = model.weights["tok_embeddings.weight"].nbytes if config.tied_embeddings else 0
            assert sum(part.nbytes for part in parts) == model.nbytes + shared


class TestMemory:
    def test_what_is_planned_is_taken(self, machine: Machine) -> None:
        model = make_model(replace(WIDE, n_layers=4))
        staged = StagedBackend(model, n_threads=1, gpus=(0, 1), n_gpu_layers=3)
        cache = staged.new_cache(1, 2048)
        for i, stage in enumerate(staged.parts()[:2]):
            assert isinstance(stage, CudaBackend)
            planned = plan(stage.config, stage.quantization, 1, 2048, "float16", layers=stage.layers)
            assert planned.needed >= machine.used[i] >= planned.allocated
            assert (
                stage.describe().weight_bytes + stage.describe().scratch_bytes + cache.caches[i].nbytes
                == planned.allocated
            )
        staged.close()

    def test_rows_fit_on_each_device(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        staged = StagedBackend(make_model(WIDE), n_threads=1, gpus=(0, 1), n_gpu_layers=5)
        cuda, other, _ = staged.parts()
        rows = [rows_that_fit(part, 1000, 2048) for part in (cuda, other)]
        assert rows_that_fit(staged, 1000, 2048) == min(*rows, 1000)
        monkeypatch.setattr(other, "free_bytes", lambda: 3 * other.kv_cache_bytes(1, 2048))
        assert rows_that_fit(staged, 1000, 2048) == 3

    def test_all_is_given_back(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also if a later device fails."""
        staged = StagedBackend(make_model(SMALL), n_threads=1, gpus=(0, 1))
        cache = staged.new_cache(1, 30)
        staged.forward(Batch.of_sequence([1]), cache)
        cache.close()
        staged.close()
        staged.close()
        for use in (
            lambda: staged.new_cache(1, 3),
            lambda: staged.forward(Batch.of_sequence([1]), cache),
            staged.describe,
        ):
            with pytest.raises(ClosedError):
                use()
        monkeypatch.setattr(staged_backend, "CpuBackend", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            StagedBackend(make_model(SMALL), n_threads=1, n_gpu_layers=1)
        pretended().give_back()
        assert not any(machine.used.values())

    def test_a_signal_amid_a_step(self, machine: Machine) -> None:
        """Its handler may close the backend, and the step comes to its end."""
        staged = StagedBackend(make_model(SMALL), n_threads=1, gpus=(0,), n_gpu_layers=2)
        cache, refused = staged.new_cache(1, 64), []
        batch = Batch.of_sequence(random_tokens(SMALL, 60))
        expected = staged.forward(batch, cache)

        def handler(*_: Any) -> None:
            with pytest.raises(ValueError, match="a signal's handler"):
                staged.forward(batch, cache)
            refused.append(True)
            staged.close()

        before = signal.signal(signal.SIGALRM, handler)
        run = staged._stages[0].run
        try:
            staged._stages[0].run = lambda *given: (run(*given), signal.raise_signal(signal.SIGALRM))[0]  # type: ignore
            assert np.array_equal(staged.forward(batch, cache), expected)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert refused
        with pytest.raises(ClosedError):
            staged.describe()

    def test_times_of_each_device(self, machine: Machine) -> None:
        staged = StagedBackend(make_model(SMALL), n_threads=1, gpus=(0,), n_gpu_layers=2)
        logits_of(staged, staged.new_cache(1, 30), random_tokens(SMALL, 25))
        profile = staged.profile()
        assert [step.name for step in profile.steps] == ["cuda:0, layers 0 to 1", "cpu, layer 2"]
        assert all(step.decode_s > 0 and step.prompt_s > 0 for step in profile.steps)
        assert (profile.decode_passes, profile.decode_tokens, profile.prompt_tokens) == (5, 5, 20)
        lines = str(profile).splitlines()
        assert len({len(line) for line in lines[1:-1]}) == 1
