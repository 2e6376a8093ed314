"""The file of results: whole lines, each once, whatever has happened to the process before."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from pyllama2.batches.results import Results
from pyllama2.errors import CheckpointError


def line_of(results: Results, number: int) -> bytes:
    return json.dumps({"id": results.id_of(number, b"x"), "text": "y"}, separators=(",", ":")).encode() + b"\n"


def write(path: Path, *numbers: int) -> None:
    with Results(str(path), 9, "recipe") as results:
        for number in numbers:
            results.add(number, b"x", line_of(results, number))


def test_what_is_there_is_known(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 3, 1)
    with Results(str(path), 9, "recipe") as results:
        assert results.n_before == 2
        assert [results.has(n, b"x") for n in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_without_its_end_is_removed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    write(path, 2)
    assert path.read_bytes() == whole


def test_another_source_or_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 1)
    with Results(str(path), 9, "recipe") as results, pytest.raises(CheckpointError, match="line 1"):
        results.has(1, b"other")
    with Results(str(path), 9, "another") as results, pytest.raises(CheckpointError, match="-o"):
        results.has(1, b"x")


def test_a_request_that_was_added_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Results(str(path), 9, "recipe") as results, pytest.raises(CheckpointError, match="request 10 was added"):
        results.has(10, b"x")


@pytest.mark.parametrize("text", [b"hello\n", b'{"id":"batch_req_10_0123456789abcdef",}\n', b"\0" * 20 + b"\n"])
def test_another_file_is_left_as_it_is(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 1)
    before = path.read_bytes() + text + b"x"
    path.write_bytes(before)
    with pytest.raises(CheckpointError, match=r"line 2 of .* is not a result"):
        Results(str(path), 9, "recipe")
    assert path.read_bytes() == before


def test_a_result_that_comes_twice_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 1)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(CheckpointError, match="line 2"):
        Results(str(path), 9, "recipe")


def test_one_process_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "results.jsonl")
    with Results(path, 9, "recipe"), pytest.raises(CheckpointError, match="another process"):
        Results(path, 9, "recipe")
    Results(path, 9, "recipe").__exit__(None, None, None)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    write(path, 1)
    before = path.read_bytes()
    pwrite = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[:10], offset)

    with Results(str(path), 9, "recipe") as results:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            results.add(2, b"x", line_of(results, 2))
        assert path.read_bytes() == before and not results.has(2, b"x")
        monkeypatch.undo()
        results.add(2, b"x", line_of(results, 2))
    assert len(path.read_bytes().splitlines()) == 2
