"""What other libraries call sampling parameters, and what to say about those that are no parameter here.

docs/coming-from.md has the same names in a table, which a test compares with these.
"""

from __future__ import annotations

# llama-cpp-python, transformers, mlx-lm, ollama, vLLM -> ours.
OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_window",
    "last_n_tokens_size": "repetition_window",
    "repetition_context_size": "repetition_window",
    "temp": "temperature",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "n_probs": "logprobs",
    "top_logprobs": "logprobs",
    "logits_processor": "logits_processors",
    "random_seed": "seed",
    "sequence_bias": "logit_bias",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
}

# Name of another library -> how the same is done here.
HINTS = {
    "stream": "stream() and stream_chat() yield the text as it comes",
    "do_sample": "temperature=0 is greedy, and any other temperature samples",
    "num_return_sequences": "generate(prompt, n=3) makes several texts",
    "best_of": "generate(prompt, n=3) makes several texts",
    "num_beams": "there is no beam search",
    "messages": "chat(messages) answers a chat",
    "add_generation_prompt": "chat() always adds it",
    "num_ctx": "it is an argument of Llama, n_ctx",
    "mirostat": "there is no mirostat; see min_p",
    "typical_p": "there is no typical_p; see min_p",
    "tfs_z": "there is no tfs_z; see min_p",
}
