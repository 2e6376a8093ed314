"""The log of a command, on stderr: a line for each record, as loud as PYLLAMA2_LOG_LEVEL says."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..shown import one_line, shown_value

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _OneLine(logging.Formatter):
    """A formatter that writes each record on one line, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        return one_line(super().format(record))


@contextmanager
def log_on_stderr(verbose: bool, quiet: bool = False) -> Iterator[None]:
    """Write the log of the block to stderr.

    Args:
        verbose: whether to say at least what "info" says.
        quiet: whether to say errors alone, if the environment does not say otherwise.

    Raises:
        ValueError: PYLLAMA2_LOG_LEVEL is no level.
    """
    name = os.environ.get("PYLLAMA2_LOG_LEVEL", "").upper() or ("ERROR" if quiet else "WARNING")
    if name not in _LEVELS:
        raise ValueError(f"PYLLAMA2_LOG_LEVEL must be {', '.join(_LEVELS).lower()}, not {shown_value(name.lower())}")
    if verbose and name != "DEBUG":
        name = "INFO"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    log = logging.getLogger("pyllama2")
    before = log.level
    log.setLevel(name)
    try:
        yield
    finally:
        log.setLevel(before)
