"""What workers on other machines are given, told without a cluster."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyllama2.batches.identity import identity_of
from pyllama2.batches.ray_workers import SharedModel, cpus_and_workers


def cluster(*cpus: int) -> Any:
    nodes = [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in cpus]
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("cpus", "n_threads", "expected"),
    [((8, 16), None, (8, 3)), ((8, 16), 5, (5, 4)), ((0, 4), None, (4, 1)), ((0,), 4, (4, 1)), ((), None, (1, 1))],
)
def test_workers_fill_the_cluster(cpus: tuple[int, ...], n_threads: int | None, expected: tuple[int, int]) -> None:
    assert cpus_and_workers(cluster(*cpus), n_threads) == expected


def test_a_worker_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="17 threads fits on no machine of the cluster: they have at most 16 CPUs"):
        cpus_and_workers(cluster(8, 16), 17)


def test_a_copy_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda piece: piece))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "model.bin"
    path.write_bytes(b"old model")
    assert SharedModel(str(path), identity_of(str(path))).local() == str(path)
    first = Path(SharedModel(str(path), "another", "1" * 64, (b"new ", b"model")).local())
    assert first.read_bytes() == b"new model"
    other = first.with_name("2" * 16 + "-other.bin")
    other.write_bytes(b"")
    second = Path(SharedModel(str(path), "another", "3" * 64, (b"newer",)).local())
    assert second.read_bytes() == b"newer" and sorted(first.parent.iterdir()) == [other, second]


def test_an_identity_is_that_of_the_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(3 << 20))
        (tmp_path / name / "config").write_bytes(b"x")
    (tmp_path / "a" / ".hidden").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("a", "b", "a/weights", "b/weights", "a/config", "no", "a/none")]
    one, two, weights, same, config, missing, none = map(identity_of, paths)
    assert one == two and weights == same and missing == none
    assert len({one, weights, config, missing}) == 4
    with (tmp_path / "b" / "weights").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert identity_of(paths[1]) != one and identity_of(paths[3]) != weights
