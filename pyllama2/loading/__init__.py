"""From the path of a model to weights that a backend can use. Start at load_model().

load.py      load_model(): maps our file, or converts another checkpoint in memory
choice.py    quant="auto": the storage type that keeps what a checkpoint has, and fits into memory
draft.py     load_draft(): the model that guesses what another one says
kept.py      converted models that are kept for the next start
"""

from .draft import load_draft
from .load import check_types, load_model

__all__ = ["check_types", "load_draft", "load_model"]
