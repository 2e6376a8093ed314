"""A progress bar for long work, by tqdm: on a terminal a line on stderr, in a notebook a widget, elsewhere nothing."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(label: str, *, delay_s: float = 0.0) -> Iterator[Callable[[int, int, str], None] | None]:
    """Give a callback progress(done, total, name) that draws a bar. None where nobody would see it.

    Args:
        label: what is done.
        delay_s: work that takes less than these seconds has no bar.
    """
    if not (sys.stderr.isatty() or in_notebook()):
        yield None
        return
    bar: Any = None

    def draw(done: int, total: int, name: str) -> None:
        nonlocal bar
        if bar is None:
            bar = _new_bar(label, total, delay_s)
        bar.update(done - bar.n)

    try:
        yield draw
    finally:
        if bar is not None:
            bar.close()


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _new_bar(label: str, total: int, delay_s: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets, a notebook has the bar as text, which is fine
        from tqdm.auto import tqdm
    tqdm.monitor_interval = 0  # no thread
    form = None if in_notebook() else "{desc} [{bar}] {percentage:3.0f}%, {remaining} left"
    columns, rows = shutil.get_terminal_size()  # tqdm draws nothing on a terminal that does not say
    size = {"ncols": min(100, columns), "nrows": rows}
    return tqdm(total=total, desc=label, bar_format=form, ascii="-#", delay=delay_s, leave=True, **size)
