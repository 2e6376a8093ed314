"""The program pyllama2: what it says about wrong commands and flags, its help, completions and start."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_llama import write_tiny

import pyllama2
from pyllama2.cli import other_names
from pyllama2.cli.program import COMMANDS, main, make_parser
from pyllama2.cli.running import run_guarded

ROOT = Path(__file__).parents[2]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = importlib.import_module(f"pyllama2.{command}").make_parser()
    return parser


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence about wrong arguments, which stands before one line of usage."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    sentence, usage, rest = err.split("\n")
    assert out == rest == "" and usage.startswith("usage: pyllama2 ") and usage.endswith("; --help lists the flags")
    return sentence


@pytest.mark.parametrize(
    ("error", "sentence"), [(OSError("a reason"), "x: a reason\n"), (OSError(2, "gone", "a"), "x: a: gone\n")]
)
def test_an_error_of_the_system_is_told(error: OSError, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    assert run_guarded("x", work) == 1 and capsys.readouterr().err == sentence


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (["genrate", "x"], "did you mean generate?"),
            (["quantise"], "did you mean quantize?"),
            (["run", "smollm2"], "did you mean chat?"),
            (["-m", "smollm2", "chat"], "pyllama2 chat -m smollm2"),
            (["Once upon a time"], "pyllama2 generate 'Once upon a time'"),
            (["Once", "upon", "a", "time"], "a command comes first: pyllama2 generate 'Once upon a time'"),
            (["GENERATE", "x"], "did you mean generate?"),
            (["quant", "x"], "did you mean quantize?"),
            (["model.gguf"], "pyllama2 chat -m model.gguf"),
            (["--nonsense"], "there is no flag --nonsense"),
            (["generate", "Once", "upon", "it's"], """pyllama2 generate 'Once upon it'"'"'s'"""),
            (["generate", "--temprature=3"], "did you mean --temperature?"),
            (["generate", "-ngl", "99"], "did you mean --n-gpu-layers?"),
            (["generate", "--n-predict=5"], "did you mean --max-tokens?"),
            (["chat", "smollm2"], "-m smollm2 names a model"),
            (["chat", "-sys", "Be brief."], "there is no flag -sys; did you mean --system?"),
            (
                ["generate", "-p", "Once"],
                "there is no flag -p: it is a word without one, as in pyllama2 generate [PROMPT]",
            ),
            (["generate", "--prompt=Once"], "there is no flag --prompt: it is a word without one"),
            (
                ["export", "-m", "demo", "-o", "x"],
                "no flag -m: it is a word without one, as in pyllama2 export CHECKPOINT",
            ),
            (["inspect", "a", "b"], "one argument too many: b"),
            (["serve", "smollm2"], "one argument too many: smollm2; -m smollm2 names a model"),
            (["generate", "\x1b[2J\n", "b"], r"\x1b[2J\n"),
        ],
    )
    def test_it_says_what_to_type(self, arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert hint in wrong(capsys, *arguments)

    def test_a_word_that_is_like_no_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert all(name in wrong(capsys, "frobnicate") for name in COMMANDS)

    def test_usage_names_what_must_be_given(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export"]) == 2
        assert "usage: pyllama2 export CHECKPOINT -o OUT [FLAGS]" in capsys.readouterr().err

    def test_after_two_hyphens_nothing_is_a_flag(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "-m", str(write_tiny(tmp_path / "m.bin")), "-n", "0", "--", "-ngl"]) == 0
        assert capsys.readouterr().out == "-ngl\n"

    def test_names_of_other_programs_lead_to_what_there_is(self) -> None:
        flags = {flag for name in COMMANDS for flag in parser_of(name)._option_string_actions}
        assert {ours.split()[0] for ours in other_names.COMMANDS.values()} <= COMMANDS.keys()
        assert {ours.split()[0] for ours in other_names.FLAGS.values()} <= flags
        assert not flags & other_names.FLAGS.keys() and not COMMANDS.keys() & other_names.COMMANDS.keys()


class TestEnvironment:
    def test_the_variable_that_names_the_model(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PYLLAMA2_MODEL", "nowhere.bin")
        for command in ("generate", "inspect", "bench"):
            assert main([command]) == 1
            err = capsys.readouterr().err
            assert "nowhere.bin" in err and "PYLLAMA2_MODEL" in err and err.count("\n") == 1
            assert main([command, "-m", "elsewhere.bin"]) == 1
            assert "PYLLAMA2_MODEL" not in capsys.readouterr().err

    def test_too_many_threads(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "a", "-m", str(write_tiny(tmp_path / "m.bin")), "-n", "1", "-t", "1000"]) == 0
        assert "1000 threads are more than the " in capsys.readouterr().err


class TestHelp:
    def test_the_program_lists_all_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out and summary in out for name, summary in COMMANDS.items())
        assert main(["help", "chat"]) == main(["chat", "--help"]) == 0
        first, second = capsys.readouterr().out.split("usage: ")[1:]
        assert first == second

    @pytest.mark.parametrize("command", COMMANDS)
    def test_it_fits_in_80_columns(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for columns in ("80", "60"):
            monkeypatch.setenv("COLUMNS", columns)
            lines = parser_of(command).format_help().splitlines()
            assert [line for line in lines if len(line) >= 80] == []

    @pytest.mark.parametrize("command", COMMANDS)
    def test_defaults_are_shown(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        parser = parser_of(command)
        text = " ".join(parser.format_help().split())
        for action in parser._actions:
            if repr(action.default) not in ("None", "False", "[]", repr(argparse.SUPPRESS)):
                assert f"{action.help} (default: {action.default})" in text or "default" in str(action.help)


class TestCompletion:
    @pytest.mark.subprocess
    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_the_script_is_one(self, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--print-completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in COMMANDS) and "--temperature" in script
        if shutil.which(shell) is not None:
            subprocess.run([shell, "-n"], input=script, text=True, check=True)

    @pytest.mark.subprocess
    @pytest.mark.parametrize(
        ("line", "expected"),
        [("pyllama2 gen", "generate"), ("pyllama2 chat --dev", "--device"), ("pyllama2 chat --device c", "cuda")],
    )
    def test_bash_completes(self, line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--print-completion", "bash"]) == 0
        words = line.split()
        ask = (
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
            '_shtab_pyllama2 pyllama2 "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        script = capsys.readouterr().out + ask
        result = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60)
        assert expected in result.stdout.split(), result

    def test_without_shtab(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setitem(sys.modules, "shtab", None)
        assert main(["--print-completion", "bash"]) == 1
        assert 'pip install "pyllama2[cli]"' in capsys.readouterr().err


class TestStart:
    @pytest.mark.subprocess
    def test_the_version_needs_no_numpy(self) -> None:
        code = (
            "import sys; from pyllama2.__main__ import main; main(['--version']); main(['genrate'])\n"
            "assert 'numpy' not in sys.modules and 'pyllama2.llama' not in sys.modules"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert (result.returncode, result.stdout) == (0, f"pyllama2 {pyllama2.__version__}\n"), result.stderr

    def test_names_come_when_they_are_used(self) -> None:
        assert set(pyllama2.__all__) <= set(dir(pyllama2))
        assert all(getattr(pyllama2, name) is not None for name in pyllama2.__all__)
        with pytest.raises(AttributeError, match="no attribute 'Lama'"):
            _ = pyllama2.Lama  # type: ignore[attr-defined]

    @pytest.mark.subprocess
    @pytest.mark.parametrize("ends", ["", "except KeyboardInterrupt: raise ImportError('numpy cannot be imported')"])
    @pytest.mark.parametrize("program", [["pyllama2", "generate"], ["pyllama2.generate"]])
    def test_ctrl_c_while_it_imports(self, program: list[str], ends: str, tmp_path: Path) -> None:
        """A module that is imported early, and takes long, stands for a slow disk. numpy makes another error of it."""
        wait = "print('importing', flush=True)\n    import time\n    time.sleep(30)\n"
        (tmp_path / "numpy.py").write_text(f"try:\n    {wait}{ends or 'finally: pass'}\n")
        process = subprocess.Popen(
            [sys.executable, "-m", *program, "Once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "\n")

    def test_one_parser_has_all_commands(self) -> None:
        parser = make_parser(filled=True)
        args = parser.parse_args(["quantize", "in", "-o", "out", "--type", "q8"])
        assert (args.command, args.source, args.type) == ("quantize", "in", "q8")
