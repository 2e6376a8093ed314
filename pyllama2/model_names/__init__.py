"""From the name of a model to its files: paths, names of the Hugging Face hub, smollm2, demo. Start at find_model().

find.py        find_model(): what a name means, and which place is looked at first
adapter_names.py    find_adapters(): the same for LoRA adapters, with their scales
hub_name.py    ORG/NAME:REVISION/FILE and its other spellings
choice.py      which files of a repository make a model
cached.py      models in the local cache of the hub
download.py    files from the hub into the cache
packaged.py    models in packages: smollm2, demo
known.py       the models that are here now, for lists and suggestions
removal.py     what `models remove` removes
"""

from .adapter_names import Adapters, find_adapters
from .find import find_adapter, find_model

__all__ = ["Adapters", "find_adapter", "find_adapters", "find_model"]
