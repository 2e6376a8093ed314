"""The CUDA backend beside the CPU backend: the same logits and texts, for all shapes, batches and caches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.backend_contract import BackendContract
from helpers.gpu_backend import (
    assert_same_logits,
    checking_cupy,
    make_model,
    pair,
    ragged_step,
    random_tokens,
    real_cupy,
    run_ragged,
)
from helpers.tiny import CONFIGS, GQA, MHA, quantized_model, random_weights
from helpers.tiny_llama import PROMPTS, write_tiny

from pyllama2 import Llama
from pyllama2._gpu import CudaBackend, planner
from pyllama2.backend.base import Backend, Batch
from pyllama2.config import ModelConfig
from pyllama2.errors import ClosedError, NumericalError
from pyllama2.loading import load_model
from pyllama2.sampling.params import SamplingParams
from pyllama2.sampling.sampler import Draw, Sampler
from pyllama2.storage.model_file import StoredModel
from pyllama2.storage.weights import ROW_BLOCK, Weight

pytestmark = pytest.mark.subprocess

# Widths that are no multiples of groups and tiles: 172, 200, 300
HEADS = {
    "64": ModelConfig(dim=172, hidden_dim=200, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=64, vocab_size=101,
                      max_seq_len=64),
    "80": ModelConfig(dim=160, hidden_dim=300, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=80, vocab_size=90,
                      max_seq_len=64),
    "128": ModelConfig(dim=256, hidden_dim=172, n_layers=1, n_heads=4, n_kv_heads=1, head_dim=128, vocab_size=99,
                       max_seq_len=64, tied_embeddings=True),
}  # fmt: skip
LONG = ModelConfig(
    dim=48, hidden_dim=100, n_layers=1, n_heads=6, n_kv_heads=3, head_dim=8, vocab_size=70, max_seq_len=700
)  # fmt: skip
# Lengths of the pieces of five sequences: prompts together, single tokens, several tokens of one row, rows that wait.
# Steps have 5 tokens each, since the kernels for each number of them are compiled.
PIECES = [[12, 3, 1, 7, 9], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 2, 0, 1, 1], [0, 0, 5, 0, 0], [1, 1, 1, 1, 1]]
FORMATS = {"float32": ("float32", 0), "q8g64": ("q8", 64), "q4g32": ("q4", 32), "q4g64": ("q4", 64)}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[Any]:
    """cupy, on a GPU or on a pretended driver."""
    with real_cupy() as cupy:
        yield cupy


class TestContract(BackendContract):
    """Instead of float32 keys it has int8."""

    @staticmethod
    def make(config: ModelConfig, name: str, kv_dtype: str = "float32") -> Backend:
        model = quantized_model(config, random_weights(config), *FORMATS[name])
        return CudaBackend(model, kv_dtype=kv_dtype.replace("float32", "int8"))


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
@pytest.mark.parametrize("config", [*CONFIGS.values(), *HEADS.values()], ids=[*CONFIGS, *HEADS])
def test_five_ragged_sequences_have_the_logits_of_the_cpu(config: ModelConfig, kv_dtype: str) -> None:
    cpu, gpu = pair(make_model(config), kv_dtype)
    sequences = [random_tokens(config, sum(lengths), row) for row, lengths in enumerate(zip(*PIECES, strict=True))]
    found = run_ragged(gpu, gpu.new_cache(5, 40), sequences, PIECES)
    expected = run_ragged(cpu, cpu.new_cache(5, 40), sequences, PIECES)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_logits(cpu, theirs, ours)


@pytest.mark.parametrize(("type", "group_size"), [("q8", 32), ("q8", 64), ("q4", 64), ("q4", 128)])
def test_formats_of_weights(type: str, group_size: int) -> None:
    model = make_model(MHA, type, group_size)
    cpu, gpu = pair(model, "float16")
    tokens = random_tokens(MHA, 14)
    found = run_ragged(gpu, gpu.new_cache(1, 14), [tokens], [[9], [5]])
    assert_same_logits(cpu, run_ragged(cpu, cpu.new_cache(1, 14), [tokens], [[9], [5]])[0], found[0])


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_the_result_of_a_token_depends_on_its_sequence_alone(kv_dtype: str) -> None:
    config = HEADS["64"]
    _, gpu = pair(make_model(config), kv_dtype)
    sequences = [random_tokens(config, sum(lengths), row) for row, lengths in enumerate(zip(*PIECES, strict=True))]
    together = run_ragged(gpu, gpu.new_cache(5, 40), sequences, PIECES)
    for tokens, expected in zip(sequences, together, strict=True):
        n = len(tokens)
        for pieces in ([[n]], [[1]] * n, [[n - 5], [5]]):
            found = run_ragged(gpu, gpu.new_cache(1, n), [tokens], pieces)
            assert np.array_equal(found[0], expected)


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_chunks_of_a_long_prompt_and_steps_behind_it(kv_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts beyond a chunk, and steps whose grids have 1, 2 and 3 spans of 256 positions."""
    monkeypatch.setattr(planner, "CHUNKS", (256,))
    cpu, gpu = pair(make_model(LONG), kv_dtype)
    tokens = random_tokens(LONG, 600)
    outputs = np.array([0, 255, 256, 540, 541, 99, 541], np.int32)
    for length in (254, 510, 542):
        ours, theirs = gpu.new_cache(2, 700), cpu.new_cache(2, 700)
        prompt = Batch(*(np.asarray(a, np.int32) for a in (tokens[:length], [1] * length, range(length))),
                       outputs[outputs < length])  # fmt: skip
        assert length > 256 or len(prompt.outputs) == 2
        assert_same_logits(cpu, cpu.forward(prompt, theirs), gpu.forward(prompt, ours))
        for at in range(length, length + 4):
            step = Batch.of_sequence(tokens[at : at + 1], 1, at)
            assert_same_logits(cpu, cpu.forward(step, theirs), gpu.forward(step, ours))


