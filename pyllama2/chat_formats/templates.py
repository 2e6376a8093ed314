"""Widely used chat formats as Jinja templates, for models whose file has none or a wrong one.

They are rendered like a model's own template (jinja.py), with the variables
messages, bos_token, eos_token, add_generation_prompt, and raise_exception().
"""

from __future__ import annotations

# OpenAI's markup, used by many fine-tuned models.
_CHATML = r"""
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}
"""

# Llama 3 to 3.3 without tools; contents are stripped as in Meta's ChatFormat.
_LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%}
"""

# Zephyr, StableLM-Zephyr, TinyLlama-Chat: the role markers are plain text, EOS ends every turn.
_ZEPHYR = r"""
{%- set markers = {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'} -%}
{%- for message in messages -%}
{%- if message['role'] not in markers -%}
{{ raise_exception('roles must be system, user or assistant') }}
{%- endif -%}
{{ markers[message['role']] + '\n' + message['content'] + eos_token + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>\n' }}
{%- endif -%}
"""

# Mistral-7B-Instruct: one BOS, EOS after every answer; a system prompt goes before the first user text.
_MISTRAL = r"""
{{- bos_token -}}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{%- if turns | length % 2 == 0 -%}
{{ raise_exception('the last message must be the user\'s') }}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
{{ raise_exception('after an optional system prompt, user and assistant must alternate') }}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token }}
{%- elif loop.first and turns | length < messages | length -%}
{{ '[INST] ' + messages[0]['content'] + '\n\n' + message['content'] + ' [/INST]' }}
{%- else -%}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"chatml": _CHATML, "llama3": _LLAMA3, "zephyr": _ZEPHYR, "mistral": _MISTRAL}

# The strings that mark turns in these formats and in models' own templates. A vocabulary may have no special token for
# one. Then it is ordinary text, and a message that contains it could forge a turn.
MARKERS = (
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
    "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
    "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip

# Tokens that end a turn. A model's list of EOS tokens often has only one of them, or none.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>")
