"""LoRA adapters of PEFT and in GGUF files, merged as the formula in PyTorch says."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.foreign import huggingface_tensors, write_huggingface
from helpers.gguf_files import gguf_name, in_order, write_gguf, write_model
from helpers.tiny import GQA, QWEN2, TIED, random_weights
from helpers.tiny_llama import CONFIG, write_tiny
from numpy.typing import NDArray
from safetensors.torch import save_file

import pyllama2
from pyllama2 import Llama
from pyllama2.adapters import with_adapters
from pyllama2.checkpoint import open_checkpoint
from pyllama2.checkpoint.huggingface import NAMES
from pyllama2.cli.program import main
from pyllama2.errors import CheckpointError
from pyllama2.loading import load_model
from pyllama2.storage.model_file import StoredModel

WEIGHTS = random_weights(GQA)
TARGETS = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2")
RANK = 4

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def pairs_of(targets: tuple[str, ...] = TARGETS, config: Any = GQA, seed: int = 5) -> Pairs:
    """A and B by our names, B's rows in the order of Hugging Face."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, shape in config.tensor_shapes().items():
        if name.removesuffix(".weight").endswith(targets):
            a = torch.randn(RANK, shape[1], generator=generator)
            pairs[name] = a, torch.randn(shape[0], RANK, generator=generator)
    return pairs


def write_peft(folder: Path, pairs: Pairs, extra: dict[str, torch.Tensor] | None = None, **settings: Any) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(values | settings).replace("Infinity", "1e999"))
    tensors = dict(extra or {})
    for name, (a, b) in pairs.items():
        stem = f"base_model.model.{NAMES.of(name).removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": a.contiguous(), f"{stem}.lora_B.weight": b.contiguous()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def expected(pairs: Pairs, factor: float, config: Any = GQA, weights: Any = WEIGHTS) -> dict[str, torch.Tensor]:
    """Hugging Face's tensors with the change added, as PEFT's merge_and_unload() computes it."""
    tensors = huggingface_tensors(config, weights)
    for name, (a, b) in pairs.items():
        tensors[NAMES.of(name)] = tensors[NAMES.of(name)] + factor * (b @ a)
    return tensors


def as_huggingface(checkpoint: Any) -> dict[str, torch.Tensor]:
    read = {name: tensor.read().astype(np.float32) for name, _, tensor in checkpoint.tensors()}
    return huggingface_tensors(checkpoint.config, read)


def assert_same(checkpoint: Any, wanted: dict[str, torch.Tensor]) -> None:
    found = as_huggingface(checkpoint)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-5, msg=name)


