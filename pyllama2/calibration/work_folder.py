"""Work that outlives an interruption: a folder beside the file that is being made.

    OUT.partial/plan.json       what the work is: another plan does not go on with it
    OUT.partial/text.npy        windows that the model wrote
    OUT.partial/types.json      the storage types of the layers' steps, if they were chosen for a number of bits
    OUT.partial/survey.partial  the work that chooses them: such a folder, with layers
    OUT.partial/layer.N.npz     the finished tensors of layer N, and what its matrices lost
    OUT.partial/streams.N.npy   both residual streams after layer N; only the newest is kept

Each file appears whole or not at all. The folder is removed when the work is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..storage.weights import StorageType, Weight
from .layers import MatrixLoss, Pair

SUFFIX = ".partial"


class WorkFolder:
    """The folder of one piece of work.

    Args:
        out: the file that is being made.
        plan: what the work is, as JSON; files of another plan are removed.

    Raises:
        CheckpointError: the folder cannot be made.
    """

    def __init__(self, out: str, plan: dict[str, Any]) -> None:
        self.path = out + SUFFIX
        text = json.dumps(plan, sort_keys=True)
        found = self._read_plan()
        if found != text:
            if found is None and os.path.lexists(self.path):
                raise CheckpointError(f"{self.path} is in the way: it is not the work of an interrupted quantize")
            self.remove()
            try:
                os.mkdir(self.path)
            except OSError as error:
                raise CheckpointError(f"cannot make the folder {self.path}: {error.strerror}") from error
            self._write("plan.json", lambda file: file.write(text.encode()))

    def _read_plan(self) -> str | None:
        try:
            with open(os.path.join(self.path, "plan.json"), encoding="utf-8") as file:
                return file.read()
        except (OSError, ValueError):
            return None

    def text(self) -> NDArray[np.int32] | None:
        """The windows that the model wrote, None if it has not yet."""
        return self._load("text.npy")

    def save_text(self, windows: NDArray[np.int32]) -> None:
        """Keep windows that the model wrote."""
        self._write("text.npy", lambda file: np.save(file, windows))

    def types(self) -> tuple[tuple[StorageType, ...], ...] | None:
        """The storage types of all steps, None if they are not chosen yet."""
        try:
            with open(os.path.join(self.path, "types.json"), encoding="utf-8") as file:
                return tuple(tuple(map(StorageType.parse, layer)) for layer in json.load(file))
        except FileNotFoundError:
            return None

    def save_types(self, types: tuple[tuple[StorageType, ...], ...]) -> None:
        """Keep the storage types of all steps."""
        text = json.dumps([[str(kind) for kind in layer] for layer in types])
        self._write("types.json", lambda file: file.write(text.encode()))

    def survey(self) -> WorkFolder:
        """Return the folder, inside this one, of the work that finds out what the types should be."""
        return WorkFolder(os.path.join(self.path, "survey"), {})

    def has_survey(self) -> bool:
        """Whether that work was begun, or has been done."""
        return any(os.path.exists(os.path.join(self.path, name)) for name in ("survey" + SUFFIX, "types.json"))

    def finished(self) -> int:
        """The number of layers that are done, and whose streams are there."""
        names = os.listdir(self.path)
        numbers = [int(name.split(".")[1]) for name in names if name.startswith("streams.") and name.endswith(".npy")]
        return max(numbers, default=-1) + 1

    def streams(self) -> Pair | None:
        """The streams after the last layer that is done."""
        both = self._load(f"streams.{self.finished() - 1}.npy")
        return None if both is None else Pair(both[0], both[1])

    def save_layer(self, layer: int, weights: dict[str, Weight], losses: list[MatrixLoss], streams: Pair) -> None:
        """Keep a layer and the streams after it; the streams come last, so that they say that it is whole."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, weight in weights.items():
            arrays[f"{name}:data"] = weight.data
            if weight.scales is not None:
                arrays[f"{name}:scales"] = weight.scales
        arrays["losses"] = np.array([(loss.own, loss.total) for loss in losses], np.float64)
        self._write(f"layer.{layer}.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
        both = np.stack([streams.exact, streams.quantized])
        self._write(f"streams.{layer}.npy", lambda file: np.save(file, both))
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, f"streams.{layer - 1}.npy"))

    def layer(
        self, layer: int, shapes: dict[str, tuple[int, ...]], types: dict[str, StorageType], matrices: list[str]
    ) -> tuple[dict[str, Weight], list[MatrixLoss]]:
        """Read a finished layer.

        Args:
            layer: its number.
            shapes: of its tensors, by their names.
            types: of its matrices.
            matrices: in the order in which they were quantized.
        """
        weights = {}
        with np.load(os.path.join(self.path, f"layer.{layer}.npz"), allow_pickle=False) as arrays:
            for name, shape in shapes.items():
                kind = types.get(name, StorageType("float32"))
                scales = arrays[f"{name}:scales"] if name in types else None
                weights[name] = Weight(name, kind.type, shape, arrays[f"{name}:data"], scales, kind.group_size)
            losses = [
                MatrixLoss(name, float(own), float(total))
                for name, (own, total) in zip(matrices, arrays["losses"], strict=True)
            ]
        return weights, losses

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def _load(self, name: str) -> NDArray[Any] | None:
        try:
            array: NDArray[Any] = np.load(os.path.join(self.path, name), allow_pickle=False)
            return array
        except FileNotFoundError:
            return None

    def _write(self, name: str, write: Any) -> None:
        path = os.path.join(self.path, name)
        try:
            with open(path + ".new", "wb") as file:
                write(file)
            os.replace(path + ".new", path)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