def test_chunks_end_in_a_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk of a prompt is a step of decoding when it is that short."""
    monkeypatch.setattr(planner, "CHUNKS", (20,))
    cpu, gpu = pair(make_model(LONG), "float16")
    batch = Batch.of_sequence(random_tokens(LONG, 43), outputs="last")
    assert_same_logits(cpu, cpu.forward(batch, cpu.new_cache(1, 50)), gpu.forward(batch, gpu.new_cache(1, 50)))


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_texts_are_those_of_the_cpu(tmp_path: Path, kv_dtype: str) -> None:
    """Through Llama: several texts together and one alone, a sampled one, prefixes that are used again."""
    path = write_tiny(tmp_path / "tiny.bin", weight_type="q4")
    texts = {}
    for device in ("cpu", "cuda"):
        with Llama(path, device=device, kv_dtype=kv_dtype, n_threads=1) as llm:
            greedy = llm.generate([*PROMPTS, "He said that"], temperature=0, max_tokens=12)
            alone = llm.generate(PROMPTS[2], temperature=0, max_tokens=12)
            sampled = llm.generate(PROMPTS[0], temperature=1, seed=3, max_tokens=12)
            assert alone.token_ids == greedy[2].token_ids
            texts[device] = [c.token_ids for c in (*greedy, alone, sampled)]
    assert texts["cuda"] == texts["cpu"]


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_20_tokens_of_a_cut_of_smollm2(smollm2_path: Path, kv_dtype: str) -> None:
    """The emulator takes a minute and a half for all of it: 4 of 30 layers and 8192 of 49152 tokens here."""
    assert_greedy_tokens_are_the_cpus(cut(converted(smollm2_path), 4, 8192), kv_dtype)


@pytest.mark.skipif(not os.environ.get("PYLLAMA2_SLOW_TESTS"), reason="takes minutes; PYLLAMA2_SLOW_TESTS=1 runs it")
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_20_tokens_of_smollm2(smollm2_path: Path, kv_dtype: str) -> None:
    assert_greedy_tokens_are_the_cpus(converted(smollm2_path), kv_dtype)


def converted(path: Path) -> StoredModel:
    return load_model(str(path), quant="q4", tokenizer=None, n_ctx=None, kv_dtype=None, progress=None)


def cut(model: StoredModel, n_layers: int, vocab_size: int) -> StoredModel:
    """The first layers and tokens of a model with tied embeddings."""
    config = replace(model.config, n_layers=n_layers, vocab_size=vocab_size)
    found, blocks = StoredModel(config, model.quantization), vocab_size // ROW_BLOCK
    for name, shape in config.tensor_shapes().items():
        whole = model.weights[name]
        found.weights[name] = whole
        if name == "tok_embeddings.weight":
            assert whole.scales is not None
            codes, scales = whole.data[:blocks], whole.scales[:blocks]
            found.weights[name] = Weight(name, whole.type, shape, codes, scales, whole.group_size)
    return found


def assert_greedy_tokens_are_the_cpus(model: StoredModel, kv_dtype: str) -> None:
    """Five prompts of several lengths, taken together; the first alone, too."""
    prompts = [random_tokens(model.config, n, n) for n in (5, 1, 9, 2, 3)]
    greedy = [[greedy_tokens(backend, prompts, 3), greedy_tokens(backend, prompts[:1], 20)]
              for backend in pair(model, kv_dtype)]  # fmt: skip
    assert greedy[0] == greedy[1]
    assert greedy[1][0][0] == greedy[1][1][0][:3]


def greedy_tokens(backend: Backend, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """n_new tokens after each prompt."""
    cache, done = backend.new_cache(len(prompts), 40), [0] * len(prompts)
    texts, step = [list(prompt) for prompt in prompts], prompts
    for _ in range(n_new):
        batch = ragged_step(step, done)
        ends = np.cumsum([len(piece) for piece in step]) - 1
        logits = backend.forward(batch, cache)[ends]
        done = [len(text) for text in texts]
        step = [[int(token)] for token in logits.argmax(-1)]
        texts = [text + piece for text, piece in zip(texts, step, strict=True)]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def test_a_cache_that_grows_keeps_what_was_there() -> None:
    cpu, gpu = pair(make_model(GQA), "float16")
    tokens = random_tokens(GQA, 30)
    small = gpu.new_cache(1, 12)
    gpu.forward(Batch.of_sequence(tokens[:11]), small)
    step = Batch.of_sequence(tokens[11:12], 0, 11)
    for _ in range(3):  # a graph of the smaller workspace
        gpu.forward(step, small)
    large = gpu.new_cache(2, 64)
    large.copy_prefix(0, 1, 12, source=small)
    assert gpu.forward(step, small).shape == (1, GQA.vocab_size)  # the old one goes on working
    found = gpu.forward(Batch.of_sequence(tokens[12:13], 1, 12), large)
    expected = cpu.forward(Batch.of_sequence(tokens[:13]), cpu.new_cache(1, 13))
    assert_same_logits(cpu, expected, found)


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_tokens_chosen_on_the_device_are_those_of_the_sampler(kv_dtype: str) -> None:
    """Five rows with settings of their own, of which one wants nothing; the cache goes on with either way."""
    cpu, gpu = pair(make_model(GQA), kv_dtype)
    ours, theirs = gpu.new_cache(5, 40), cpu.new_cache(5, 40)
    params = [SamplingParams(temperature=0), SamplingParams(temperature=1.5, top_p=1.0),
              SamplingParams(temperature=0.8, top_p=0.8),
              SamplingParams(temperature=2.0, top_k=5, min_p=0.1)]  # fmt: skip
    host, device = ([Sampler(p, 11) for p in params] for _ in range(2))
    tokens = [1, 2, 3, 4, 5]
    for position in range(12):
        arrays = (np.array(a, np.int32) for a in (tokens, range(5), [position] * 5, [4, 0, 3, 1]))
        batch = Batch(*arrays)
        logits = cpu.forward(batch, theirs)
        expected = [s.sample(row, tokens[:1], 1) for s, row in zip(host, logits, strict=True)]
        draws = [draw for sampler in device for draw in sampler.draws(1) or []]
        chosen = gpu.sample(batch, ours, draws)
        assert chosen is not None
        assert [s.accept(int(token), 1) for s, token in zip(device, chosen, strict=True)] == expected
        for output, token in zip((4, 0, 3, 1), expected, strict=True):
            tokens[output] = token
        if position == 6:  # the same step again, as logits
            assert_same_logits(cpu, logits, gpu.forward(batch, ours))


def test_what_the_device_leaves_to_the_host() -> None:
    _, gpu = pair(make_model(GQA), "float16")
    cache, greedy = gpu.new_cache(1, 20), Draw(0.0)
    many = Batch.of_sequence(list(range(9)))
    twice = replace(Batch.of_sequence([1, 2]), outputs=np.array([1, 1], np.int32))
    for batch, draws in ((many, [greedy]), (twice, [greedy] * 2), (Batch.of_sequence([1], outputs="none"), [])):
        assert gpu.sample(batch, cache, draws) is None
    with pytest.raises(ValueError):
        gpu.sample(Batch.of_sequence([1, 2], outputs="all"), cache, [greedy])
    with pytest.raises(ValueError, match="tokens must lie in"):
        gpu.sample(Batch.of_sequence([GQA.vocab_size]), cache, [greedy])


@pytest.mark.slow
def test_texts_that_need_logits_get_them(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.bin", weight_type="q4")
    found = {}
    for device in ("cpu", "cuda"):
        with Llama(path, device=device, kv_dtype="float16", n_threads=1) as llm:
            settings: list[dict[str, Any]] = [{"logprobs": 2}, {"repetition_penalty": 1.3}, {"logit_bias": {5: 3.0}},
                                              {"top_k": 9, "min_p": 0.05}, {"temperature": 0}]  # fmt: skip
            found[device] = [llm.generate(PROMPTS[0], max_tokens=8, seed=1, **more).token_ids for more in settings]
    assert found["cuda"] == found["cpu"]


def test_nan_stays_visible() -> None:
    for type in ("q4", "q8"):
        model = make_model(GQA, type)
        model.weights["layers.1.ffn_norm.weight"].data[3] = np.nan
        backend = CudaBackend(model)
        cache = backend.new_cache(1, 4)
        assert not np.isfinite(backend.forward(Batch.of_sequence([1, 2], outputs="all"), cache)).any()
        chosen = backend.sample(Batch.of_sequence([1, 2]), cache, [Draw(0.0)])
        assert chosen is not None and chosen.tolist() == [-1]
        with pytest.raises(NumericalError, match="at position 4"):
            Sampler(SamplingParams(temperature=0), 0).accept(-1, 5)


def test_ctrl_c_during_a_long_prompt() -> None:
    _, gpu = pair(make_model(LONG), "float16")
    cache = gpu.new_cache(40, 700)
    many = ragged_step([[1] * 700 for _ in range(40)], [0] * 40)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):
                gpu.forward(many, cache)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    tokens = random_tokens(LONG, 20)
    expected = gpu.forward(Batch.of_sequence(tokens, outputs="all"), gpu.new_cache(1, 20))
    assert np.array_equal(gpu.forward(Batch.of_sequence(tokens, outputs="all"), cache), expected)


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_every_access_is_in_order(kv_dtype: str) -> None:
    """The whole backend with the checking emulator: bounds, races, barriers, unwritten memory, order of streams."""
    for order in ("backward", 7):
        with checking_cupy(order=order):
            cpu, gpu = pair(make_model(GQA), kv_dtype)
            sequences = [random_tokens(GQA, sum(lengths), row) for row, lengths in enumerate(zip(*PIECES, strict=True))]
            found = run_ragged(gpu, gpu.new_cache(5, 40), sequences, PIECES)
            expected = run_ragged(cpu, cpu.new_cache(5, 40), sequences, PIECES)
            for ours, theirs in zip(found, expected, strict=True):
                assert_same_logits(cpu, theirs, ours)


def test_closing() -> None:
    backend = CudaBackend(make_model(GQA))
    cache = backend.new_cache(1, 4)
    assert backend.describe().weight_bytes > 0
    backend.close()
    backend.close()
    for call in (lambda: backend.forward(Batch.of_sequence([1]), cache), backend.describe,
                 lambda: backend.new_cache(1, 4)):  # fmt: skip
        with pytest.raises(ClosedError, match="this Llama is closed"):
            call()


def test_a_signals_handler_amid_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It interrupts its own thread: close() takes effect after the step, and another step is refused."""

    def run(*arguments: Any) -> None:
        with pytest.raises(ValueError, match="a signal's handler cannot wait for the step"):
            backend.forward(batch, cache)
        assert backend.describe().weight_bytes > 0
        backend.close()
        own_run(*arguments)

    backend, batch = CudaBackend(make_model(GQA)), Batch.of_sequence([1, 2])
    cache, own_run = backend.new_cache(1, 4), backend._graphs.run
    expected = backend.forward(batch, cache)
    monkeypatch.setattr(backend._graphs, "run", run)
    assert np.array_equal(backend.forward(batch, cache), expected)
    assert backend._model is backend._work is None
    with pytest.raises(ClosedError, match="closed"):
        backend.describe()