class TestPeft:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["huggingface", "ours"])
    @pytest.mark.parametrize(
        ("settings", "factor"),
        [({}, 6 / RANK), ({"use_rslora": True}, 6 / math.sqrt(RANK)), ({"lora_alpha": 1.5}, 1.5 / RANK)],
    )
    def test_merged_as_in_torch(self, tmp_path: Path, kind: str, settings: dict[str, Any], factor: float) -> None:
        model = write_huggingface(tmp_path / "m", GQA, WEIGHTS)
        if kind == "ours":
            pyllama2.export(model, tmp_path / "m.bin")
            model = tmp_path / "m.bin"
        pairs = pairs_of()
        adapter = write_peft(tmp_path / "a", pairs, **settings)
        with closing(open_checkpoint(model)) as checkpoint:
            assert_same(with_adapters(checkpoint, str(adapter)), expected(pairs, factor))

    @pytest.mark.slow
    def test_scale_and_several(self, tmp_path: Path) -> None:
        model = write_huggingface(tmp_path / "m", GQA, WEIGHTS)
        first, second = pairs_of(), pairs_of(("attention.wq", "feed_forward.w3", "output"), seed=8)
        lora = [f"{write_peft(tmp_path / 'a', first)}:0.5", f"{write_peft(tmp_path / 'b', second)}:-2"]
        wanted = expected(first, 0.5 * 6 / RANK)
        for name, (a, b) in second.items():
            wanted[NAMES.of(name)] = wanted[NAMES.of(name)] - 2 * 6 / RANK * (b @ a)
        with closing(open_checkpoint(model)) as checkpoint:
            merged = with_adapters(checkpoint, lora)
            assert_same(merged, wanted)
            assert merged.source.endswith("with the adapter a (scale 0.5), the adapter b (scale -2)")
            assert len(merged.files) == len(checkpoint.files) + 4

    def test_an_embedding(self, tmp_path: Path) -> None:
        a, b = torch.randn(RANK, GQA.vocab_size), torch.randn(GQA.dim, RANK)
        stem = "base_model.model.model.embed_tokens"
        extra = {f"{stem}.lora_embedding_A": a, f"{stem}.lora_embedding_B": b}
        wanted = huggingface_tensors(GQA, WEIGHTS)
        wanted["model.embed_tokens.weight"] += 6 / RANK * (b @ a).T
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            assert_same(with_adapters(checkpoint, str(write_peft(tmp_path / "a", {}, extra))), wanted)

    def test_a_matrix_that_is_saved_with_the_adapter(self, tmp_path: Path) -> None:
        """PEFT does so for the embedding and the output matrix, which may have been changed before."""
        embedding = torch.randn(GQA.vocab_size, GQA.dim)
        output, a, b = (
            torch.randn(GQA.vocab_size, GQA.dim),
            torch.randn(RANK, GQA.dim),
            torch.randn(GQA.vocab_size, RANK),
        )
        extra = {"base_model.model.model.embed_tokens.weight": embedding}
        extra["base_model.model.lm_head.base_layer.weight"] = output
        extra |= {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
        wanted = huggingface_tensors(GQA, WEIGHTS) | {"model.embed_tokens.weight": embedding}
        wanted["lm_head.weight"] = output + 6 / RANK * (b @ a)
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            assert_same(with_adapters(checkpoint, str(write_peft(tmp_path / "a", {}, extra))), wanted)
        extra["base_model.model.lm_head.base_layer.weight"] = output[:-1].clone()
        refuse(tmp_path, write_peft(tmp_path / "a", {}, extra), "is the adapter for another one?")

    def test_an_alpha_of_some_modules(self, tmp_path: Path) -> None:
        """The first key with which the name of a module ends, or that it is; as peft does."""
        pattern = {"k_proj": 0, "^layers.0.self_attn.q_proj": 99, "1.self_attn.q_proj": 3, "q_proj": 12, "proj": 99}
        alphas = {"layers.0.attention.wq.weight": 12, "layers.1.attention.wq.weight": 3}
        pairs = pairs_of(("attention.wq", "attention.wk", "attention.wv"))
        adapter = write_peft(tmp_path / "a", pairs, alpha_pattern=pattern)
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            changes = with_adapters(checkpoint, str(adapter))._adapters[0].changes
        for name, change in changes.items():
            alpha = alphas.get(name, 0 if "wk" in name else 6)
            assert change.factor == alpha / RANK, name

    def test_names_with_the_adapters_name(self, tmp_path: Path) -> None:
        """PEFT's state_dict of a live model says default; its bfloat16 is read as well."""
        pairs = pairs_of(("attention.wv",))
        extra = {}
        for name, (a, b) in pairs.items():
            stem = f"base_model.model.{NAMES.of(name).removesuffix('.weight')}"
            extra |= {f"{stem}.lora_A.default.weight": a.bfloat16(), f"{stem}.lora_B.default.weight": b.bfloat16()}
        rounded = {name: (a.bfloat16().float(), b.bfloat16().float()) for name, (a, b) in pairs.items()}
        adapter = write_peft(tmp_path / "a", {}, extra)
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            path = str(adapter / "adapter_model.safetensors")
            assert_same(with_adapters(checkpoint, path), expected(rounded, 6 / RANK))


class TestGguf:
    def write(self, path: Path, pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]], **changes: Any) -> Path:
        keys: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}
        tensors = {}
        for name, (a, b) in pairs.items():
            tensors |= {f"{gguf_name(name)}.lora_a": a, f"{gguf_name(name)}.lora_b": b}
        keys |= {name.replace("__", "."): value for name, value in changes.items() if name != "architecture"}
        return write_gguf(path, tensors, keys, architecture=changes.get("architecture", "llama"))

    @pytest.mark.parametrize(("alpha", "factor"), [(6.0, 6 / RANK), (0.0, 1.0)])
    def test_merged_as_in_torch(self, tmp_path: Path, alpha: float, factor: float) -> None:
        """Rows are in the order of model.py here."""
        pairs = pairs_of()
        stored = {name: (a.numpy(), b.numpy()) for name, (a, b) in pairs.items()}
        embedding = torch.randn(GQA.vocab_size, RANK), torch.randn(GQA.dim, RANK)
        stored["tok_embeddings.weight"] = embedding[0].numpy(), embedding[1].numpy()
        adapter = self.write(tmp_path / "a.gguf", stored, adapter__lora__alpha=alpha)
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            merged = with_adapters(checkpoint, f"{adapter}:1.5")
            for name, _, tensor in merged.tensors():
                wanted = torch.from_numpy(WEIGHTS[name])
                if name in pairs:
                    wanted = wanted + 1.5 * factor * (pairs[name][1] @ pairs[name][0])
                elif name == "tok_embeddings.weight":
                    wanted = wanted + 1.5 * (alpha / RANK if alpha else 1) * (embedding[0] @ embedding[1].T)
                torch.testing.assert_close(
                    torch.from_numpy(tensor.read().copy()), wanted, rtol=1e-6, atol=1e-5, msg=name
                )

    def test_of_qwen2(self, tmp_path: Path) -> None:
        """An adapter for wq and wk of a GGUF file of Qwen2 has their order, too; biases stay."""
        weights = random_weights(QWEN2)
        names = [f"layers.1.attention.{name}.weight" for name in ("wq", "wk", "wv")]
        rng = np.random.default_rng(0)
        pairs = {
            name: (rng.standard_normal((RANK, QWEN2.dim), np.float32), rng.standard_normal((rows, RANK), np.float32))
            for name, rows in zip(names, (QWEN2.q_dim, QWEN2.kv_dim, QWEN2.kv_dim), strict=True)
        }
        stored = {name: (a, in_order(name, b, QWEN2)) for name, (a, b) in pairs.items()}
        adapter = self.write(tmp_path / "a.gguf", stored, architecture="qwen2")
        with closing(open_checkpoint(write_model(tmp_path / "m.gguf", QWEN2, weights))) as checkpoint:
            for name, _, tensor in with_adapters(checkpoint, str(adapter)).tensors():
                wanted = weights[name] + (6 / RANK * pairs[name][1] @ pairs[name][0] if name in pairs else 0)
                np.testing.assert_allclose(tensor.read(), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"general__type": "model"}, "is a model, not an adapter"),
            ({"adapter__type": "other"}, "is an adapter of type 'other'"),
            ({"architecture": "qwen3"}, "for 'qwen3'"),
        ],
    )
    def test_refused(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        adapter = self.write(tmp_path / "a.gguf", {}, **changes)
        refuse(tmp_path, adapter, message)

    def test_refused_tensors(self, tmp_path: Path) -> None:
        keys = {"general.type": "adapter", "adapter.type": "lora"}
        matrix = np.ones((RANK, GQA.dim), np.float32)
        for tensors, message in (
            ({"blk.0.attn_q.weight": matrix}, "is not of LoRA"),
            ({"blk.9.attn_q.weight.lora_a": matrix}, "changes 'blk.9.attn_q.weight', which the model does not have"),
            ({"blk.0.attn_q.weight.lora_a": matrix}, "of the two matrices for .* one is missing"),
        ):
            refuse(tmp_path, write_gguf(tmp_path / "a.gguf", tensors, keys), message)


def refuse(tmp_path: Path, adapter: Path | str, message: str, config: Any = GQA) -> None:
    model = write_huggingface(tmp_path / "model", config, random_weights(config))
    with closing(open_checkpoint(model)) as checkpoint, pytest.raises(CheckpointError, match=message):
        with_adapters(checkpoint, str(adapter))


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"peft_type": "IA3"}, "an adapter of type 'IA3' is not supported"),
            ({"use_dora": True}, "use_dora is not supported; merge this adapter with peft first"),
            ({"bias": "all"}, "an adapter with biases"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
            ({"alpha_pattern": {".*_proj": 3}}, "alpha_pattern must have names of modules; merge this adapter with"),
            ({"alpha_pattern": ["q_proj"]}, "alpha_pattern must have names of modules"),
            ({"alpha_pattern": {"q_proj": "3"}}, "alpha_pattern of q_proj is 3, which is out of range"),
            ({"alpha_pattern": {"q_proj": math.inf}}, "alpha_pattern of q_proj is inf, which is out of range"),
            ({"lora_alpha": "6"}, "lora_alpha should be of type int or float"),
            ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, which is out of range"),
            ({"lora_alpha": math.inf}, "lora_alpha is inf, which is out of range"),
            (
                {"init_lora_weights": "pissa_niter_4"},
                "'pissa_niter_4' is not supported.*; convert this adapter to plain",
            ),
            ({"init_lora_weights": "olora"}, "'olora' is not supported"),
            ({"init_lora_weights": "corda"}, "'corda' is not supported"),
        ],
    )
    def test_settings(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        refuse(tmp_path, write_peft(tmp_path / "a", pairs_of(), **settings), message)

    def test_weights_that_may_run_code(self, tmp_path: Path) -> None:
        adapter = write_peft(tmp_path / "a", pairs_of())
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        refuse(tmp_path, adapter, "its weights are adapter_model.bin, which may run code and must be converted to")

    def test_another_model(self, tmp_path: Path) -> None:
        pairs = {name: (a[:, 1:], b) for name, (a, b) in pairs_of().items()}
        refuse(tmp_path, write_peft(tmp_path / "a", pairs), "is the adapter for another one?")
        pairs = {name: (a[:3], b) for name, (a, b) in pairs_of().items()}
        refuse(tmp_path, write_peft(tmp_path / "a", pairs), "is the adapter for another one?")
        extra = {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(RANK, 8)}
        refuse(tmp_path, write_peft(tmp_path / "a", {}, extra), "layers.9.mlp.up_proj', which the model does not have")
        extra = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(RANK, 8)}
        refuse(tmp_path, write_peft(tmp_path / "a", {}, extra), "one is missing")
        extra = {"base_model.model.model.layers.0.mlp.up_proj.weight": torch.ones(RANK, 8)}
        refuse(tmp_path, write_peft(tmp_path / "a", {}, extra), "is not of LoRA")

    def test_ranks_and_factors(self, tmp_path: Path) -> None:
        empty = {name: (a[:0], b[:, :0]) for name, (a, b) in pairs_of(("attention.wo",)).items()}
        refuse(tmp_path, write_peft(tmp_path / "a", empty), r"attention\.wo\.weight have the rank 0")
        adapter = write_peft(tmp_path / "a", pairs_of())
        refuse(tmp_path, f"{adapter}:-1e300", r"by the factor -1\.5e\+300: out of range")

    def test_a_replaced_matrix_comes_first(self, tmp_path: Path) -> None:
        changes = str(write_peft(tmp_path / "a", pairs_of(("output",))))
        output = torch.randn(GQA.vocab_size, GQA.dim)
        replaces = str(write_peft(tmp_path / "b", {}, {"base_model.model.lm_head.base_layer.weight": output}))
        with closing(open_checkpoint(write_huggingface(tmp_path / "m", GQA, WEIGHTS))) as checkpoint:
            message = r"b.adapter_config\.json replaces output\.weight, which an adapter before it changes"
            with pytest.raises(CheckpointError, match=message):
                with_adapters(checkpoint, [changes, replaces])
            found = as_huggingface(with_adapters(checkpoint, [replaces, changes]))["lm_head.weight"]
            ((a, b),) = pairs_of(("output",)).values()
            torch.testing.assert_close(found, output + 6 / RANK * (b @ a))

    def test_a_tied_embedding(self, tmp_path: Path) -> None:
        stem = "base_model.model.model.embed_tokens"
        extra = {
            f"{stem}.lora_embedding_A": torch.ones(RANK, TIED.vocab_size),
            f"{stem}.lora_embedding_B": torch.ones(TIED.dim, RANK),
        }
        refuse(tmp_path, write_peft(tmp_path / "a", {}, extra), "changes the embedding, which is the output", TIED)

    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "empty").mkdir()
        refuse(tmp_path, tmp_path / "empty", r"empty has no adapter_config\.json")
        refuse(tmp_path, tmp_path / "none", r"none is not there; an adapter is a directory of PEFT or a GGUF file")
        write_peft(tmp_path / "a", pairs_of())
        (tmp_path / "a" / "other.safetensors").write_bytes((tmp_path / "a" / "adapter_model.safetensors").read_bytes())
        refuse(
            tmp_path, tmp_path / "a" / "other.safetensors", "is neither a GGUF file nor the adapter_model.safetensors"
        )
        with pytest.raises(ValueError, match="the scale of an adapter must be finite, not 'nan'"):
            Llama(write_tiny(tmp_path / "m.bin"), lora=f"{tmp_path / 'a'}:nan")
        monkeypatch.setattr("pyllama2.llama.load_model", None)  # a wrong argument is found before
        with pytest.raises(TypeError, match="lora must be a path"):
            Llama(tmp_path / "m.bin", lora=[1])  # type: ignore[list-item]

    def test_numbers_that_are_not_finite(self, tmp_path: Path) -> None:
        pairs = pairs_of(("attention.wo",))
        next(iter(pairs.values()))[0][0, 0] = math.nan
        model = write_huggingface(tmp_path / "m", GQA, WEIGHTS)
        with pytest.raises(CheckpointError, match=r"attention\.wo\.weight: the weight nan .* is not a finite number"):
            pyllama2.export(model, tmp_path / "x.bin", lora=str(write_peft(tmp_path / "a", pairs)))


