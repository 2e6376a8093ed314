"""What other libraries call the arguments and methods of Llama, and the errors that say ours.

docs/coming-from.md has the same names in a table, which a test compares with these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from ..shown import shown_value

# llama-cpp-python, transformers, mlx-lm, ollama, vLLM -> ours.
OTHER_NAMES = {
    "model_path": "model",
    "model_name": "model",
    "pretrained_model_name_or_path": "model",
    "path_or_hf_repo": "model",
    "repo_id": "model",
    "num_ctx": "n_ctx",
    "context_size": "n_ctx",
    "context_length": "n_ctx",
    "max_model_len": "n_ctx",
    "max_seq_len": "n_ctx",
    "num_thread": "n_threads",
    "threads": "n_threads",
    "device_map": "device",
    "num_gpu": "n_gpu_layers",
    "dtype": "quant",
    "torch_dtype": "quant",
    "quantization": "quant",
    "kv_cache_dtype": "kv_dtype",
    "type_k": "kv_dtype",
    "type_v": "kv_dtype",
    "draft_model": "draft",
    "assistant_model": "draft",
    "speculative_model": "draft",
    "tokenizer_path": "tokenizer",
    "lora_path": "lora",
    "adapter_path": "lora",
}

# Name of another library -> how the same is done here.
HINTS = {
    "main_gpu": "device='cuda:1' is the second GPU",
    "tensor_split": "device='cuda:0,cuda:1' divides the layers by what fits",
    "split_mode": "device='cuda:0,cuda:1' divides the layers",
    "gpu_memory_utilization": "memory is planned from what is free",
    "tensor_parallel_size": "device='cuda:0,cuda:1' divides the layers",
    "pipeline_parallel_size": "device='cuda:0,cuda:1' divides the layers",
    "load_in_4bit": "quant='q4'",
    "load_in_8bit": "quant='q8'",
    "n_batch": "prompts are cut into pieces that suit the device",
    "use_mmap": "one of our own files is always mapped",
    "use_mlock": "one of our own files is always mapped",
    "flash_attn": "attention never keeps all scores in memory",
    "logits_all": "logits() and score() are there for every model",
    "embedding": "there are no embeddings",
    "chat_format": "it is an argument of chat(), template",
    "trust_remote_code": "no code of a model's files is run",
    "revision": "it is a part of the name, 'ORG/NAME:REVISION'",
    "filename": "it is a part of the name, 'ORG/NAME/FILE.gguf'",
    "gguf_file": "it is a part of the name, 'ORG/NAME/FILE.gguf'",
    "cache_dir": "the environment variable HF_HOME sets the folder",
    "token": "the environment variable HF_TOKEN has it",
    "use_auth_token": "the environment variable HF_TOKEN has it",
    "lora_scale": "it is a part of the name, lora='ADAPTER:SCALE'",
    "rope_freq_base": "it is what the model's file says",
    "rope_freq_scale": "it is what the model's file says",
    "temperature": "it is an argument of generate(), chat() and the others",
    "max_tokens": "it is an argument of generate(), chat() and the others",
}

# Method of another library's model -> ours.
METHODS = {
    "create_chat_completion": "chat(messages)",
    "create_completion": "generate(prompt)",
    "apply_chat_template": "chat_tokens(messages)",
    "stream_generate": "stream(prompt)",
    "encode": "tokenize(text)",
    "decode": "detokenize(token_ids)",
    "embed": "there are no embeddings",
    "create_embedding": "there are no embeddings",
}

P = ParamSpec("P")
R = TypeVar("R")


def answering_other_names(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it answers keywords that it does not have with TypeError and the name that it has."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"Llama has no argument {shown_value(name)}{_suggestion(name, known)}")
        return function(*args, **kwargs)

    return checked


class AnsweringMethods:
    """A class whose objects answer names of other libraries' methods with ours."""

    if not TYPE_CHECKING:  # for a checker of types, a class with __getattr__ has every name

        def __getattr__(self, name: str) -> NoReturn:
            """Say that there is no such name. Python asks for it only then."""
            hint = f": {METHODS[name]}" if name in METHODS else ""
            raise AttributeError(f"Llama has no {name}{hint}", name=name, obj=self)


def _suggestion(name: str, known: list[str]) -> str:
    if name in HINTS:
        return f": {HINTS[name]}"
    close = [OTHER_NAMES[name]] if name in OTHER_NAMES else get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
