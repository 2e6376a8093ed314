"""The rows of a KV cache, in which sequences stay after their end.

A prompt that begins like one of them computes only the rest. The cache is made when it is needed, as large as needed.
To grow, it is remade and its rows are copied. Only one thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..backend.kv_cache import KVCache
from ..errors import Pyllama2Error

# Most texts at a time. Each has a row of the cache, and more would not be faster.
MAX_ROWS = 32
# Rows besides those of the running texts, for a few chats that take turns; and the bytes that all rows may take while
# nothing is generated.
_KEPT_ROWS = 3
_KEPT_BYTES = 1 << 30
_POSITIONS = 256  # a row's length is a multiple of it
# A shorter common prefix is not worth overwriting another sequence, unless it is half of the prompt.
_LEAST_PREFIX = 16
# A sequence that would lose at most so many tokens at its end is overwritten there. Otherwise it is copied.
_SHORT_END = 64


@dataclass
class CacheRow:
    """One row of the cache.

    Attributes:
        index: its index in the cache.
        ids: the tokens whose keys and values are in it, complete and valid.
        in_use: whether a text is being generated in it. Other rows may be overwritten, the oldest first.
        used: when it was last used: a larger number is later.
    """

    index: int
    ids: list[int] = field(default_factory=list)
    in_use: bool = False
    used: int = 0


class PrefixCache:
    """The cache of one scheduler.

    Args:
        new_cache: (n_rows, n_positions) -> an empty KVCache.
        rows_that_fit: (n_rows, n_positions) -> how many of the rows fit into memory. Raises when not even one does.
        n_ctx: longest row in positions.
        row_bytes: n_positions -> bytes of a row.

    Attributes:
        cache: None until it is needed.
        rows: its rows.
    """

    def __init__(
        self,
        new_cache: Callable[[int, int], KVCache],
        rows_that_fit: Callable[[int, int], int],
        n_ctx: int,
        row_bytes: Callable[[int], int],
    ) -> None:
        self.cache: KVCache | None = None
        self.rows: list[CacheRow] = []
        self._new_cache = new_cache
        self._rows_that_fit = rows_that_fit
        self._n_ctx = n_ctx
        self._row_bytes = row_bytes
        self._clock = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes that keys and values take now."""
        return 0 if self.cache is None else self.cache.resident_bytes

    @property
    def use(self) -> tuple[int, int]:
        """Tokens whose keys and values are in the cache, and how many it has room for."""
        n_positions = 0 if self.cache is None else self.cache.n_rows * self.cache.max_seq_len
        return sum(len(row.ids) for row in self.rows), n_positions

    def provide_row(self, n_texts: int, n_positions: int) -> bool:
        """Provide a free row of n_positions for acquire().

        The cache grows if it is too short, or has no rows for n_texts texts, and there is memory. If it is too short
        and cannot grow beside what it holds, it is made anew without the sequences that were kept.

        Args:
            n_texts: number of texts that are to have rows.
            n_positions: positions of the row.

        Returns:
            Whether there is a free row now. If not, a row in use must be released first.

        Raises:
            Pyllama2Error: there is not enough memory, and no row is in use.
        """
        is_long_enough = self.cache is not None and n_positions <= self.cache.max_seq_len
        has_rows = len(self.rows) >= min(n_texts, MAX_ROWS)
        if not (is_long_enough and has_rows) and self._grow(n_texts, n_positions):
            return True
        if is_long_enough:
            return any(not row.in_use for row in self.rows)
        if any(row.in_use for row in self.rows):
            return False
        self._start_anew(n_texts, n_positions)
        return True

    def acquire(self, ids: Sequence[int]) -> CacheRow:
        """Take a free row, of which there must be one, and fill it with the longest prefix of ids that any row has.

        At least the last of ids is left to be computed.
        """
        free = sorted((row for row in self.rows if not row.in_use), key=_order_of_replacement)
        source, length = self._longest(ids, self.rows)
        row = free[0]
        if source is None:
            row.ids = []
        elif not source.in_use and _may_rewind(source, length, free):
            row = source
            del row.ids[length:]
        else:
            row = next(row for row in free if row is not source)
            self._copy(source, row, length)
        row.in_use = True
        self._touch(row)
        return row

    def extend(self, row: CacheRow, ids: Sequence[int]) -> int:
        """Copy what other rows have of ids beyond row's tokens, if that is worth it. Returns the number of tokens."""
        known = len(row.ids)
        others = (
            other
            for other in self.rows
            if other is not row and len(other.ids) >= known + _LEAST_PREFIX and other.ids[known] == ids[known]
        )
        source, length = self._longest(ids, others)
        if source is None or length < known + _LEAST_PREFIX:
            return 0
        self._copy(source, row, length)
        return length - known

    def release(self, row: CacheRow) -> None:
        """Free a row. Its sequence stays until the row is needed."""
        row.in_use = False
        self._touch(row)

    def forget(self) -> None:
        """Drop all sequences that are not in use."""
        for row in self.rows:
            if not row.in_use:
                row.ids = []

    def trim(self) -> None:
        """Give back memory beyond what may be kept while nothing is generated. The row that was used last stays."""
        if self.cache is None or self.cache.n_rows == 1:
            return
        row_bytes = self._row_bytes(self.cache.max_seq_len)
        with suppress(MemoryError):
            if row_bytes * self.cache.n_rows > _KEPT_BYTES:
                self._remake(max(1, _KEPT_BYTES // row_bytes), self.cache.max_seq_len)

    def add(self, ids: list[int], n_positions: int) -> CacheRow | None:
        """Return an empty row for the caller to load ids into. None without memory, or if a row has ids already."""
        if any(common_prefix(row.ids, ids, len(ids)) == len(ids) for row in self.rows):
            return None
        n_rows = 1 + sum(row.in_use or len(row.ids) > 0 for row in self.rows)
        if not self.provide_row(n_rows, n_positions):
            return None
        row = min((row for row in self.rows if not row.in_use), key=_order_of_replacement)
        row.ids = []
        self._touch(row)
        return row

    def close(self) -> None:
        """Give the memory back."""
        if self.cache is not None:
            self.cache.close()
        self.cache, self.rows = None, []

    def _longest(self, ids: Sequence[int], rows: Iterable[CacheRow]) -> tuple[CacheRow | None, int]:
        """The row with the longest prefix of ids, and its length; None if it is not worth using."""
        best, longest = None, 0
        for row in rows:
            length = common_prefix(row.ids, ids, len(ids) - 1)
            if length > longest or (length == longest > 0 and best is not None and best.in_use):
                best, longest = row, length
        return (best, longest) if longest >= _LEAST_PREFIX or 2 * longest >= len(ids) else (None, 0)

    def _copy(self, source: CacheRow, row: CacheRow, length: int) -> None:
        assert self.cache is not None
        row.ids = []
        self.cache.copy_prefix(source.index, row.index, length)
        row.ids = source.ids[:length]

    def _touch(self, row: CacheRow) -> None:
        self._clock += 1
        row.used = self._clock

    def _grow(self, n_texts: int, n_positions: int) -> bool:
        """Make the cache larger, with a free row of n_positions. Returns False without memory for it."""
        shape = self._larger(n_texts, n_positions)
        if shape is not None:
            with suppress(MemoryError):
                self._remake(*shape)
                return True
        return False

    def _start_anew(self, n_texts: int, n_positions: int) -> None:
        """Give up all sequences and make a cache of the rows that fit. Raises Pyllama2Error when not even one does."""
        self.close()
        self._remake(self._rows_that_fit(min(n_texts, MAX_ROWS), n_positions), n_positions)

    def _larger(self, n_texts: int, n_positions: int) -> tuple[int, int] | None:
        """Rows and positions of a larger cache, with a free row of n_positions; None without memory for it.

        Both grow at least twofold, so that the total time of copying stays bounded.
        """
        now = 0 if self.cache is None else self.cache.max_seq_len
        n_used = sum(row.in_use for row in self.rows)
        grown = max(n_positions, now if n_positions <= now else 2 * now)
        ample = min(self._n_ctx, -(-grown // _POSITIONS) * _POSITIONS)
        for positions in sorted({ample, max(n_positions, now)}, reverse=True):
            wanted = self._wanted_rows(n_texts, positions)
            try:
                n_rows = self._rows_that_fit(wanted, positions)
            except Pyllama2Error:
                continue
            if n_rows > n_used and (n_positions > now or n_rows > len(self.rows)):
                return n_rows, positions
        return None

    def _wanted_rows(self, n_texts: int, n_positions: int) -> int:
        """A row for each text, and some more that keep sequences, as far as these may take memory."""
        kept = min(_KEPT_ROWS, _KEPT_BYTES // self._row_bytes(n_positions))
        n_rows = max(n_texts + kept, 2 * len(self.rows) if n_texts > len(self.rows) else 0)
        return min(n_rows, MAX_ROWS)

    def _remake(self, n_rows: int, n_positions: int) -> None:
        """Make a cache of another size, with the rows in use and the latest of the others that may be kept."""
        new, old = self._new_cache(n_rows, n_positions), self.cache
        rows: list[CacheRow] = []
        try:
            if old is not None:
                rows = self._carried(n_rows)
                for index, row in enumerate(rows):
                    if row.ids:
                        new.copy_prefix(row.index, index, len(row.ids), source=old)
        except BaseException:
            new.close()
            raise
        for index, row in enumerate(rows):
            row.index = index
        self.rows = rows + [CacheRow(index) for index in range(len(rows), new.n_rows)]
        self.cache = new
        if old is not None:
            old.close()

    def _carried(self, n_rows: int) -> list[CacheRow]:
        rows = sorted(self.rows, key=lambda row: (not row.in_use, -row.used))[:n_rows]
        room = _KEPT_BYTES
        kept: list[CacheRow] = []
        for row in rows:
            room -= 0 if row.in_use else self._row_bytes(len(row.ids))
            if row.in_use or (row.ids and room >= 0) or not kept:
                kept.append(row)
        return kept


def _order_of_replacement(row: CacheRow) -> tuple[bool, int]:
    return len(row.ids) > 0, row.used


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """Return the length of the common prefix of a and b, at most limit."""
    low, high = 0, min(len(a), len(b), limit)
    if a[:high] == b[:high]:
        return high
    while low < high - 1:  # a and b have the first low tokens in common, but not the first high
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _may_rewind(source: CacheRow, length: int, free: list[CacheRow]) -> bool:
    """Whether to overwrite what follows a sequence's first length tokens, rather than copy them into another row."""
    lost = len(source.ids) - length
    others = [row for row in free if row is not source]
    if lost <= _SHORT_END or not others:
        return True
    return bool(others[0].ids) and 2 * length >= len(source.ids)