class TestUse:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        pairs = {name: (a / 20, b / 20) for name, (a, b) in pairs_of(TARGETS, CONFIG).items()}
        return write_peft(tmp_path / "a", pairs)

    @pytest.mark.parametrize("kind", ["float32", "float16", "q8", "q4"])
    def test_our_files_of_any_type(self, tmp_path: Path, adapter: Path, kind: str) -> None:
        """Tensors that the adapter does not change stay in the file as they are."""
        path = write_tiny(tmp_path / "m.bin", weight_type=kind)
        plain = StoredModel.open(path)
        model = load_model(str(path), quant="auto", tokenizer=None, lora=[str(adapter)], n_ctx=None, kv_dtype=None)
        assert model.quantization == plain.quantization and model.source.endswith("with the adapter a")
        with closing(open_checkpoint(path)) as checkpoint:
            merged = with_adapters(checkpoint, str(adapter))
            for name, weight in model.weights.items():
                wanted, found = merged.tensor(name).read(), weight.dequantize()
                if name not in merged.changed:
                    assert weight.data is not None and np.array_equal(found, plain.weights[name].dequantize())
                else:
                    step = {"float32": 1e-6, "float16": 1e-3, "q8": 0.01, "q4": 0.2}[kind]
                    assert np.abs(found - wanted).max() <= step * np.abs(wanted).max(), name
                    assert not np.array_equal(found, plain.weights[name].dequantize())

    def test_llama_and_export_agree(self, tmp_path: Path, adapter: Path, one_thread: None) -> None:
        path = write_tiny(tmp_path / "m.bin")
        pyllama2.export(path, tmp_path / "merged.bin", lora=f"{adapter}:0.5")
        options: list[dict[str, Any]] = [{"lora": f"{adapter}:0.5"}, {"model": tmp_path / "merged.bin"}, {}]
        logits = []
        for option in options:
            with Llama(**{"model": path, **option}) as llm:
                logits.append(llm.logits([1, 2, 3]))
        assert np.array_equal(logits[0], logits[1]) and not np.allclose(logits[0], logits[2])

    def test_it_is_pickled(self, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Names of the hub and relative paths become places that are found from any folder."""
        path = write_tiny(tmp_path / "m.bin")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        repo = tmp_path / "cache" / "models--tests--lora"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("0" * 40)
        shutil.copytree(adapter, repo / "snapshots" / ("0" * 40))
        loras: list[Any] = ["tests/lora", ["hf:tests/lora:0.5", Path("a")], "a:-0.25", adapter, iter(["a"])]
        for lora in loras:
            with Llama(path, lora=lora, n_threads=1) as llm:
                data = pickle.dumps(llm)
                monkeypatch.chdir("/")
                with pickle.loads(data) as copy:
                    assert copy.describe()["source"] == llm.describe()["source"]
                    assert np.array_equal(copy.logits([1, 2]), llm.logits([1, 2]))
            monkeypatch.chdir(tmp_path)

    def test_the_flags(self, tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path, out = str(write_tiny(tmp_path / "m.bin")), str(tmp_path / "merged.bin")
        assert main(["export", path, "-o", out, "--lora", f"{adapter}:0.5", "--lora", str(adapter)]) == 0
        assert "(scale 0.5)" in StoredModel.open(out).source
        texts = []
        for words in (["-m", out], ["-m", path, "--lora", f"{adapter}:0.5", "--lora", str(adapter)], ["-m", path]):
            assert main(["generate", *words, "--greedy", "-n", "8", "-t", "1", "Once upon"]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] != texts[2]

    def test_kept_models_know_their_adapters(
        self, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_CACHE", str(tmp_path / "kept"))
        path = str(write_tiny(tmp_path / "m.bin"))
        options: dict[str, Any] = {"quant": "q8", "tokenizer": None, "n_ctx": None, "kv_dtype": None, "keep": True}
        for lora in ([], [str(adapter)], [f"{adapter}:0.5"], [f"{adapter}:0.50000001"]):
            load_model(path, lora=lora, **options)
        assert len(list((tmp_path / "kept").iterdir())) == 4
