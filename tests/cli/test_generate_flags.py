"""What generate prints with each of its flags, beside those of sampling and of the model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_llama import CHATML, write_tiny
from helpers.tiny_tokenizers import sentencepiece_spec

from pyllama2 import Llama, generate
from pyllama2.cli.sampling_flags import with_escapes

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
PROMPT = "Once upon"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "m.bin", spec=replace(sentencepiece_spec(), eos_ids=()))


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert generate.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def text(model: Path, prompt: str = PROMPT, **sampling: object) -> str:
    with Llama(model) as llm:
        return llm.generate(prompt, **{"max_tokens": 8, "seed": 3, **sampling}).text


def piped(model: Path, data: bytes, *arguments: str) -> str:
    command = [sys.executable, "-m", "pyllama2.generate", "-m", str(model), "-n", "8", "--seed", "3", *arguments]
    result = subprocess.run(command, input=data, capture_output=True, timeout=60, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode()


@pytest.mark.subprocess
def test_a_pipe_or_file_is_the_prompt_if_no_other_is_given(model: Path, tmp_path: Path) -> None:
    assert piped(model, PROMPT.encode() + b"\n") == PROMPT + text(model) + "\n"
    assert piped(model, b"not read", "One") == "One" + text(model, "One") + "\n"
    (tmp_path / "prompt").write_text(PROMPT)
    command = [sys.executable, "-m", "pyllama2.generate", "-m", str(model), "-n", "8", "--seed", "3"]
    with open(tmp_path / "prompt", "rb") as file:
        result = subprocess.run(command, stdin=file, capture_output=True, timeout=60, cwd=ROOT)
    assert result.stdout.decode() == PROMPT + text(model) + "\n"


def test_no_echo_and_quiet(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream in ([], ["--no-stream"]):
        assert generate.main([PROMPT, "-m", str(model), "-n", "8", "--seed", "3", "--no-echo", "-q", *stream]) == 0
        assert capsys.readouterr() == (text(model) + "\n", "")


def test_quiet_silences_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pyllama2")
    before = log.level
    monkeypatch.setattr(generate, "_generate", lambda parser, args: log.warning("a hint") or 0)
    for flags, said in (["-q"], False), ([], True):
        assert generate.main([PROMPT, *flags]) == 0
        assert ("a hint" in caplog.text) == said and log.level == before


def test_logprobs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [PROMPT, "-m", model, "-n", 8, "--seed", 3, "--logprobs", 2]
    with Llama(model) as llm:
        entries = llm.generate(PROMPT, max_tokens=8, seed=3, logprobs=2).logprobs
    assert entries is not None
    actual = json.loads(output(capsys, *flags, "--json"))["logprobs"]
    assert [(one["token_id"], one["logprob"], one["top"]) for one in actual] == [
        (one.token_id, one.logprob, [list(other) for other in one.top]) for one in entries
    ]
    assert generate.main([str(flag) for flag in flags]) == 0
    lines = capsys.readouterr().err.splitlines()[:-1]
    assert [line.split()[0] for line in lines] == [f"{one.logprob:.3f}" for one in entries]
    assert all(repr(one.top[1][1]) in line for one, line in zip(entries, lines, strict=True))
    assert generate.main([PROMPT, "-m", str(model), "--logprobs", "-1"]) == 2


def test_variants_have_the_seeds_after_the_first(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [text(model, seed=seed, temperature=2.0) for seed in (5, 6, 7)]
    assert len(set(expected)) == 3
    flags = [PROMPT, "-m", model, "-n", 8, "--temperature", 2, "--seed", 5, "--variants"]
    assert output(capsys, *flags) == "---\n".join(PROMPT + one + "\n" for one in expected)
    objects = [json.loads(line) for line in output(capsys, *flags, "2", "--json").splitlines()]
    assert [(one["text"], one["seed"]) for one in objects] == [(expected[0], 5), (expected[1], 6)]
    lines = output(capsys, PROMPT, "-m", model, "--variants", "2", "--json").splitlines()
    first, second = (json.loads(line)["seed"] for line in lines)
    assert second == first + 1


def test_a_prompt_after_variants_is_no_number(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["--variants", PROMPT, "-n", "1"],
        [PROMPT, "-n", "1", "--variants"],
        ["--variants", "-n", "1", PROMPT],
    ):
        assert generate.main([*words, "-m", str(model), "--json"]) == 0
        assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == [PROMPT] * 3
    for words in (["--variants", "0"], ["--variants", "-1"], ["--variants=x"]):
        assert generate.main([*words, "-m", str(model), PROMPT]) == 2
        assert "is not a positive integer" in capsys.readouterr().err
    assert generate.main(["-m", str(model), "-n", "0", "--", "--variants"]) == 0


def test_penalties_biases_and_the_end_of_the_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_window": 3, "repetition_penalty": 1.3,
    }  # fmt: skip
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    expected = text(model, **flags, logit_bias={300: 30.0, 5: -float("inf")}, ignore_eos=True)
    actual = output(
        capsys, PROMPT, "-m", model, "-n", 8, "--seed", 3, *arguments, "--logit-bias", "300=30", "--logit-bias=5-inf",
        "--ignore-eos",
    )  # fmt: skip
    assert actual == PROMPT + expected + "\n" and expected != text(model)
    for wrong in ("x", "1", "1=", "=2", "1=x"):
        assert generate.main([PROMPT, "-m", str(model), "--logit-bias", wrong]) == 2
        assert "such as 15=-inf" in capsys.readouterr().err


def test_a_full_context_may_roll(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [PROMPT, "-m", model, "-c", 20, "-n", 40, "--seed", 3, "--json"]
    assert len(json.loads(output(capsys, *flags))["token_ids"]) < 20
    assert len(json.loads(output(capsys, *flags, "--context", "roll"))["token_ids"]) == 40


def test_a_state_is_gone_on_from(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [PROMPT, "-m", model, "-n", 8, "--seed", 3, "--json", "--state", tmp_path / "state"]
    first, second = (json.loads(output(capsys, *flags)) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["usage"]["cached_tokens"] == 0 < second["usage"]["cached_tokens"]
    (tmp_path / "state").write_text("no state")
    assert generate.main([str(flag) for flag in flags]) == 1


def test_a_state_that_cannot_be_written_is_said_first(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([PROMPT, "-m", str(model), "--state", str(tmp_path / "none" / "s")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == f"pyllama2 generate: {tmp_path / 'none'}: there is no such folder\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n", "\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"\x41\u00e9", "Aé"), ("é\n", "é\n"),
        (r"\q\x4", r"\q\x4"),
    ],
)  # fmt: skip
def test_escapes(typed: str, meant: str) -> None:
    assert with_escapes(typed) == meant


def test_escapes_reach_the_stop_strings(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = text(model, max_tokens=30)
    stop = full[5]
    flags = [PROMPT, "-m", model, "-n", 30, "--seed", 3, "--stop", f"\\u{ord(stop):04x}"]
    assert output(capsys, *flags) == PROMPT + full[: full.index(stop)] + "\n"


def test_a_chat_model_is_said_to_have_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "chat.bin", "bpe", template=CHATML)
    for flags, said in ([], True), (["-q"], False):
        assert generate.main(["-m", str(path), "-n", "1", *flags]) == 0
        assert ("pyllama2 chat" in capsys.readouterr().err) == said
