"""Readers of every kind of checkpoint. Start at open_checkpoint(). base.py has the interface of all readers.

kind          what it is                                              reader
pyllama2      our own file                                            own_file.py
meta          a directory of consolidated.NN.pth and params.json      meta.py
huggingface   a directory of config.json and *.safetensors            huggingface.py
gguf          a GGUF file                                             gguf.py
llama2.c      a .bin file of llama2.c                                 llama2c.py
"""

from .readers import open_checkpoint

__all__ = ["open_checkpoint"]
