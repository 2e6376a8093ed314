"""Which files of a repository are taken."""

from __future__ import annotations

import pytest

from pyllama2.errors import CheckpointError
from pyllama2.model_names.choice import choose
from pyllama2.model_names.hub_name import HubName

SETTINGS = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
MORE = ["README.md", ".gitattributes", "pytorch_model.bin", "special_tokens_map.json", "onnx/model.onnx"]
REPO = HubName("org/name")
GB = 10**9


def sizes(*paths: str, **others: int) -> dict[str, int]:
    return dict.fromkeys(paths, 100)


def test_only_what_is_needed_of_hugging_face_files() -> None:
    choice = choose(REPO, sizes(*MORE, *SETTINGS, "model.safetensors", "consolidated.safetensors"))
    assert set(choice.files) == {*SETTINGS, "model.safetensors"}
    assert choice.files[-1] == "model.safetensors"  # settings come first
    assert (choice.model, choice.remark, choice.has_tokenizer) == ("", "", True)
    assert not choose(REPO, sizes("config.json", "model.safetensors")).has_tokenizer


def test_shards() -> None:
    shards = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    index = "model.safetensors.index.json"
    assert set(choose(REPO, sizes(*SETTINGS, index, *shards)).files) == {*SETTINGS, index, *shards}
    with pytest.raises(CheckpointError, match=r"no model that can be read"):
        choose(REPO, sizes(*SETTINGS, index, *shards[:2]))


def test_meta() -> None:
    files = ("params.json", "tokenizer.model", "consolidated.00.pth", "consolidated.01.pth")
    choice = choose(REPO, sizes("LICENSE.txt", "checklist.chk", *files))
    assert choice.files == files and choice.model == ""


def test_safetensors_before_gguf() -> None:
    choice = choose(REPO, sizes(*SETTINGS, "model.safetensors", "m.Q8_0.gguf", "m.Q4_0.gguf"))
    assert choice.model == ""
    assert choice.remark == "org/name has safetensors, which are taken; also there: m.Q4_0.gguf, m.Q8_0.gguf"


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"m.Q8_0.gguf": 1 * GB, "m.Q4_K_M.gguf": 600}, "m.Q8_0.gguf"),  # a small model, in 8 bits
        ({"m.Q8_0.gguf": 7 * GB, "m.Q4_K_M.gguf": 4 * GB, "m.Q4_0.gguf": 4 * GB}, "m.Q4_K_M.gguf"),
        ({"m.Q8_0.gguf": 7 * GB, "m.F16.gguf": 14 * GB, "m.Q2_K.gguf": 2 * GB}, "m.Q8_0.gguf"),
        ({"m.F16.gguf": 14 * GB, "m.Q2_K.gguf": 2 * GB}, "m.F16.gguf"),
        ({"m.Q2_K.gguf": 2 * GB, "m.IQ4_XS.gguf": 3 * GB}, "m.IQ4_XS.gguf"),
        ({"model.gguf": 5, "mmproj-F16.gguf": 1, "imatrix_unsloth.gguf": 1}, "model.gguf"),
        ({"b.gguf": 5, "a.gguf": 1}, "a.gguf"),
    ],
)
def test_one_of_several_gguf_files(there: dict[str, int], taken: str) -> None:
    choice = choose(REPO, {**there, "config.json": 1, "README.md": 1})
    assert choice.files == (choice.model,) == (taken,)
    models = [path for path in there if not path.startswith(("mmproj", "imatrix"))]
    assert bool(choice.remark) == (len(models) > 1)
    assert all(path in choice.remark for path in models if choice.remark)


def test_the_parts_of_a_gguf_file() -> None:
    parts = tuple(f"q8/m-Q8_0-{i:05}-of-00002.gguf" for i in (1, 2))
    assert choose(REPO, sizes(*parts)).files == parts
    assert choose(HubName("org/name", file=parts[1]), sizes(*parts)).files == parts
    assert choose(HubName("org/name", quantized="Q8_0"), sizes(*parts, "m-Q4_0.gguf")).model == parts[0]
    with pytest.raises(CheckpointError, match=r"is one of 2 parts, and q8/m-Q8_0-00002-of-00002.gguf is missing"):
        choose(HubName("org/name", file=parts[0]), sizes(parts[0]))
    with pytest.raises(CheckpointError, match=r"the first part of .* is missing"):
        choose(REPO, sizes(parts[1]))


def test_an_adapter() -> None:
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert choose(REPO, sizes(*files, "README.md", "tokenizer.json"), adapter=True).files == files
    assert choose(REPO, sizes("lora.gguf", "README.md"), adapter=True).files == ("lora.gguf",)
    with pytest.raises(CheckpointError, match=r"has no LoRA adapter: no adapter_model.* it has a\.gguf, b\.gguf$"):
        choose(REPO, sizes("a.gguf", "b.gguf", "model.safetensors"), adapter=True)


def test_a_file() -> None:
    there = sizes(*SETTINGS, "model.safetensors", "m.Q8_0.gguf", "m.Q4_0.gguf")
    assert choose(HubName("org/name", file="m.Q4_0.gguf"), there).files == ("m.Q4_0.gguf",)
    assert choose(HubName("org/name", quantized="Q4_0"), there).files == ("m.Q4_0.gguf",)
    with pytest.raises(
        CheckpointError, match=r"org/name has no file x\.gguf; it has m\.Q4_0\.gguf, m\.Q8_0\.gguf, mod"
    ):
        choose(HubName("org/name", file="x.gguf"), there)
    with pytest.raises(CheckpointError, match=r"no GGUF file of type Q5_0; it has m\.Q4_0\.gguf, m\.Q8_0\.gguf$"):
        choose(HubName("org/name", quantized="Q5_0"), there)
    with pytest.raises(CheckpointError, match=r"say org/name for the whole model"):
        choose(HubName("org/name", file="model.safetensors"), there)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (["config.json", "pytorch_model.bin"], "converted to safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "give it as --lora"),
        (["README.md"], "neither safetensors"),
        ([], "neither safetensors"),
    ],
)
def test_what_is_no_model(there: list[str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        choose(REPO, sizes(*there))
