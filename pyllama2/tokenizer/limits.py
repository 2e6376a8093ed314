"""Limits on the size of a tokenizer, for every kind of file.

Published models stay below these limits. Loading any file, even a hostile one, takes at most some 2 s of
one core and 300 MB.
"""

from __future__ import annotations

from collections.abc import Collection

# Gemma's 262,144 tokens are the largest published vocabulary; Llama-3 has 128,256.
MAX_TOKENS = 270_000
# GPT-4o's tokenizer has 446,189, Llama-3's 280,147.
MAX_MERGES = 450_000
# The longest tokens of published models are 128 spaces.
MAX_TOKEN_LENGTH = 1024
# Characters of all tokens together: Gemma's have some 2 million.
MAX_CHARACTERS = 4 << 20
# Special and added tokens: Gemma 3 has 6,415 of up to 30 characters.
MAX_SPECIAL_TOKENS = 10_000
MAX_SPECIAL_LENGTH = 128


def check_special_tokens(names: Collection[str]) -> None:
    """Check the special and added tokens of a tokenizer.

    Raises:
        ValueError: there are too many tokens, or one has too many characters.
    """
    if len(names) > MAX_SPECIAL_TOKENS:
        raise ValueError(f"{len(names)} special tokens are more than {MAX_SPECIAL_TOKENS}")
    longest = max(names, key=len, default="")
    if len(longest) > MAX_SPECIAL_LENGTH:
        raise ValueError(
            f"the special token {longest[:40]!r}... has {len(longest)} characters, more than {MAX_SPECIAL_LENGTH}"
        )
