"""find_model(): paths, names of this package, the cache of the hub, and the hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import COMMIT, Hub, Repo
from helpers.scheduling import wait_until
from helpers.tiny_llama import write_tiny

import pyllama2
from pyllama2.errors import CheckpointError
from pyllama2.model_names import find_adapter, find_model
from pyllama2.model_names.cached import cached_repos, repo_folder
from pyllama2.model_names.removal import plan_removal

CALLED = "; models of the Hugging Face hub are called ORG/NAME, and `pyllama2 models` lists those that are here"
NEEDED = {"config.json", "tokenizer.model", "model.safetensors"}


class TestDownload:
    def test_a_model_is_downloaded_once(self, hub: Hub, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = find_model("tests/model")
        assert Path(path) == cache / "models--tests--model" / "snapshots" / COMMIT
        assert set(os.listdir(path)) == NEEDED == set(hub.downloads())
        assert "there is no tests/model here or in the cache; asking" in caplog.text
        assert "downloading 3 files of tests/model (" in caplog.text and str(cache) in caplog.text
        hub.requests.clear()
        caplog.clear()
        assert find_model("tests/model") == find_model("hf:tests/model") == find_model(f"tests/model:{COMMIT}") == path
        assert hub.requests == [] and caplog.text == ""

    def test_it_generates(self, hub: Hub, one_thread: None) -> None:
        with pyllama2.Llama("hf:tests/model") as llm:
            assert llm.describe()["source"] == "Hugging Face checkpoint tests/model"
            assert llm.generate("Once", max_tokens=2).usage.completion_tokens == 2

    def test_a_file(self, hub: Hub) -> None:
        path = find_model("tests/gguf/tiny-Q4_0.gguf")
        assert Path(path).read_bytes() == hub.repos["tests/gguf"].files["tiny-Q4_0.gguf"]
        assert hub.downloads() == ["tiny-Q4_0.gguf"]
        assert find_model("tests/gguf:q8_0").endswith("tiny-Q8_0.gguf")

    def test_one_of_several_files_is_chosen_and_named(self, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
        assert find_model("tests/gguf").endswith("tiny-Q8_0.gguf")
        assert "of 3 GGUF files tiny-Q8_0.gguf is taken; others: tiny-F16.gguf, tiny-Q4_0.gguf" in caplog.text

    def test_a_file_that_is_in_the_cache_serves_the_repository(self, hub: Hub) -> None:
        path = find_model("tests/gguf/tiny-Q4_0.gguf")
        hub.requests.clear()
        assert find_model("tests/gguf") == path and hub.requests == []

    def test_revisions(self, hub: Hub) -> None:
        hub.repos["tests/model"].revisions = ("main", "v1.0", "refs/pr/1")
        assert find_model("tests/model:v1.0") == find_model("tests/model")
        with pytest.raises(CheckpointError, match=r"tests/model has no branch, tag or commit 'v2'"):
            find_model("tests/model:v2")

    def test_a_broken_connection_is_taken_up_again(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # usually 10 MB
        hub.cut_after = [5000]
        path = find_model("tests/gguf/tiny-F16.gguf")
        assert Path(path).read_bytes() == hub.repos["tests/gguf"].files["tiny-F16.gguf"]
        starts = [start for method, _, start in hub.requests if method == "GET" and start]
        assert starts == ["bytes=5000-"]

    def test_a_cancelled_download_goes_on_in_the_next_run(self, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
        hub.hold_after = [20000]
        code = (
            "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
            "from pyllama2.model_names import find_model; find_model('tests/gguf/tiny-F16.gguf')"
        )
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
            wait_until(lambda: any(path.stat().st_size == 20000 for path in self.incomplete(hub)))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        assert b"the next download of tiny-F16.gguf goes on from here" in said
        assert [path.stat().st_size for path in self.incomplete(hub)] == [20000]
        hub.requests.clear()
        with caplog.at_level("WARNING", logger="pyllama2"):
            path = find_model("tests/gguf/tiny-F16.gguf")
        whole = hub.repos["tests/gguf"].files["tiny-F16.gguf"]
        assert Path(path).read_bytes() == whole
        assert [start for method, _, start in hub.requests if method == "GET" and start] == ["bytes=20000-"]
        assert f"going on with tiny-F16.gguf after {2000000 / len(whole):.0f} %" in caplog.text
        assert f"({(len(whole) - 20000) / 1e3:.1f} kB)" in caplog.text
        assert not self.incomplete(hub)

    def test_what_a_cancelled_download_left_can_be_removed(self, hub: Hub) -> None:
        folder = repo_folder("tests/gguf")
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / "0123.incomplete").write_bytes(bytes(1000))
        removal = plan_removal("tests/gguf")
        assert removal.n_bytes == 1000
        removal.carry_out()
        assert not folder.exists()
        with pytest.raises(CheckpointError, match="there is no tests/gguf here or in the cache"):
            plan_removal("tests/gguf")

    @staticmethod
    def incomplete(hub: Hub) -> list[Path]:
        return list(repo_folder("tests/gguf").glob("blobs/*.incomplete"))

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("first", ["right", "wrong", "whole", "too long"])
    def test_what_an_earlier_run_left(self, hub: Hub, first: str, ranges: bool) -> None:
        whole = hub.repos["tests/gguf"].files["tiny-F16.gguf"]
        left = {"right": whole[:3000], "wrong": bytes(3000), "whole": whole, "too long": whole + b"x"}[first]
        place = repo_folder("tests/gguf") / "blobs" / f"{hashlib.sha256(whole).hexdigest()}.incomplete"
        place.parent.mkdir(parents=True)
        place.write_bytes(left)
        hub.no_ranges = not ranges
        if first == "wrong" and ranges:
            with pytest.raises(CheckpointError, match=r"arrived damaged.*try again"):
                find_model("tests/gguf/tiny-F16.gguf")
        hub.requests.clear()
        assert Path(find_model("tests/gguf/tiny-F16.gguf")).read_bytes() == whole
        assert len(hub.downloads()) == (0 if first == "whole" else 1)
        assert not self.incomplete(hub)

    @pytest.mark.parametrize("longer", [True, False])
    def test_a_file_of_another_size(self, hub: Hub, longer: bool) -> None:
        repo, file = hub.repos["tests/model"], "model.safetensors"
        whole = repo.files[file]
        repo.false[file] = whole + bytes(5000) if longer else whole[:5000]
        words = "arrived damaged" if longer else "did not arrive whole"
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"{words}.*; .*try again$"):
                find_model("tests/model")
        repo.false.clear()
        assert (Path(find_model("tests/model")) / file).read_bytes() == whole

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"model_type": "mixtral"},
                r"tests/model: a model of type 'mixtral' is a mixture of experts.*take Mistral 7B",
            ),
            ({"quantization_config": {"quant_method": "fp8"}}, r"tests/model: weights quantized by 'fp8' are not"),
        ],
    )
    def test_what_cannot_be_read_is_not_downloaded(self, hub: Hub, changes: dict[str, object], words: str) -> None:
        files = hub.repos["tests/model"].files
        files["config.json"] = json.dumps(json.loads(files["config.json"]) | changes).encode()
        with pytest.raises(CheckpointError, match=words):
            find_model("tests/model")
        with pytest.raises(CheckpointError, match=words):  # config.json is in the cache now
            find_model("tests/model")
        assert "model.safetensors" not in hub.downloads()

    def test_finished_files_are_not_downloaded_again(self, hub: Hub) -> None:
        repo = hub.repos["tests/model"]
        repo.false["model.safetensors"] = bytes(len(repo.files["model.safetensors"]))
        with pytest.raises(CheckpointError):
            find_model("tests/model")
        hub.requests.clear()
        repo.false.clear()
        find_model("tests/model")
        assert hub.downloads() == ["model.safetensors"]

    def test_a_cache_without_the_tokenizer_is_completed(self, hub: Hub) -> None:
        path = Path(find_model("tests/model"))
        (path / "tokenizer.model").unlink()
        hub.requests.clear()
        assert find_model("tests/model", needs_tokenizer=False) == str(path) and hub.requests == []
        assert find_model("tests/model") == str(path) and (path / "tokenizer.model").exists()

    def test_the_hub_does_not_care_for_capitals(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos["Tests/Model"] = hub.repos.pop("tests/model")
        hub.moved["tests/model"] = "Tests/Model"
        path = find_model("tests/model")
        assert cached_repos() == ["Tests/Model"] and Path(path).parts[-3] == "models--Tests--Model"
        hub.requests.clear()
        assert find_model("tests/model") == find_model("Tests/Model") == find_model("TESTS/model:main") == path
        assert hub.requests == []

    def test_a_renamed_model_is_found_again_by_its_old_name(self, hub: Hub) -> None:
        hub.moved["old/name"] = "tests/model"
        path = find_model("old/name")
        hub.requests.clear()
        assert find_model("old/name") == path and hub.requests == []

    @pytest.mark.parametrize("quiet", [True, False])
    def test_progress(
        self,
        hub: Hub,
        quiet: bool,
        one_thread: None,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled

        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        pyllama2.Llama("hf:tests/model", progress=False if quiet else None).close()
        assert ("model.safetensors: 100%" in capsys.readouterr().err) == (not quiet)
        assert not are_progress_bars_disabled()

    def test_an_adapter(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
            (tmp_path / "lora" / name).write_text(name)
        hub.add("tests/lora", tmp_path / "lora")
        path = find_adapter("tests/lora")
        assert set(os.listdir(path)) == {"adapter_config.json", "adapter_model.safetensors"}
        hub.requests.clear()
        assert find_adapter("hf:tests/lora") == path and hub.requests == []
        assert find_adapter(str(tmp_path)) == str(tmp_path)
        with pytest.raises(CheckpointError, match=r"tests/lora has no model .* give it as --lora"):
            find_model("tests/lora")
        with pytest.raises(CheckpointError, match="tests/model has no LoRA adapter"):
            find_adapter("tests/model")


class TestFailures:
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_wrong_hash(self, hub: Hub, cache: Path, name: str) -> None:
        repo = hub.repos["tests/model"]
        repo.false[name] = bytes(len(repo.files[name]))
        with pytest.raises(CheckpointError, match=rf"{name} of tests/model arrived damaged: its hash .* try again"):
            find_model("tests/model")
        assert not any(file.name == name for file in cache.rglob("*"))
        assert all(file.stat().st_size for file in cache.rglob("blobs/*"))
        repo.false.clear()
        find_model("tests/model")

    def test_a_missing_model(self, hub: Hub) -> None:
        host = hub.url.removeprefix("http://")
        expected = f"there is no tests/modell here, in the cache, or on {host}; check the spelling .*HF_TOKEN"
        with pytest.raises(CheckpointError, match=expected):
            find_model("tests/modell")
        find_model("tests/model")
        with pytest.raises(CheckpointError, match=r"did you mean tests/model?"):
            find_model("tests/modell")

    @pytest.mark.parametrize("commit", ["", "main", "../../../x", "C0FFEE" + "0" * 34])
    def test_a_commit_that_is_none(self, hub: Hub, cache: Path, commit: str) -> None:
        hub.repos["tests/model"].commit = commit
        with pytest.raises(CheckpointError, match="does not say which commit tests/model is"):
            find_model("tests/model")
        assert hub.downloads() == []

    def test_a_private_model(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos["tests/model"].token = "hf_secret"
        with pytest.raises(CheckpointError, match=r"a private model needs a token \(HF_TOKEN"):
            find_model("tests/model")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert os.path.isdir(find_model("tests/model"))

    def test_a_gated_model(self, hub: Hub) -> None:
        hub.repos["tests/model"].error = "GatedRepo"
        with pytest.raises(
            CheckpointError, match=r"gated: accept its terms at https://.*/tests/model, and give a token"
        ):
            find_model("tests/model")

    @pytest.mark.parametrize(("status", "hint"), [(401, "give a token"), (403, "give a token"), (500, "try again")])
    def test_a_status(self, hub: Hub, status: int, hint: str) -> None:
        hub.repos["tests/model"].files = {"config.json": b"{}"}  # not asked for
        hub.status = status
        with pytest.raises(CheckpointError, match=rf"(status {status}.*{hint}|a private model needs a token)"):
            find_model("tests/model")

    def test_a_slow_hub(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
        hub.stall_s = 1
        with pytest.raises(CheckpointError, match=r"took too long to answer.*HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD"):
            find_model("tests/model")

    @pytest.mark.parametrize("page", [b"<html>Log in to this network</html>", b"[]", b"{}", b"null"])
    def test_what_is_no_hub(self, hub: Hub, page: bytes) -> None:
        hub.page = page
        with pytest.raises(CheckpointError, match="does not answer as a hub does; is HF_ENDPOINT right, or does the"):
            find_model("tests/model")

    @pytest.mark.parametrize(
        "address", ["", "foo", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999", "http://[x"]
    )
    def test_an_address_that_is_none(self, hub: Hub, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with pytest.raises(CheckpointError, match="HF_ENDPOINT must be the address of a hub, such as") as caught:
            find_model("tests/model")
        assert str(caught.value).endswith(f"not {address!r}")

    def test_a_token_that_is_none(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_\u00f1")
        with pytest.raises(CheckpointError, match="HF_TOKEN has a character that no token has"):
            find_model("tests/model")

    def test_no_network(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(CheckpointError, match=r"cannot get tests/model from 127.0.0.1:9 .*`pyllama2 models` lists"):
            find_model("tests/model")

    def test_offline(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        path = find_model("tests/model")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        hub.requests.clear()
        assert find_model("tests/model") == path
        with pytest.raises(CheckpointError, match=r"tests/gguf is not in the cache .*HF_HUB_OFFLINE forbids"):
            find_model("tests/gguf")
        assert hub.requests == [] and caplog.text.count("asking the Hugging Face hub") == 1  # the first time

    def test_a_full_disk(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 70 << 20})())
        find_model("tests/gguf")  # small enough
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 64 << 20})())
        words = r"tests/model needs .* kB on the disk of .*, which has 67.1 MB left; free some, or set HF_HUB_CACHE to"
        with pytest.raises(CheckpointError, match=words):
            find_model("tests/model")
        monkeypatch.delenv("HF_HUB_CACHE")  # the folder of the tests is known without it
        with pytest.raises(CheckpointError, match="or set HF_HOME to a folder"):
            find_model("tests/model")

    def test_a_cache_that_cannot_be_written(self, hub: Hub, cache: Path) -> None:
        cache.write_text("a file, where the folder should be")
        with pytest.raises(CheckpointError, match=r"HF_HUB_CACHE sets another folder"):
            find_model("tests/model")

    def test_paths_that_lead_out_of_the_cache(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "secret.gguf").write_bytes(b"GGUF")
        outside = os.path.relpath(
            tmp_path / "secret.gguf", tmp_path / "cache" / "models--tests--bad" / "snapshots" / "x"
        )
        hub.repos["tests/bad"] = Repo(dict.fromkeys((outside, str(tmp_path / "secret.gguf"), "./a.gguf"), b"GGUF"))
        with pytest.raises(CheckpointError, match="tests/bad has no model that can be read"):
            find_model("tests/bad")
        assert hub.downloads() == []

    def test_nothing_to_read(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "pytorch_model.bin").write_text("x")
        hub.add("tests/pickles", tmp_path / "x")
        with pytest.raises(CheckpointError, match=r"tests/pickles has no model .* converted to safetensors"):
            find_model("tests/pickles")
        assert hub.downloads() == []


class TestPlaces:
    def test_a_path_wins(self, hub: Hub) -> None:
        os.mkdir("tests")
        path = write_tiny(Path("tests/model"))
        assert find_model("tests/model") == find_model(path) == "tests/model"
        assert hub.requests == []

    def test_what_looks_like_a_path_is_not_asked_for(self, hub: Hub) -> None:
        os.mkdir("models")
        write_tiny(Path("models/llama.bin"))
        for text, hint in (
            ("models/lama.bin", "; did you mean models/llama.bin?"),
            ("models/other", "; if a model of the Hugging Face hub is meant, write hf:models/other"),
            ("other/model.gguf", "; if a model of the Hugging Face hub is meant, write hf:other/model.gguf"),
            ("./tests/model", ""),
            ("model", CALLED),
            ("llama2:7b", CALLED),
        ):
            with pytest.raises(CheckpointError) as caught:
                find_model(text)
            assert str(caught.value) == f"there is no file or directory {text}{hint}"
        for text in ("", " model", "model\n"):
            with pytest.raises(CheckpointError) as caught:
                find_model(text)
            assert str(caught.value) == f"there is no file or directory {text!r}{CALLED}"
        assert find_model(Path("tests/model")) == "tests/model"  # a Path is a path
        assert hub.requests == []

    def test_a_url_of_another_place(self, hub: Hub) -> None:
        with pytest.raises(CheckpointError, match=r"is no name of a model on the hub; write hf:ORG/NAME"):
            find_model("https://example.org/tests/model")
        assert hub.requests == []

    def test_misspellings(self, hub: Hub) -> None:
        write_tiny(Path("llama-7b.bin"))
        find_model("tests/gguf/tiny-Q4_0.gguf")
        for text, meant in (
            ("smolm2", "smollm2"), ("llama-7b", "llama-7b.bin"), ("lama-7b.bin", "llama-7b.bin"), ("demos", "demo"),
            ("gguf", "tests/gguf"),
        ):  # fmt: skip
            with pytest.raises(CheckpointError, match=rf"no file or directory {text}; did you mean {meant}\?"):
                find_model(text)

    def test_demo(self) -> None:
        assert find_model("demo").endswith("stories.bin") and os.path.isfile(find_model("demo"))

    def test_a_ready_made_cache(self, hub: Hub, hub_files: Path, cache: Path) -> None:
        """As others make it: blobs and links; a link that leads nowhere is a file that is not there."""
        folder = cache / "models--made--before"
        snapshot = folder / "snapshots" / ("1" * 40)
        for sub in ("blobs", "refs", f"snapshots/{'1' * 40}"):
            (folder / sub).mkdir(parents=True)
        (folder / "refs" / "main").write_text("1" * 40)
        for name in NEEDED:
            (folder / "blobs" / name).write_bytes((hub_files / "model" / name).read_bytes())
            (snapshot / name).symlink_to(Path("..", "..", "blobs", name))
        assert find_model("made/before") == str(snapshot)
        assert cached_repos() == ["made/before"] and hub.requests == []
        (folder / "blobs" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"there is no made/before"):
            find_model("made/before")

    def test_a_damaged_cache(self, hub: Hub, cache: Path) -> None:
        branch = cache / "models--tests--model" / "refs" / "main"
        branch.parent.mkdir(parents=True)
        for text in ("../../../etc", ""):
            branch.write_text(text)
            assert os.path.isdir(find_model("tests/model"))
        branch.write_bytes(b"\xff")
        with pytest.raises(CheckpointError, match=r"tests/model cannot be downloaded to .*is a file in it damaged"):
            find_model("tests/model")


@pytest.mark.subprocess
def test_commands_take_names(hub: Hub, tmp_path: Path) -> None:
    """By the environment alone, in a process of its own; and every command that reads a model."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pyllama2", *words], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYLLAMA2_NUM_THREADS": "1"},
        )  # fmt: skip

    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little fox who lived in the forest. " * 3)
    export = run("export", "tests/model", "-o", str(tmp_path / "a.bin"))
    assert export.returncode == 0 and "downloading 3 files of tests/model" in export.stderr, export.stderr
    for words in (
        ("quantize", "tests/model", "-o", str(tmp_path / "q.bin"), "--type", "q8"),
        ("generate", "-m", "tests/model", "-n", "2", "Once"),
        ("perplexity", "-m", "tests/model", "--against", "tests/model", "-f", str(text)),
        ("inspect", "tests/model"),
        ("inspect", "-m", "tests/model", "--tokens", "Once"),
        ("bench", "-m", "tests/model", "--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1"),
    ):
        result = run(*words)
        assert result.returncode == 0 and "downloading" not in result.stderr, (words, result.stderr)
    missing = run("export", "tests/none", "-o", str(tmp_path / "x.bin"))
    assert missing.returncode == 1 and "\npyllama2 export: there is no tests/none here" in missing.stderr
    assert "Traceback" not in missing.stderr and not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quant": "q5"}, "quant must be"),
        ({"kv_dtype": "int4"}, "int4"),
        ({"keep": "yes"}, "keep must be"),
        ({"prompt_lookup": 1}, "prompt_lookup must be"),
        ({"device": "tpu"}, "tpu"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments_cost_no_download(hub: Hub, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pyllama2.Llama("tests/model", **wrong)
    assert hub.requests == []


def test_python_functions_take_names(hub: Hub, tmp_path: Path) -> None:
    logging.getLogger("pyllama2").setLevel(logging.NOTSET)
    pyllama2.export("tests/gguf/tiny-Q8_0.gguf", tmp_path / "a.bin")
    pyllama2.quantize("tests/gguf/tiny-Q8_0.gguf", tmp_path / "b.bin", "q8")
    assert (tmp_path / "a.bin").exists() and (tmp_path / "b.bin").exists()
