"""What a launch cost, counted per line of source by the mode "count". Nothing here is a time."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .library import Library

COUNTERS = (
    "shuffles", "warp_barriers", "barriers", "fences", "atomics", "dot_products", "tensor_products", "async_copies",
    "conversions", "prefetches",
)  # fmt: skip


class _Site(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_void_p),
        ("space", ctypes.c_int),
        ("write", ctypes.c_int),
        ("bytes", ctypes.c_int),
        ("requests", ctypes.c_uint64),
        ("sectors", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("transactions", ctypes.c_uint64),
        ("ideal_transactions", ctypes.c_uint64),
    ]


_TOTALS = (
    "loads", "stores", "shared_loads", "shared_stores",
    "bytes_read", "bytes_written", "sectors_read", "sectors_written",
)  # fmt: skip


class _Totals(ctypes.Structure):
    _fields_ = [("counters", ctypes.c_uint64 * len(COUNTERS)), *((name, ctypes.c_uint64) for name in _TOTALS)]


@dataclass(frozen=True)
class Site:
    """One kind of access at one line.

    Attributes:
        file, line: in the source.
        space: "global" or "shared".
        write: stores and atomics, or loads.
        access_bytes: of one lane.
        requests: of warps.
        sectors: of 32 bytes that the requests fetch, each request by itself (global).
        used_bytes: distinct bytes of those sectors that the request wanted (global).
        transactions, ideal_transactions: with bank conflicts, and without any (shared).
    """

    file: str
    line: int
    space: str
    write: bool
    access_bytes: int
    requests: int
    sectors: int
    used_bytes: int
    transactions: int
    ideal_transactions: int

    @property
    def sector_use(self) -> float:
        """Share of the fetched bytes that were wanted; 1.0 where nothing is fetched."""
        return self.used_bytes / (32 * self.sectors) if self.sectors else 1.0


@dataclass(frozen=True)
class LaunchCounts:
    """The counts of one launch: of lanes for loads, stores and `instructions`; distinct bytes and sectors of memory."""

    kernel: str
    sites: tuple[Site, ...]
    instructions: dict[str, int]
    loads: int
    stores: int
    shared_loads: int
    shared_stores: int
    bytes_read: int
    bytes_written: int
    sectors_read: int
    sectors_written: int

    @property
    def sector_use(self) -> float:
        """Share of the bytes of all sectors that global loads fetch, request by request, that were wanted."""
        reads = [site for site in self.sites if site.space == "global" and not site.write]
        fetched = sum(32 * site.sectors for site in reads)
        return sum(site.used_bytes for site in reads) / fetched if fetched else 1.0

    @property
    def memory_use(self) -> float:
        """The same when every sector is fetched from memory once a launch, as with a cache that forgets nothing."""
        return self.bytes_read / (32 * self.sectors_read) if self.sectors_read else 1.0


def read(library: Library, kernel: str) -> LaunchCounts:
    """The counts of the launch that was just made."""
    run_time = library.runtime
    run_time.emulator_site.restype, run_time.emulator_totals.restype = _Site, _Totals
    sums: dict[tuple[str, int, str, bool, int], list[int]] = {}
    for i in range(run_time.emulator_n_sites()):
        site = run_time.emulator_site(i)
        key = (*library.lines.of(site.code), ("global", "shared")[site.space], bool(site.write), site.bytes)
        values = [site.requests, site.sectors, site.used_bytes, site.transactions, site.ideal_transactions]
        sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 5), values, strict=True)]
    totals = run_time.emulator_totals()
    return LaunchCounts(
        kernel,
        tuple(Site(*key, *values) for key, values in sorted(sums.items())),
        dict(zip(COUNTERS, totals.counters, strict=True)),
        **{name: getattr(totals, name) for name in _TOTALS},
    )
