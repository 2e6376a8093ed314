"""pyllama2: run Llama-2-family models on one machine.

    import pyllama2

    llm = pyllama2.Llama()                      # the bundled demo model; or a path
    print(llm.generate("Once upon a time").text)

pyllama2.export and pyllama2.quantize make model files; python -m pyllama2.generate and .chat are the
command lines. Importing the package loads no model library: torch, cupy and the tokenizer packages
are imported where they are used.
"""

from .analysis.evaluation import Perplexity, perplexity
from .calibration import quantize
from .convert import export
from .errors import (
    BackendUnavailableError,
    CheckpointError,
    ClosedError,
    ContextLengthError,
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
    "ContextLengthError",
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
