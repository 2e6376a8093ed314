"""Which layers of a model go to which device.

The first layers go to the GPUs, in the order in which they are named, as many as were asked for or as fit. The rest go
to the CPU. Layers that fit on all GPUs together are divided in proportion to how many each could have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .._gpu import CudaBackend
from ..backend.stages import Layers, part_of
from ..errors import DeviceMemoryError
from ..storage.model_file import StoredModel

GpuName = int | None  # the number of a GPU; None: CUDA's current one
_Fits = Callable[[int, Layers], bool]


@dataclass(frozen=True)
class Place:
    """Some layers and their device: a GPU, or the CPU if on_cpu."""

    layers: Layers
    gpu: GpuName = None
    on_cpu: bool = False

    @property
    def device(self) -> str:
        """Such as "cuda:0" or "cpu"."""
        return "cpu" if self.on_cpu else "cuda" if self.gpu is None else f"cuda:{self.gpu}"

    def __str__(self) -> str:
        return f"{self.layers} on {self.device}"


def place(model: StoredModel, gpus: Sequence[GpuName], n_gpu_layers: int | None, kv_dtype: str) -> tuple[Place, ...]:
    """Place all layers of a model.

    Args:
        model: the model. The CUDA backend must have its types.
        gpus: the GPUs.
        n_gpu_layers: how many layers they have. None: as many as fit. Below 0, or more than there are: all.
        kv_dtype: of keys and values.

    Returns:
        A place for each device that has layers, in order.

    Raises:
        DeviceMemoryError: not one layer fits, or not as many as were asked for. The message has the numbers.
    """
    n_layers = model.config.n_layers
    wanted = n_layers if n_gpu_layers is None or not 0 <= n_gpu_layers < n_layers else n_gpu_layers

    def problem(i: int, layers: Layers) -> str | None:
        return CudaBackend.unsupported_reason(part_of(model, layers), kv_dtype, gpus[i], layers)

    def fits(i: int, layers: Layers) -> bool:
        return problem(i, layers) is None

    ends = _divided(n_layers, wanted, len(gpus), fits)
    fitting = ends[-1]
    if fitting == 0 < wanted or (fitting < wanted and n_gpu_layers is not None):
        first = Layers(0, wanted if len(gpus) == 1 else 1, n_layers)  # one of several GPUs need not have them all
        raise DeviceMemoryError(
            f"{problem(0, first) or f'{wanted} layers do not fit on {len(gpus)} GPUs'}; "
            + (f"n_gpu_layers={fitting} would fit" if fitting else "not one layer fits")
        )
    places = [
        Place(Layers(first, stop, n_layers), gpu)
        for gpu, (first, stop) in zip(gpus, pairwise([0, *ends]), strict=True)
        if first < stop
    ]
    if fitting < n_layers:
        places.append(Place(Layers(fitting, n_layers, n_layers), on_cpu=True))
    return tuple(places)


def _divided(n_layers: int, wanted: int, n_gpus: int, fits: _Fits) -> list[int]:
    """Index after the last layer of each GPU. The last index is less than wanted if not all layers fit."""

    def room(i: int, first: int) -> int:
        """How many layers from first on a GPU can have."""
        return _most(lambda n: fits(i, Layers(first, first + n, n_layers)), wanted - first)

    filled = [0]
    for i in range(n_gpus):
        filled.append(filled[-1] + room(i, filled[-1]))
    if filled[-1] < wanted or n_gpus == 1:
        return filled[1:]
    rooms = [room(i, 0) for i in range(n_gpus)]
    shared = [wanted * sum(rooms[:i]) // sum(rooms) for i in range(n_gpus + 1)]
    parts = [Layers(first, stop, n_layers) for first, stop in pairwise(shared)]
    return shared[1:] if all(not len(part) or fits(i, part) for i, part in enumerate(parts)) else filled[1:]


def _most(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to most that fits, 0 if none does. All below one that fits must fit."""
    return bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))
