"""The command lines: what they print where, exit codes, signals, and errors in one sentence."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llama import CHATML, write_tiny
from helpers.tiny_tokenizers import sentencepiece_model, sentencepiece_spec

import pyllama2
from pyllama2 import Llama, __main__, chat, generate
from pyllama2.storage.model_file import StoredModel

export = importlib.import_module("pyllama2.export")  # the attribute of the package may be the function
perplexity = importlib.import_module("pyllama2.perplexity")
quantize = importlib.import_module("pyllama2.quantize")
ROOT = Path(__file__).parents[2]
PROMPT = "Once upon a time"
GREEDY = ["--greedy", "-n", "8"]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """One thread, and none of the variables that change what the command lines do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYLLAMA2_MODEL", "PYLLAMA2_DEVICE", "PYLLAMA2_LOG_LEVEL"):
            patch.delenv(name, raising=False)
        patch.setenv("PYLLAMA2_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.bin")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML, max_seq_len=200)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on for long enough to be interrupted: with a large context and no end-of-text token."""
    spec = replace(sentencepiece_spec(), eos_ids=())
    return write_tiny(tmp_path_factory.mktemp("models") / "slow.bin", spec=spec, max_seq_len=60_000, n_layers=4)


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    with Llama(model) as llm:
        return llm.generate(PROMPT, temperature=0, max_tokens=8).text


def run(*arguments: Any, input: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """python -m ARGUMENTS; text as bytes."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], input=input, capture_output=True, timeout=60, **options
    )


def assert_one_sentence(text: str, match: str) -> None:
    assert re.search(match, text), text
    assert text.count("\n") == 1 and "Traceback" not in text


