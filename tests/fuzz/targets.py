"""The table of all targets."""

from __future__ import annotations

from .adapters import ADAPTERS
from .chats import CHATS
from .compiled import COMPILED
from .models import MODELS
from .target import Target
from .tokenizers import TOKENIZERS

TARGETS: dict[str, Target] = {target.name: target for target in (*MODELS, *ADAPTERS, *TOKENIZERS, *CHATS, *COMPILED)}
