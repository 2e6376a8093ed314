"""Writers of other projects' files, for export(): a GGUF file, or a directory of Hugging Face.

gguf.py              the model as a GGUF file
gguf_tokenizer.py    its tokenizer, as keys of that file
gguf_file.py         the format: keys, tensors, alignment
huggingface.py       the model as a directory, with its tokenizer
sentencepiece_json.py    a SentencePiece tokenizer as tokenizer.json
"""

from .gguf import write_gguf
from .huggingface import write_huggingface

__all__ = ["write_gguf", "write_huggingface"]
