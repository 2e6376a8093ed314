"""Perplexity and divergence: windows against their definition, the function, and the command line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, write_tiny
from helpers.tiny_tokenizers import bpe_spec

import pyllama2
from pyllama2 import ContextLengthError, Llama, Perplexity, __main__
from pyllama2.analysis import evaluation

command = importlib.import_module("pyllama2.perplexity")  # the attribute of the package may be the function
pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "a little fox who lived in the forest. What is the capital of France? \u72d0 " * 4


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, other weights."""
    folder = tmp_path_factory.mktemp("models")
    return write_tiny(folder / "other.bin", weights=random_weights(CONFIG, seed=1))


@pytest.fixture(scope="module")
def other(one_thread: None, other_path: Path) -> Iterator[Llama]:
    with Llama(other_path) as llm:
        yield llm


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT)
    return path


def distributions(llm: Llama, context: list[int]) -> np.ndarray:
    """Log-probabilities of the token that follows context."""
    logits = llm.logits(context)[-1].astype(np.float64)
    return np.asarray(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


def plain(llm: Llama, against: Llama | None, text: str, window: int, stride: int) -> dict[str, float]:
    """The definition, one token at a time: which window scores a token, and what is before it there."""
    ids, bos = llm.tokenize(text, bos=False), llm.tokenize("")
    room = window - len(bos)
    scores, others, divergences, agreements = [], [], [], []
    windows: dict[int, list[float]] = {}
    for i in range(1, len(ids)):
        end = min(room, len(ids))
        while end <= i:
            end = min(end + stride, len(ids))
        context = bos + ids[max(0, end - room) : i]
        q = distributions(llm, context)
        scores.append(q[ids[i]])
        if against is not None:
            p = distributions(against, context)
            divergences.append(sum(np.exp(p) * (p - q)))
            windows.setdefault(end, []).append(divergences[-1])
            others.append(p[ids[i]])
            agreements.append(p.argmax() == q.argmax())
    n_bytes = len(text.encode()) - len(llm.detokenize(ids[:1]).encode())
    actual = {
        "perplexity": np.exp(-np.mean(scores)), "bits_per_byte": -np.sum(scores) / np.log(2) / n_bytes,
        "n_tokens": len(scores), "n_bytes": n_bytes, "window": window, "stride": stride,
    }  # fmt: skip
    if against is not None:
        actual |= {
            "kl_divergence": np.mean(divergences), "kl_divergence_p99": np.percentile(divergences, 99),
            "top_1_agreement": np.mean(agreements),
            "perplexity_ratio": np.exp(np.mean(others) - np.mean(scores)),
            "kl_standard_error": np.sqrt(
                sum(sum(value - np.mean(divergences) for value in window) ** 2 for window in windows.values())
            ) / len(scores),
        }  # fmt: skip
    return actual


def fields(result: Perplexity) -> dict[str, float]:
    return {name: value for name, value in vars(result).items() if value is not None}


class TestFunction:
    @pytest.mark.slow
    @pytest.mark.parametrize(("window", "stride"), [(64, 32), (20, 19), (20, 1), (9, 4), (2, 1)])
    def test_is_the_definition(self, llm: Llama, window: int, stride: int) -> None:
        result = pyllama2.perplexity(llm, TEXT, window=window, stride=stride)
        assert fields(result) == pytest.approx(plain(llm, None, TEXT, window, stride), rel=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(("window", "stride"), [(64, 32), (9, 4), (2, 1)])
    def test_against_is_the_definition(
        self, llm: Llama, other: Llama, window: int, stride: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = plain(llm, other, TEXT, window, stride)
        for tokens_together, vocabulary_together in ((64, 1 << 16), (5, 100)):
            monkeypatch.setattr("pyllama2.memory._PIECE_TOKENS", tokens_together)
            monkeypatch.setattr(evaluation, "_SLICE", vocabulary_together)
            result = pyllama2.perplexity(llm, TEXT, against=other, window=window, stride=stride)
            assert fields(result) == pytest.approx(expected, rel=1e-5)
        assert result.kl_divergence is not None and result.kl_divergence > 0
        assert result.top_1_agreement is not None and result.top_1_agreement < 1

    @pytest.mark.slow
    def test_without_bos(self, tmp_path: Path) -> None:
        with Llama(write_tiny(tmp_path / "m.bin", spec=bpe_spec(bos_id=None))) as llm:
            for window, stride in ((30, 29), (8, 3), (2, 1)):
                result = pyllama2.perplexity(llm, TEXT[:120], window=window, stride=stride)
                assert fields(result) == pytest.approx(plain(llm, None, TEXT[:120], window, stride), rel=1e-5)

    def test_a_text_in_one_window(self, llm: Llama) -> None:
        text = "the forest"
        scores = llm.score(text)[1:]  # BOS is before the text's first token, which does not count
        result = pyllama2.perplexity(llm, text)
        assert result.perplexity == pytest.approx(np.exp(-scores.mean(dtype=np.float64)))
        assert (result.window, result.stride, result.n_tokens) == (64, 32, len(scores))

    def test_a_model_against_itself(self, llm: Llama) -> None:
        result = pyllama2.perplexity(llm, TEXT, against=llm)
        assert (result.kl_divergence, result.kl_divergence_p99, result.top_1_agreement) == (0, 0, 1)
        assert result.perplexity == pytest.approx(pyllama2.perplexity(llm, TEXT).perplexity)

    @pytest.mark.slow
    def test_several_texts(self, llm: Llama, other: Llama) -> None:
        texts = [TEXT, TEXT[20:90] + "another fox"]
        result = pyllama2.perplexity(llm, texts, against=other, window=20)
        alone = [pyllama2.perplexity(llm, text, against=other, window=20) for text in texts]
        assert result.documents == tuple(alone)
        n_tokens = [one.n_tokens for one in alone]
        assert result.n_tokens == sum(n_tokens)
        expected = np.average([one.kl_divergence or 0 for one in alone], weights=n_tokens)
        assert result.kl_divergence == pytest.approx(expected)
        with pytest.raises(ValueError, match="text 2 has 0 tokens"):
            pyllama2.perplexity(llm, [TEXT, ""])
        with pytest.raises(ValueError, match="no text"):
            pyllama2.perplexity(llm, [])

    def test_paths_are_opened(self, path: Path, other_path: Path, llm: Llama, other: Llama) -> None:
        expected = pyllama2.perplexity(llm, TEXT, against=other, window=20)
        assert pyllama2.perplexity(path, TEXT, against=str(other_path), window=20) == expected
        with pytest.raises(pyllama2.CheckpointError, match="missing"):
            pyllama2.perplexity("missing.bin", TEXT)

    def test_progress(self, llm: Llama) -> None:
        calls: list[tuple[int, int]] = []
        result = pyllama2.perplexity(
            llm, TEXT, window=20, stride=7, progress=lambda done, total, name: calls.append((done, total))
        )
        assert calls[0] == (18, result.n_tokens) and calls[1] == (25, result.n_tokens)
        assert calls[-1] == (result.n_tokens, result.n_tokens)

    def test_different_vocabularies(self, llm: Llama, tmp_path: Path) -> None:
        paths = [write_tiny(tmp_path / "small.bin", vocab_size=350), write_tiny(tmp_path / "bpe.bin", "bpe")]
        for path, match in zip(paths, ["340 and 350", r"token 0 is .* and '<s>'"], strict=True):
            with Llama(path) as other, pytest.raises(ValueError, match=f"different vocabularies.*{match}"):
                pyllama2.perplexity(llm, TEXT, against=other)

    def test_vocabularies_that_begin_texts_differently(self, tmp_path: Path) -> None:
        paths = [write_tiny(tmp_path / f"{add}.bin", spec=bpe_spec(add_bos=add)) for add in (False, True)]
        with pytest.raises(ValueError, match="begin with different tokens"):
            pyllama2.perplexity(paths[0], TEXT, against=paths[1])

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"window": 1}, "window must be between 2 and 64, not 1"), ({"window": 65}, "window"),
            ({"stride": 0}, "stride must be between 1 and 63"),
            ({"window": 10, "stride": 10}, "stride must be between 1 and 9"),
        ],
    )  # fmt: skip
    def test_wrong_arguments(self, llm: Llama, arguments: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            pyllama2.perplexity(llm, TEXT, **arguments)

    def test_wrong_texts(self, llm: Llama) -> None:
        for text in ("", "a"):
            with pytest.raises(ValueError, match="at least 2"):
                pyllama2.perplexity(llm, "" if not text else llm.detokenize(llm.tokenize(text)[-1:]))
        with pytest.raises(TypeError, match="bytes"):
            pyllama2.perplexity(llm, b"abc")  # type: ignore[arg-type]

    def test_windows_never_exceed_the_context(self, llm: Llama) -> None:
        with pytest.raises(ContextLengthError):  # what a window too long would be told
            llm.score(TEXT * 2)
        windows = evaluation._Windows(llm.tokenize(TEXT * 2, bos=False), [1], 64, 32)
        assert {len(ids) for ids, _ in windows} == {64}
        assert sum(n for _, n in windows) == len(windows.ids) - 1


class TestCommand:
    def test_text(self, path: Path, llm: Llama, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["-m", str(path), "-f", str(text_file)]) == 0
        result = pyllama2.perplexity(llm, TEXT)
        out, err = capsys.readouterr()
        assert out == (
            f"perplexity: {result.perplexity:.4f} ({result.n_tokens} tokens in windows of 64, stride 32)\n"
            f"bits per byte: {result.bits_per_byte:.4f} ({result.n_bytes} bytes)\n"
        )
        assert err == ""  # no bar where there is no terminal

    @pytest.mark.slow
    def test_json_and_flags(
        self,
        path: Path,
        other_path: Path,
        llm: Llama,
        other: Llama,
        text_file: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        flags = ["--against", str(other_path), "-c", "20", "--stride", "5", "-t", "1", "--device", "cpu", "--json"]
        assert __main__.main(["perplexity", "-m", str(path), "-f", str(text_file), *flags]) == 0
        result = pyllama2.perplexity(llm, TEXT, against=other, window=20, stride=5)
        actual = json.loads(capsys.readouterr().out)
        assert actual == vars(result)
        assert all(name in command.main.__globals__["_EPILOG"] for name in actual)

    def test_conversions_are_for_the_model_alone(
        self, path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--against", str(path), "--quant", "q8", "--kv-dtype", "float16", "-c", "20"]
        assert command.main(["-m", str(path), "-f", str(text_file), *flags]) == 0
        out = capsys.readouterr().out
        assert "KL divergence: 0.0" in out and "KL divergence: 0.000000 " not in out
        assert "top-1 agreement: " in out

    @pytest.mark.subprocess
    def test_standard_input(self, path: Path, text_file: Path) -> None:
        arguments = [sys.executable, "-m", "pyllama2.perplexity", "-m", path]
        runs = [
            subprocess.run([*arguments, "-f", name], input=TEXT.encode(), capture_output=True, timeout=60)
            for name in ("-", text_file)
        ]
        assert runs[0].returncode == 0 and runs[0].stdout == runs[1].stdout != b""

    @pytest.mark.parametrize(
        "arguments",
        [[], ["-f", "x", "--stride", "0"], ["-f", "x", "-c", "20", "--stride", "20"], ["-f", "x", "--quant", "q5"]],
    )
    def test_wrong_usage(self, path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["-m", str(path), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "\nusage: pyllama2 perplexity" in err

    def test_errors_are_one_sentence(
        self, path: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
        (tmp_path / "empty.txt").write_bytes(b"")
        bpe = write_tiny(tmp_path / "bpe.bin", "bpe")
        for arguments, match in (
            (["-f", "missing.txt"], "missing.txt: No such file"),
            (["-f", str(tmp_path / "latin.txt")], "the text is not UTF-8: byte 0xe9 at 3"),
            (["-f", str(tmp_path / "empty.txt")], "at least 2"),
            (["-f", str(text_file), "-c", "65"], "between 1 and 64"),
            (["-f", str(text_file), "--stride", "64"], "stride must be between 1 and 63"),
            (["-f", str(text_file), "--against", str(bpe)], "different vocabularies"),
            (["-f", str(text_file), "--against", "missing.bin"], "missing.bin"),
        ):
            assert command.main(["-m", str(path), *arguments]) == 1
            out, err = capsys.readouterr()
            assert out == "" and match in err and err.count("\n") == 1

    @pytest.mark.subprocess
    def test_the_module_is_the_function_too(self, path: Path) -> None:
        code = (
            "import sys, pyllama2.perplexity, pyllama2\n"
            "print(pyllama2.perplexity(sys.argv[1], 'a little fox').n_tokens, callable(pyllama2.perplexity.main))"
        )
        result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
        assert result.stdout.split()[1:] == ["True"], result.stderr
