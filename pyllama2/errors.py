"""The errors that pyllama2 raises on purpose.

Wrong arguments are plain ValueError or TypeError; everything that depends on a
file, a machine or a model is one of these. Each message is one sentence.
"""

from __future__ import annotations

from .shown import one_line


class Pyllama2Error(Exception):
    """Base class of every error below. Its message is one line without control characters, whatever a file said."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class CheckpointError(Pyllama2Error):
    """A model or tokenizer file is missing, damaged, hostile or of a kind that is not supported."""


class ContextLengthError(Pyllama2Error):
    """More tokens than the context holds; the message has both numbers."""


class BackendUnavailableError(Pyllama2Error):
    """The device asked for cannot be used here; the message says what to install."""


class NumericalError(Pyllama2Error):
    """The model computed NaN or infinite logits; the message has the position."""
