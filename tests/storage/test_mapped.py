"""Mapped files: views, and what becomes of them when the file changes while it is in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.foreign import llama2c_bytes, write_huggingface
from helpers.tiny import GQA, random_weights
from helpers.tiny_llama import PROMPT, same, write_tiny

from pyllama2 import CheckpointError, ClosedError, Llama, export, quantize
from pyllama2.storage.mapped import MappedFile, files_under
from pyllama2.storage.mapping import Mapping

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of four pages: 0 1 2 ... of int32."""
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(PAGE, dtype=np.int32).tobytes())
    return path


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of its own: what ends by a signal must not end the tests. A sanitizer is not to catch that signal."""
    environment = os.environ | {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":handle_sigbus=0"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def uses_of(path: Path) -> tuple[int, int]:
    """How often a file is mapped and open here."""
    descriptors = Path("/proc/self/fd").iterdir()
    n_open = sum(os.path.exists(link) and os.path.samefile(link, path) for link in descriptors)
    return Path("/proc/self/maps").read_text().count(str(path)), n_open


class TestViews:
    def test_show_the_file(self, path: Path) -> None:
        with MappedFile(path) as file:
            assert file.size == 4 * PAGE and file.bytes(4, 8) == np.array([1, 2], np.int32).tobytes()
            view = file.array(8, np.int32, (3, 2))
            assert view.tolist() == [[2, 3], [4, 5], [6, 7]] and not view.flags.writeable
            file.release(0, file.size)
            file.release_view(view)
            assert view.tolist() == [[2, 3], [4, 5], [6, 7]]
            assert file.array(file.size, np.int32, (0, 5)).shape == (0, 5)

    def test_end_where_the_file_ends(self, path: Path) -> None:
        with MappedFile(path) as file:
            for offset, length in ((-1, 1), (0, -1), (4 * PAGE, 1), (1 << 62, 1 << 62)):
                with pytest.raises(CheckpointError, match="truncated"):
                    file.bytes(offset, length)
            with pytest.raises(CheckpointError, match="truncated"):
                file.array(4, np.int32, (PAGE,))

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc")
    def test_keep_the_file_mapped(self, path: Path) -> None:
        file = MappedFile(path)
        view = file.array(0, np.int32, (PAGE,))[5:7]
        file.close()
        del file
        assert view.tolist() == [5, 6] and uses_of(path) == (1, 1)
        del view
        assert uses_of(path) == (0, 0)
        closed = MappedFile(path)
        closed.close()
        assert uses_of(path) == (0, 0)
        for use in (lambda: closed.bytes(0, 1), lambda: closed.array(0, np.int32, (4,)), closed.check):
            with pytest.raises(ClosedError, match="the file is closed"):
                use()

    def test_lead_back_to_their_files(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "more").write_bytes(path.read_bytes())
        first, second = MappedFile(path), MappedFile(tmp_path / "more")
        views = [file.array(0, np.int32, (8, 4)) for file in (first, second, first)]
        strided = np.lib.stride_tricks.as_strided(views[0], (2, 2), (16, 4), writeable=False)
        assert files_under([views[0][1:].view(np.int8).T]) == files_under([strided]) == [first]
        assert files_under(views) == [first, second] and files_under([views[0].copy(), np.zeros(3)]) == []

    def test_of_what_cannot_be_mapped(self, path: Path) -> None:
        with pytest.raises(OSError), open(path, "wb") as file:
            Mapping(file.fileno(), 10)  # not open for reading
        with pytest.raises(CheckpointError, match="is empty"):
            MappedFile(path)


class TestChanges:
    def test_none(self, path: Path) -> None:
        with MappedFile(path) as file:
            path.chmod(0o400)
            path.rename(path.with_name("other"))
            path.write_bytes(b"another file")
            file.check()
            path.with_name("other").unlink()
            file.check()
            assert file.array(0, np.int32, (PAGE,))[-1] == PAGE - 1

    def test_of_its_size(self, path: Path) -> None:
        with MappedFile(path) as file:
            os.truncate(path, 4 * PAGE + 1)
            with pytest.raises(
                CheckpointError, match=r"numbers changed .* had 16384 bytes and has 16385; load it again"
            ):
                file.check()

    def test_of_its_bytes(self, path: Path) -> None:
        os.utime(path, ns=(0, 0))
        with MappedFile(path) as file, open(path, "r+b") as other:
            other.write(b"1234")
            other.flush()
            with pytest.raises(CheckpointError, match="it was written to; load it again"):
                file.check()
            with pytest.raises(CheckpointError, match="it was written to"):
                file.release(0, 10)

    def test_bytes_that_are_gone(self, path: Path) -> None:
        """In a program of its own, which the system would end."""
        code = (
            "import os, sys\nfrom pyllama2.storage.mapped import MappedFile\n"
            "file = MappedFile(sys.argv[1]); view = file.array(0, 'i4', (4096,)); os.truncate(sys.argv[1], 4096)\n"
            "print(view[1023], file.damaged, view[2048:2051], view[1500], file.damaged, view[1023])\n"
            "with open(sys.argv[1], 'ab') as more: more.write(bytes(3 * 4096))\n"
            "os.utime(sys.argv[1], ns=(0, file._written))\n"
            "for call in (file.check, lambda: file.bytes(0, 1), lambda: file.release(0, 1)):\n"
            "    try: call()\n    except Exception as error: print(error)\n"
        )
        result = run(code, path)
        assert result.returncode == 0, result.stderr
        first, *others = result.stdout.splitlines()
        assert first == "1023 False [0 0 0] 0 True 1023"
        assert len(others) == 3 and set(others) == {
            f"{path} changed while it was in use: it could not be read from its disk; load it again"
        }


class TestOtherBusErrors:
    """They go where they would have gone without this package."""

    START = (
        "import faulthandler, mmap, os, signal, sys\nfrom pyllama2.storage.mapped import MappedFile\n"
        "def touch():\n"
        "    file = open(sys.argv[1], 'r+b'); other = mmap.mmap(file.fileno(), 0); os.truncate(sys.argv[1], 0)\n"
        "    sys.stdout.flush(); other[0]\n"
    )
    OPEN = "import shutil; shutil.copy(sys.argv[1], sys.argv[1] + '2'); mine = MappedFile(sys.argv[1] + '2')\n"

    @pytest.mark.subprocess
    @pytest.mark.parametrize("end", ["touch()", "os.kill(os.getpid(), signal.SIGBUS)"])
    @pytest.mark.parametrize("traced", [False, True])
    def test_end_the_process(self, path: Path, end: str, traced: bool) -> None:
        before = "faulthandler.enable()\n" if traced else ""
        result = run(self.START + before + self.OPEN + end, path)
        assert result.returncode == -signal.SIGBUS
        assert ("Fatal Python error: Bus error" in result.stderr) == traced

    @pytest.mark.subprocess
    def test_reach_a_handler_of_the_user(self, path: Path) -> None:
        install = "signal.signal(signal.SIGBUS, lambda number, frame: print('came', number))\n"
        send = "os.kill(os.getpid(), signal.SIGBUS); os.kill(os.getpid(), signal.SIGBUS)\n"
        for code in (install + self.OPEN + send, self.OPEN + install + send):
            result = run(self.START + code, path)
            assert result.returncode == 0 and result.stdout.split() == ["came", str(int(signal.SIGBUS))] * 2
        result = run(self.START + "signal.signal(signal.SIGBUS, signal.SIG_IGN)\n" + self.OPEN + send, path)
        assert result.returncode == 0

    def test_addresses_that_were_guarded(self, path: Path) -> None:
        """A mapping that takes the place of one of ours is not taken for it."""
        code = self.START + self.OPEN + "del mine\nfor _ in range(5): MappedFile(sys.argv[1] + '2').close()\ntouch()"
        assert run(code, path).returncode == -signal.SIGBUS


class TestModels:
    """A model whose file changes while it is in use."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return write_tiny(tmp_path / "model.bin", weight_type="q8", vocab_size=2000, max_seq_len=2000)

    @pytest.mark.subprocess
    @pytest.mark.parametrize("n_threads", [1, 2])
    def test_truncated_during_a_generation(self, model: Path, n_threads: int) -> None:
        """By another thread, in a program of its own, at another moment each time."""
        code = (
            "import os, shutil, sys, threading, time, pyllama2\n"
            "path, data = sys.argv[1], open(sys.argv[1], 'rb').read()\n"
            "for i in range(8):\n"
            "    open(path, 'wb').write(data)\n"
            "    with pyllama2.Llama(path, n_threads=int(sys.argv[2])) as llm:\n"
            "        stream = llm.stream([1, 5], max_tokens=1500, ignore_eos=True, seed=1); next(stream)\n"
            "        def cut(): time.sleep(i / 1000); os.truncate(path, 4096)\n"
            "        thread = threading.Thread(target=cut); thread.start()\n"
            "        try:\n"
            "            for chunk in stream: pass\n"
            "        except pyllama2.CheckpointError as error: print(error)\n"
            "        thread.join()\n"
            "        for call in (lambda: llm.generate([1, 6]), lambda: llm.score([1, 6]), lambda: llm.logits([1]),\n"
            "                     lambda: llm.save_state(path + '.state')):\n"
            "            try: call()\n"
            "            except pyllama2.CheckpointError as error: print(error)\n"
            "        assert not os.path.exists(path + '.state')\n"
        )
        size = model.stat().st_size
        result = run(code, model, n_threads)
        assert result.returncode == 0, result.stderr
        what = f"it had {size} bytes and has 4096; load it again"
        assert result.stdout.splitlines() == [f"{model} changed while it was in use: {what}"] * 40

    def test_every_caller_is_told(self, model: Path) -> None:
        with Llama(model) as llm:
            streams = [llm.stream([1, i], max_tokens=20, ignore_eos=True) for i in (5, 6, 7)]
            for stream in streams:
                next(stream)
            os.truncate(model, 4096)
            for stream in streams:
                with pytest.raises(CheckpointError, match="load it again"):
                    for _ in stream:
                        pass
                assert stream.completion.finish_reason == "cancelled"

    def test_of_foreign_formats(self, tmp_path: Path) -> None:
        """Whose numbers are used where they lie, too."""
        weights = random_weights(GQA)
        write_huggingface(tmp_path, GQA, weights)
        (tmp_path / "model.bin").write_bytes(llama2c_bytes(GQA, weights, 0))
        for path, file in ((tmp_path, "model.safetensors"), (tmp_path / "model.bin", "model.bin")):
            with Llama(path) as llm:
                llm.score([1, 5, 6])
                os.truncate(tmp_path / file, 4096)
                with pytest.raises(CheckpointError, match=rf"{file} changed while it was in use"):
                    llm.score([1, 5, 6])

    def test_copied_over(self, model: Path, tmp_path: Path) -> None:
        """As `cp` does: another model of the same size."""
        with Llama(model) as llm:
            llm.generate(PROMPT, max_tokens=2)
            os.utime(model, ns=(0, 0))
            model.write_bytes(model.read_bytes())
            with pytest.raises(CheckpointError, match="was written to; load it again"):
                llm.generate(PROMPT, max_tokens=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("write", [export, lambda source, out: quantize(source, out, "q4")])
    def test_replaced_by_our_own_tools(self, tmp_path: Path, write: Any) -> None:
        model = write_tiny(tmp_path / "model.bin")
        other = write_tiny(tmp_path / "other.bin", rope_theta=20_000.0)
        with Llama(model) as llm:
            expected = llm.generate(PROMPT, seed=1)
            write(other, model)
            assert same(llm.generate(PROMPT, seed=1), expected)
            llm.save_state(model)  # of all names
            assert same(llm.generate(PROMPT, seed=1), expected)

    def test_truncated_while_it_is_converted(self, tmp_path: Path) -> None:
        model = write_tiny(tmp_path / "model.bin")

        def cut(done: int, total: int, name: str) -> None:
            os.truncate(model, 4096)

        for work in (
            lambda: export(model, tmp_path / "out", dtype="float16", progress=cut),
            lambda: quantize(model, tmp_path / "out", "q8", progress=cut),
            lambda: Llama(model, quant="q8", progress=cut),
        ):
            write_tiny(model)
            with pytest.raises(CheckpointError, match=r"changed while it was in use"):
                work()
            assert os.listdir(tmp_path) == ["model.bin"]

    def test_one_that_is_not_read_any_more(self, model: Path) -> None:
        """Once it was converted to 8 bits in memory."""
        unquantized = write_tiny(model.with_name("float.bin"))
        with Llama(unquantized, quant="q8") as llm:
            expected = llm.generate(PROMPT, seed=1)
            os.truncate(unquantized, 0)
            assert same(llm.generate(PROMPT, seed=1), expected)
