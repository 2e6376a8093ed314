"""pyllama2: run Llama-2-family models on one machine.

    import pyllama2

    llm = pyllama2.Llama()                      # the bundled demo model; or a path
    print(llm.generate("Once upon a time").text)

pyllama2.export and pyllama2.quantize make model files; python -m pyllama2.generate and .chat are the
command lines. Importing the package loads nothing but this file: the others are imported when one of their
names is first used, and torch, cupy and the tokenizer packages where they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .analysis.evaluation import Perplexity, perplexity
    from .calibration import quantize
    from .convert import export
    from .errors import (
        BackendUnavailableError,
        CheckpointError,
        ClosedError,
        ConstraintError,
        ContextLengthError,
        DeviceMemoryError,
        NumericalError,
        Pyllama2Error,
    )
    from .generation.chunk import Chunk, Timings, TokenLogprob, Usage
    from .generation.completion import Completion
    from .llama import Llama
    from .sampling.params import SamplingParams

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "ConstraintError",
    "ContextLengthError",
    "DeviceMemoryError",
    "Llama",
    "NumericalError",
    "Perplexity",
    "Pyllama2Error",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "Usage",
    "__version__",
    "export",
    "perplexity",
    "quantize",
]

# Public name -> the file that defines it.
_FILES = {
    "BackendUnavailableError": "errors",
    "CheckpointError": "errors",
    "Chunk": "generation.chunk",
    "ClosedError": "errors",
    "Completion": "generation.completion",
    "ConstraintError": "errors",
    "ContextLengthError": "errors",
    "DeviceMemoryError": "errors",
    "Llama": "llama",
    "NumericalError": "errors",
    "Perplexity": "analysis.evaluation",
    "Pyllama2Error": "errors",
    "SamplingParams": "sampling.params",
    "Timings": "generation.chunk",
    "TokenLogprob": "generation.chunk",
    "Usage": "generation.chunk",
    "export": "convert",
    "perplexity": "analysis.evaluation",
    "quantize": "calibration",
}

if not TYPE_CHECKING:  # type checkers and editors read the imports above instead

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_FILES[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return all public names, also those that were not used yet."""
        return sorted({*globals(), *__all__})
