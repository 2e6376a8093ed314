"""GGUF models that are cut into several files."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_files import gguf_name, model_keys, write_gguf
from helpers.tiny import GQA, random_weights

from pyllama2.checkpoint import open_checkpoint
from pyllama2.errors import CheckpointError

WEIGHTS = random_weights(GQA)


def write_parts(folder: Path, n_parts: int = 3, **changes: Any) -> list[Path]:
    """A model in parts, the tensors dealt out in turn. changes: keys of the second part."""
    tensors = {gguf_name(name): array for name, array in WEIGHTS.items()}
    paths = []
    for i in range(n_parts):
        keys = {"split.no": i, "split.count": n_parts, "split.tensors.count": len(tensors)}
        keys |= {f"split.{name}": value for name, value in changes.items() if i == 1}
        some = {name: tensors[name] for name in list(tensors)[i::n_parts]}
        path = folder / f"m-{i + 1:05}-of-{n_parts:05}.gguf"
        paths.append(write_gguf(path, some, (model_keys(GQA) if i == 0 else {}) | keys))
    return paths


def test_any_part_opens_the_model(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    for path in paths:
        with closing(open_checkpoint(path)) as checkpoint:
            assert checkpoint.config == GQA and checkpoint.files == [str(path) for path in paths]
            for name, _, tensor in checkpoint.tensors():
                assert np.array_equal(tensor.read(), WEIGHTS[name])


def test_one_part_is_a_whole_model(tmp_path: Path) -> None:
    (path,) = write_parts(tmp_path, 1)
    with closing(open_checkpoint(path.rename(tmp_path / "any name"))) as checkpoint:
        assert checkpoint.config == GQA


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is missing: the model has 3 parts"):
        open_checkpoint(paths[0])


def test_a_part_needs_its_name(tmp_path: Path) -> None:
    path = write_parts(tmp_path)[0].rename(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 parts .* must have its name: NAME-00001-of-00003\.gguf"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no": 2}, "says that it is part 2 of 3, counted from 0"),
        ({"count": 4}, "says that it is part 1 of 4"),
        ({"count": None}, "says that it is part 1 of None"),
        ({"no": "x"}, "split.no should be of type int"),
    ],
)
def test_parts_that_lie(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_parts(tmp_path, **changes)[0])


def test_parts_of_another_model(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    (tmp_path / "other").mkdir()
    os.replace(paths[2], tmp_path / "third")
    keys = {"split.no": 2, "split.count": 3}
    first = next(iter(WEIGHTS))
    write_gguf(paths[2], {gguf_name(first): WEIGHTS[first]}, keys)
    with pytest.raises(CheckpointError, match=rf"tensor '{gguf_name(first)}' is in another part, too"):
        open_checkpoint(paths[0])
    write_gguf(paths[2], {"x.weight": WEIGHTS[first]}, keys)
    with pytest.raises(CheckpointError, match=r"the parts have \d+ tensors instead of \d+"):
        open_checkpoint(paths[0])


@pytest.mark.parametrize("count", [0, 2, 1001, 4_000_000_000])
def test_hostile_counts(tmp_path: Path, count: int) -> None:
    keys = model_keys(GQA) | {"split.no": 0, "split.count": count}
    tensors = {gguf_name(name): array for name, array in WEIGHTS.items()}
    path = write_gguf(tmp_path / f"m-00001-of-{count % 100000:05}.gguf", tensors, keys)
    if count == 0:
        open_checkpoint(path).close()
        return
    with pytest.raises(CheckpointError, match=r"is missing|must have its name"):
        open_checkpoint(path)
