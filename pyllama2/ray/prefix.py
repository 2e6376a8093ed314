"""Where a conversation belongs: its beginning as a key, and the replicas in the order in which they should have it.

All turns of a chat begin alike, so all have the key of the first turn. Each process that chooses a replica finds the
same one, without a table of what went where: each replica and key have a number by a hash, and the largest wins
(rendezvous hashing). If a replica goes, its chats spread over the others, and all others stay where they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
# Of a text or ids that need not be a chat: so much that few begin alike by chance.
_CHARACTERS = 256
_IDS = 64


def key_of(path: str, body: bytes) -> str:
    """Return the key of the requests that begin like this one.

    Args:
        path: where the request goes.
        body: JSON. It may be wrong, which others find out.

    Returns:
        Hexadecimal digits; "" for a request that may go anywhere.
    """
    try:
        fields = json.loads(body)
        beginning = _first_turn(fields["messages"]) if path == CHAT else _first_part(fields["prompt"])
        return blake2b(json.dumps(beginning).encode(), digest_size=16).hexdigest() if beginning else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def in_order(key: str, queues: Mapping[str, int], slack: int) -> list[str]:
    """Return the names of replicas, the best one for a request first.

    Args:
        key: of key_of().
        queues: each replica with its requests.
        slack: a replica that has more requests than this above the least busy one comes after all that have not.
    """
    if not key:
        return sorted(queues, key=lambda name: queues[name])
    limit = min(queues.values(), default=0) + slack
    return sorted(queues, key=lambda name: (max(0, queues[name] - limit), -_weight(key, name)))


def _weight(key: str, name: str) -> int:
    return int.from_bytes(blake2b(f"{key} {name}".encode(), digest_size=8).digest(), "little")


def _first_turn(messages: Sequence[Any]) -> list[Any]:
    """The messages up to the first one that an assistant says."""
    turn = []
    for message in messages:
        if message["role"] == "assistant":
            break
        turn.append([message["role"], _text(message["content"])])
    return turn


def _text(content: Any) -> Any:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _first_part(prompt: Any) -> Any:
    if not isinstance(prompt, str) and not isinstance(prompt[0], int):
        prompt = prompt[0]  # of several prompts, the first
    return prompt[: _CHARACTERS if isinstance(prompt, str) else _IDS]
