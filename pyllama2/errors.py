"""The errors that pyllama2 raises on purpose.

Wrong arguments raise plain ValueError or TypeError. Whatever depends on a file, a machine, a model or what was closed
raises one of the errors below. Each message is one sentence.
"""

from __future__ import annotations

from .shown import one_line


class Pyllama2Error(Exception):
    """Base class of every error below. Its message is one line without control characters, even if it quotes a file."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class CheckpointError(Pyllama2Error):
    """A model or tokenizer file is missing, damaged, hostile or not supported."""


class ClosedError(Pyllama2Error, RuntimeError):
    """An object is used after its close(). The message says which."""


class ContextLengthError(Pyllama2Error):
    """There are more tokens than the context holds. The message has both numbers."""


class BackendUnavailableError(Pyllama2Error):
    """The requested device cannot be used here. The message says what to install."""


class DeviceMemoryError(Pyllama2Error, MemoryError):
    """The memory of a device does not suffice. The message has the numbers, and what would fit if something would."""


class ConstraintError(Pyllama2Error, ValueError):
    """A json_schema, regex or grammar is wrong, not supported, too complex, or nothing the model can write fits it."""


class NumericalError(Pyllama2Error):
    """The model computed NaN or infinite logits. The message has the position."""