class TestGenerate:
    @pytest.mark.slow
    def test_prompt_and_text_go_to_stdout_and_timings_to_stderr(self, model: Path, expected: str) -> None:
        result = run("pyllama2.generate", PROMPT, "-m", model, *GREEDY)
        assert result.returncode == 0
        assert result.stdout.decode() == PROMPT + expected + "\n"
        assert re.fullmatch(
            r"prompt: \d+ tokens, [\d.]+ tokens/s; decode: 8 tokens, [\d.]+ tokens/s\n", result.stderr.decode()
        )

    def test_no_stream_prints_the_same(self, model: Path, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.main([PROMPT, "-m", str(model), *GREEDY, "--no-stream"]) == 0
        assert capsys.readouterr().out == PROMPT + expected + "\n"

    def test_json(self, model: Path, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.main([PROMPT, "-m", str(model), *GREEDY, "--json"]) == 0
        actual = json.loads(capsys.readouterr().out)
        with Llama(model) as llm:
            completion = llm.generate(PROMPT, temperature=0, max_tokens=8)
        timings = {"prompt_s", "decode_s", "prompt_tokens_per_s", "decode_tokens_per_s", "guesses", "guesses_true"}
        assert actual.pop("timings").keys() == timings
        assert actual == {
            "prompt": PROMPT, "text": expected, "token_ids": completion.token_ids, "finish_reason": "length",
            "stop_reason": None, "usage": vars(completion.usage),
        }  # fmt: skip
        assert all(f"  {name} " in generate._EPILOG for name in [*actual, "timings"])

    @pytest.mark.subprocess
    def test_the_prompt_may_come_from_a_file_or_standard_input(
        self, model: Path, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "prompt.txt"
        file.write_bytes(PROMPT.encode() + b"\n")  # its last line break is not part of it
        assert generate.main(["-f", str(file), "-m", str(model), *GREEDY]) == 0
        assert capsys.readouterr().out == PROMPT + expected + "\n"
        for arguments in (["-"], ["-f", "-"]):
            result = run("pyllama2.generate", *arguments, "-m", model, *GREEDY, input=PROMPT.encode() + b"\r\n")
            assert result.stdout.decode() == PROMPT + expected + "\n"

    def test_prompts_that_cannot_be_read(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.main(["-f", str(tmp_path / "missing"), "-m", str(model)]) == 1
        assert_one_sentence(capsys.readouterr().err, r"missing: No such file")
        (tmp_path / "latin").write_bytes(b"caf\xe9")
        assert generate.main(["-f", str(tmp_path / "latin"), "-m", str(model)]) == 1
        assert_one_sentence(capsys.readouterr().err, "not UTF-8: byte 0xe9 at 3")

    def test_without_a_prompt_the_text_starts_from_nothing(
        self, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert generate.main(["-m", str(model), *GREEDY]) == 0
        with Llama(model) as llm:
            assert capsys.readouterr().out == llm.generate("", temperature=0, max_tokens=8).text + "\n"

    def test_sampling_flags_reach_the_sampler(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = {
            "temperature": 1.3, "top_p": 0.8, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 5,
            "max_tokens": 20,
        }  # fmt: skip
        arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        assert generate.main([PROMPT, "-m", str(model), *arguments, "--stop", "zz", "--stop", "e"]) == 0
        with Llama(model) as llm:
            completion = llm.generate(PROMPT, **flags, stop=["zz", "e"])
        assert capsys.readouterr().out == PROMPT + completion.text + "\n"

    def test_model_flags_reach_the_model(
        self,
        model: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_DEVICE", "cuda")  # beaten by the flag
        flags = ["--quant", "q8", "-c", "40", "-t", "2", "--device", "cpu", "--kv-dtype", "int8", "-v"]
        assert generate.main([PROMPT, "-m", str(model), *flags, "-n", "100", "--seed", "1"]) == 0
        assert "GB/s" in capsys.readouterr().err
        for part in ("using cpu", "quantization q8", "n_ctx 40", "n_threads 2", "kv_dtype int8"):
            assert part in caplog.text
        assert os.environ["PYLLAMA2_DEVICE"] == "cuda"  # as it was

    def test_the_tokenizer_flag(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "t.model").write_bytes(sentencepiece_model())
        path = write_tiny(tmp_path / "m.bin", None)
        assert generate.main([PROMPT, "-m", str(path), "-n", "1"]) == 1
        assert_one_sentence(capsys.readouterr().err, "no tokenizer; give the path of one .--tokenizer PATH, or")
        assert generate.main([PROMPT, "-m", str(path), "-n", "1", "--tokenizer", str(tmp_path / "t.model")]) == 0

    def test_the_model_of_the_environment(
        self, model: Path, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_MODEL", str(model))
        assert generate.main([PROMPT, *GREEDY]) == 0
        assert capsys.readouterr().out == PROMPT + expected + "\n"

    @pytest.mark.slow
    def test_characters_of_any_language_in_any_locale(self, model: Path) -> None:
        prompt = "h\u00e9 \u72d0 \U0001f98a"
        environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        result = run(
            "pyllama2.generate", "-", "-m", model, "-n", "30", "--seed", "3", env=environment, input=prompt.encode()
        )
        assert result.returncode == 0 and result.stdout.decode().startswith(prompt)

    def test_a_prompt_that_spells_bos_is_warned_of(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.main(["<s>Once", "-m", str(model), "-n", "0"]) == 0
        assert "pyllama2 generate: the prompt starts with '<s>'" in capsys.readouterr().err


class TestExitCodes:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--nonsense"], ["a", "b"], ["a", "-f", "b"], ["--temperature", "-1"], ["--temperature", "hot"],
            ["--top-p", "0"], ["--temperature", "nan"], ["-n", "-1"], ["--seed", "-5"], ["-c", "0"], ["-t", "0"],
            ["--stop", ""], ["--device", "tpu"], ["--quant", "q5"], ["--kv-dtype", "int3"], ["--min-p", "2"],
        ],
    )  # fmt: skip
    def test_2_for_wrong_usage(self, model: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert generate.main(["-m", str(model), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and re.fullmatch(r"pyllama2 generate: [^\n]+\nusage: pyllama2 generate \[[^\n]+\n", err)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (["-m", "missing.bin"], r"pyllama2 generate: .*missing\.bin"),
            (["-m", __file__], "plain text"),
            (["-c", "65"], "between 1 and 64"),
            (["x" * 200], r"do not fit in a context of 64"),
        ],
    )
    def test_1_with_one_sentence(
        self, model: Path, arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert generate.main(["-m", str(model), *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_sentence(err, match)

    @pytest.mark.slow
    def test_no_traceback_from_the_shell(self, tmp_path: Path) -> None:
        result = run("pyllama2.generate", "a", "-m", tmp_path)
        assert result.returncode == 1
        assert_one_sentence(result.stderr.decode(), "no checkpoint")

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        for module in (generate, chat, perplexity, export, quantize):
            assert module.main(["--help"]) == 0
            assert "usage: pyllama2" in capsys.readouterr().out

    def test_wrong_environment(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, value in (("LOG_LEVEL", "loud"), ("NUM_THREADS", "many"), ("DEVICE", "tpu")):
            with monkeypatch.context() as patch:
                patch.setenv(f"PYLLAMA2_{name}", value)
                assert generate.main(["-m", str(model), "-n", "0"]) == 1
            assert_one_sentence(capsys.readouterr().err, value)

    def test_the_log_level(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        generate.main(["-m", str(model), "-n", "0"])
        assert caplog.records == []
        monkeypatch.setenv("PYLLAMA2_LOG_LEVEL", "info")
        generate.main(["-m", str(model), "-n", "0"])
        assert any("using" in record.message for record in caplog.records)

    def test_memory(self, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def greedy(*arguments: Any, **options: Any) -> None:
            raise MemoryError("Unable to allocate 9 TiB")

        monkeypatch.setattr(Llama, "stream", greedy)
        assert generate.main(["a", "-m", str(model)]) == 1
        assert_one_sentence(capsys.readouterr().err, "not enough memory: Unable to allocate 9 TiB")

    @pytest.mark.slow
    def test_a_reader_that_has_seen_enough(self, model: Path) -> None:
        command = (
            f"{sys.executable} -m pyllama2.generate {PROMPT!r} -m {model} -n 40 | head -c 1; exit ${{PIPESTATUS[0]}}"
        )
        result = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
        assert (result.returncode, result.stdout, result.stderr) == (0, PROMPT[:1].encode(), b"")

    @pytest.mark.slow
    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
    def test_output_that_cannot_be_written(self, model: Path) -> None:
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [sys.executable, "-m", "pyllama2.generate", "a", "-m", model, "-n", "2"],
                stdout=full, stderr=subprocess.PIPE, timeout=60,
            )  # fmt: skip
        assert result.returncode == 1
        assert_one_sentence(result.stderr.decode(), "No space left")


class TestSignals:
    def interrupted(self, slow: Path, number: int, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a generation that gets a signal amid its text."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pyllama2.generate", PROMPT, "-m", slow, "-n", "50000", "--seed", "1", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        start = b""
        if "--json" in arguments:
            while b"weight_bytes" not in process.stderr.read(1000):  # with -v, the model is described when it is there
                pass
        else:
            start = process.stdout.read(len(PROMPT) + 5)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        return process.returncode, (start + out).decode(), err.decode()

    @pytest.mark.subprocess
    def test_ctrl_c_keeps_the_text(self, slow: Path) -> None:
        code, out, err = self.interrupted(slow, signal.SIGINT)
        assert code == 130 and out.startswith(PROMPT) and out.endswith("\n") and len(out) > len(PROMPT) + 5
        assert "Traceback" not in err and "tokens/s" in err

    @pytest.mark.subprocess
    def test_ctrl_c_keeps_the_json(self, slow: Path) -> None:
        code, out, err = self.interrupted(slow, signal.SIGINT, "--json", "-v")
        actual = json.loads(out)
        assert code == 130 and actual["finish_reason"] == "cancelled" and "Traceback" not in err
        assert len(actual["token_ids"]) == actual["usage"]["completion_tokens"] > 0

    @pytest.mark.subprocess
    def test_ctrl_c_during_a_long_prompt(self, slow: Path, tmp_path: Path) -> None:
        (tmp_path / "long.txt").write_text("fox " * 20_000)
        process = subprocess.Popen(
            [sys.executable, "-m", "pyllama2.generate", "-f", tmp_path / "long.txt", "-m", slow],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.read(3)  # the prompt is printed before it is computed
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and b"Traceback" not in err

    @pytest.mark.subprocess
    def test_sigterm_ends_quietly(self, slow: Path) -> None:
        code, _, err = self.interrupted(slow, signal.SIGTERM)
        assert code == 143 and err == ""

    @pytest.mark.subprocess
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_an_interrupted_conversion_leaves_nothing(self, slow: Path, tmp_path: Path, number: int) -> None:
        # Standing in for a large model: a progress bar that sends the signal.
        code = (
            "import os, sys\n"
            "from contextlib import nullcontext\n"
            "import pyllama2.export\n"
            f"send = lambda *progress: os.kill(os.getpid(), {int(number)})\n"
            "pyllama2.export.main.__globals__['progress_bar'] = lambda label: nullcontext(send)\n"
            "sys.exit(pyllama2.export.main(sys.argv[1:]))"
        )
        out = tmp_path / "out.bin"
        result = subprocess.run([sys.executable, "-c", code, slow, "-o", out], capture_output=True, timeout=60)
        assert result.returncode == (130 if number == signal.SIGINT else 128 + number)
        assert list(tmp_path.iterdir()) == [] and b"Traceback" not in result.stderr


class TestConversions:
    @pytest.mark.slow
    def test_export_and_quantize(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        half, q4 = tmp_path / "half.bin", tmp_path / "q4.bin"
        flags = ["--dtype", "float16", "--max-seq-len", "32", "--norm-eps", "1e-6"]
        assert export.main([str(model), "-o", str(half), *flags]) == 0
        actual = StoredModel.open(half)
        assert (
            actual.quantization.type == "float16" and actual.config.max_seq_len == 32 and actual.config.norm_eps == 1e-6
        )
        assert (
            quantize.main([str(half), "-o", str(q4), "--type", "q4", "--group-size", "32", "--output-type", "q4"]) == 0
        )
        quantization = StoredModel.open(q4).quantization
        assert (quantization.type, quantization.output_type, quantization.group_size) == ("q4", "q4", 32)
        assert generate.main([PROMPT, "-m", str(q4), "-n", "3"]) == 0
        assert "[" not in capsys.readouterr().err.replace("[INST]", "")  # no bar where there is no terminal

    @pytest.mark.parametrize(
        "arguments",
        [
            ["export"], ["export", "in"], ["export", "in", "-o", "x", "--dtype", "q5"],
            ["export", "in", "-o", "x", "--max-seq-len", "0"], ["quantize", "in", "-o", "x"],
            ["quantize", "in", "-o", "x", "--type", "q5"],
            ["quantize", "in", "-o", "x", "--type", "q8", "--group-size", "5"],
        ],
    )  # fmt: skip
    def test_wrong_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert __main__.main(arguments) == 2
        assert "\nusage: pyllama2 " in capsys.readouterr().err

    def test_output_equal_to_the_input_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_tiny(tmp_path / "m.bin")
        before = path.read_bytes()
        assert quantize.main([str(path), "-o", str(path), "--type", "q8"]) == 1
        assert_one_sentence(capsys.readouterr().err, "choose another name")
        assert export.main([str(path), "-o", str(path)]) == 1
        assert_one_sentence(capsys.readouterr().err, "choose another name")
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    @pytest.mark.slow
    def test_a_progress_bar_on_a_terminal(self, model: Path, tmp_path: Path) -> None:
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "pyllama2.quantize", model, "-o", tmp_path / "o.bin", "--type", "q8"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=60)
        os.close(follower)
        shown = os.read(leader, 10_000).decode()
        os.close(leader)
        assert result.returncode == 0 and result.stdout == b""
        assert "quantize [" in shown and "100%" in shown and shown.endswith("\n")

    @pytest.mark.subprocess
    def test_modules_are_functions_too(self, model: Path, tmp_path: Path) -> None:
        """pyllama2.export is a function and the module of a command line, in whatever order they are imported."""
        code = (
            "import sys, os\n"
            "{first}\n"
            "import pyllama2\n"
            "pyllama2.export(sys.argv[1], sys.argv[2])\n"
            "{second}\n"
            "pyllama2.export(sys.argv[1], sys.argv[2], dtype='float16')\n"
            "pyllama2.quantize(sys.argv[1], sys.argv[2], 'q8')\n"
            "import pyllama2.export, pyllama2.quantize\n"
            "pyllama2.quantize(sys.argv[1], sys.argv[2], 'q4', calibrate=False)\n"
            "assert callable(pyllama2.export.main) and callable(pyllama2.quantize.main)\n"
        )
        for first, second in (
            ("import pyllama2.export", "import pyllama2.quantize"),
            ("", "from pyllama2 import export"),
        ):
            text = code.format(first=first, second=second)
            subprocess.run([sys.executable, "-c", text, model, tmp_path / "o.bin"], check=True, timeout=60)


class TestChat:
    def arguments(self, path: Path, *more: str) -> list[str]:
        return ["-m", str(path), "-n", "5", "--seed", "2", *more]

    def answer(self, path: Path, *texts: str, system: str | None = None) -> str:
        """What the model answers to the last of the texts: questions and answers in turn."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
        with Llama(path) as llm:
            return llm.chat(messages, seed=2, max_tokens=5).text

    def test_a_single_turn(self, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert chat.main(self.arguments(chat_model, "-p", "What is it?", "-s", "Be nice.", "--single-turn")) == 0
        assert capsys.readouterr().out == self.answer(chat_model, "What is it?", system="Be nice.") + "\n"

    @pytest.mark.subprocess
    def test_lines_are_messages_and_answers_are_remembered(self, chat_model: Path) -> None:
        first = self.answer(chat_model, "What?")
        second = self.answer(chat_model, "What?", first, "Who?")
        third = self.answer(chat_model, "Where?")
        for lines in ("What?\n\nWho?\n/clear\nWhere?\n/exit\nnot read\n", "What?\n  Who? \n/clear\nWhere?"):
            result = run("pyllama2.chat", *self.arguments(chat_model), input=lines.encode())
            assert result.returncode == 0
            assert result.stdout.decode() == f"{first}\n{second}\n{third}\n"
        result = run("pyllama2.chat", *self.arguments(chat_model, "-p", "What?"), input=b"Who?\n")
        assert result.stdout.decode() == f"{first}\n{second}\n"

    def test_a_cut_answer_is_said_to_be_cut(self, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert chat.main(self.arguments(chat_model, "-p", "a", "--single-turn", "-v")) == 0
        error = capsys.readouterr().err
        assert "cut after 5 tokens" in error and "GB/s" in error

    def test_template(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert chat.main(self.arguments(model, "-p", "a", "--single-turn", "--template", "llama2")) == 0
        assert chat.main(self.arguments(model, "-p", "a", "--template", "nope")) == 2
        capsys.readouterr()
        without = write_tiny(tmp_path / "m.bin", "bpe")
        assert chat.main(self.arguments(without, "-p", "a", "--single-turn")) == 1
        assert_one_sentence(capsys.readouterr().err, "choose a chat format: llama2")

    @pytest.mark.subprocess
    def test_a_message_that_is_too_long(self, chat_model: Path) -> None:
        """The next one is answered; the exit code tells a script that one was not."""
        result = run("pyllama2.chat", *self.arguments(chat_model), input=b"fox " * 300 + b"\nWho?\n")
        assert result.returncode == 1 and result.stdout.decode() == self.answer(chat_model, "Who?") + "\n"
        assert_one_sentence(result.stderr.decode().partition("(the answer")[0], "do not fit in a context of 200")

    @pytest.mark.subprocess
    def test_at_a_terminal(self, chat_model: Path) -> None:
        """A refused message is said to be so, and the next one is answered; the prompt sign asks for it."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "pyllama2.chat", *self.arguments(chat_model)],
            stdin=follower, stdout=follower, stderr=follower, env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(follower)
        try:
            until_prompt(leader)
            os.write(leader, b"fox " * 200 + b"\n")
            assert "/clear starts again" in until_prompt(leader)
            os.write(leader, b"Who?\n")
            assert self.answer(chat_model, "Who?").strip()[:3] in until_prompt(leader)
            os.write(leader, b"\x04")
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()
            os.close(leader)


def until_prompt(terminal: int) -> str:
    """What a terminal shows up to the next prompt sign at the beginning of a line. Fails after some seconds."""
    shown = ""
    deadline = time.monotonic() + 30
    while not re.search(r"(^|\n)(\x1b\[[^a-zA-Z]*[a-zA-Z])*> $", shown):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, shown
        shown += os.read(terminal, 10_000).decode()
    return shown


class TestConsoleScript:
    def test_subcommands(self, model: Path, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert __main__.main(["generate", PROMPT, "-m", str(model), *GREEDY]) == 0
        assert capsys.readouterr().out == PROMPT + expected + "\n"

    def test_help_version_and_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert __main__.main(["--help"]) == 0
        assert "generate" in capsys.readouterr().out
        assert __main__.main(["--version"]) == 0
        assert capsys.readouterr().out == f"pyllama2 {pyllama2.__version__}\n"
        for arguments in ([], ["nonsense"]):
            assert __main__.main(arguments) == 2
            out, err = capsys.readouterr()
            assert out == "" and all(name in err for name in ("usage", *__main__.COMMANDS))

    def test_as_a_module(self) -> None:
        assert run("pyllama2", "--version").stdout.startswith(b"pyllama2 ")
