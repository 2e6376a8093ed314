"""Files that appear whole or not at all, whatever comes between."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.forced_signals import at_each_line
from helpers.tiny_llama import PROMPTS, same, write_tiny

from pyllama2 import CheckpointError, Llama, convert, llama
from pyllama2.cli import conversation
from pyllama2.cli.conversation import read_messages, write_messages
from pyllama2.generation import saved_sequences as state
from pyllama2.generation import scheduler
from pyllama2.process.interrupts import Interrupts
from pyllama2.storage import model_file as modelfile
from pyllama2.storage import new_file
from pyllama2.storage.new_file import NewFile

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, data: bytes = b"new") -> None:
    with Interrupts() as interrupts, NewFile(path, interrupts) as file, interrupts.allowed():
        file.write(data)


class TestWritten:
    def test_replaces_another_whose_users_keep_it(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old one")
        with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with NewFile(path) as file:
                file.write(b"ab")
                file.fill_to(4)
                file.write(memoryview(b"c"))
                assert path.read_bytes() == b"old one"
            assert mapped[:] == opened.read() == b"old one"
        assert path.read_bytes() == b"ab\0\0c" and os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_has_the_permissions_of_new_files(self, tmp_path: Path, mask: int) -> None:
        (tmp_path / "file").touch(0o600)
        before = os.umask(mask)
        try:
            write(tmp_path / "file")
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask

    @pytest.mark.parametrize(
        "name",
        ["n" * 255, "\u00fc" * 127, "\U0001f999" * 63, os.fsdecode(b"\xff" * 255), "-"],
        ids=["ASCII", "two bytes", "four bytes", "not UTF-8", "a dash"],
    )
    def test_names_of_all_kinds(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name)
        assert os.listdir(tmp_path) == [name]

    def test_in_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(Path("file"))
        assert (tmp_path / "file").read_bytes() == b"new"

    def test_replaces_a_link_and_not_what_it_leads_to(self, tmp_path: Path) -> None:
        (tmp_path / "far").write_bytes(b"far")
        (tmp_path / "link").symlink_to("far")
        write(tmp_path / "link")
        assert (tmp_path / "link").read_bytes() == b"new" and (tmp_path / "far").read_bytes() == b"far"
        (tmp_path / "broken").symlink_to("nowhere")
        write(tmp_path / "broken")
        assert sorted(os.listdir(tmp_path)) == ["broken", "far", "link"]

    def test_is_on_the_disk_before_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        steps: list[str] = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
        monkeypatch.setattr(os, "replace", lambda *names: (steps.append("replace"), replace(*names)))
        write(tmp_path / "file", b"x" * 100_000)
        assert steps == ["fsync", "replace"] and (tmp_path / "file").stat().st_size == 100_000


class TestRefused:
    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for path, match in ((tmp_path, "is a directory"), (tmp_path / "fifo", "special file")):
            with pytest.raises(CheckpointError, match=match):
                write(path)
        assert (tmp_path / "fifo").is_fifo() and os.listdir(tmp_path) == ["fifo"]

    def test_names_that_cannot_be(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no" / "file", tmp_path / "a\0b", tmp_path / ("n" * 300), Path("/proc/version")):
            with pytest.raises(CheckpointError):
                write(path)
        assert os.listdir(tmp_path) == []

    def test_errors_at_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        (tmp_path / "file").write_bytes(b"old")
        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
                patch.setattr(os, name, full)
                write(tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


class TestLeftovers:
    def test_are_in_nobodys_way(self, tmp_path: Path) -> None:
        """Of a process that was killed, and had the same number."""
        (tmp_path / f".file.{os.getpid()}.part").write_bytes(b"left")
        write(tmp_path / "file")
        write(tmp_path / "file")
        assert sorted(os.listdir(tmp_path)) == [f".file.{os.getpid()}.part", "file"]

    def test_several_at_once(self, tmp_path: Path) -> None:
        with NewFile(tmp_path / "file") as first, NewFile(tmp_path / "file") as second:
            first.write(b"1")
            second.write(b"2")
        assert (tmp_path / "file").read_bytes() == b"1" and os.listdir(tmp_path) == ["file"]


def never_left(folder: Path, target: Path, work: Callable[[], object], files: set[str | None], step: int = 1) -> None:
    """Whenever Ctrl-C comes, target is old or whole, and there is nothing else."""
    old = target.read_bytes()
    work()
    new = target.read_bytes()
    target.write_bytes(old)
    names = sorted(os.listdir(folder))
    n_raised = 0
    for raised in at_each_line(work, files, step):
        assert type(raised) is KeyboardInterrupt
        assert sorted(os.listdir(folder)) == names
        assert target.read_bytes() in (old, new)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        target.write_bytes(old)
        n_raised += 1
    assert n_raised > 15 and target.read_bytes() == new


class TestCtrlC:
    """At each line that is run."""

    def test_while_a_file_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        never_left(tmp_path, tmp_path / "file", lambda: write(tmp_path / "file"), {__file__, new_file.__file__})

    def test_while_messages_are_written(self, tmp_path: Path) -> None:
        path = tmp_path / "chat.json"
        write_messages(str(path), [])
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        files = {new_file.__file__, conversation.__file__, os.path.realpath.__code__.co_filename}
        never_left(tmp_path, path, lambda: write_messages(str(path), turns), files, step=3)
        assert read_messages(str(path)) == turns

    def test_while_a_model_is_written(self, tmp_path: Path) -> None:
        source = write_tiny(tmp_path / "source", n_layers=1)
        (tmp_path / "model").write_bytes(b"old")
        files = {new_file.__file__, modelfile.__file__, convert.__file__, contextlib.__file__}
        work = lambda: convert.export(source, tmp_path / "model", dtype="float16")  # noqa: E731
        never_left(tmp_path, tmp_path / "model", work, files, step=17)

    @pytest.mark.slow
    def test_while_a_state_is_saved(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_bytes(b"old")
        files = {new_file.__file__, llama.__file__, scheduler.__file__, state.__file__, contextlib.__file__}
        with Llama(write_tiny(tmp_path / "model")) as llm:
            expected = llm.generate(PROMPTS, seed=1, max_tokens=3)
            never_left(tmp_path, tmp_path / "state", lambda: llm.save_state(tmp_path / "state"), files, step=3)
            assert llm._scheduler._driver is None
            assert all(map(same, llm.generate(PROMPTS, seed=1, max_tokens=3), expected))

    @pytest.mark.slow
    def test_while_a_state_is_loaded(self, tmp_path: Path) -> None:
        files = {llama.__file__, scheduler.__file__, state.__file__, contextlib.__file__}
        path = write_tiny(tmp_path / "model")
        with Llama(path) as llm, Llama(path) as other:
            expected = llm.generate(PROMPTS, seed=1, max_tokens=3)
            llm.save_state(tmp_path / "state")
            for raised in at_each_line(lambda: other.load_state(tmp_path / "state"), files, step=7):
                assert type(raised) is KeyboardInterrupt and other._scheduler._driver is None
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert all(map(same, other.generate(PROMPTS, seed=1, max_tokens=3), expected))


def test_numbers_of_any_buffer(tmp_path: Path) -> None:
    write(tmp_path / "file", np.arange(3, dtype=np.int16).data.cast("B"))
    assert (tmp_path / "file").read_bytes() == b"\0\0\1\0\2\0"
