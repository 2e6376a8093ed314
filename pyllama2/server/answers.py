"""OpenAI's JSON for texts: as a whole, or as the events of a stream.

A form knows how one kind of answer is written. It is used by one request.
"""

from __future__ import annotations

import codecs
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.chunk import TokenLogprob, Usage
from ..tokenizer.base import Tokenizer

_ENCODER = json.JSONEncoder(separators=(",", ":"))
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


@dataclass
class Part:
    """A part of one text, or all of it.

    Attributes:
        index: of the choice.
        text: the new text.
        logprobs: of the new tokens. None unless asked for. Without a logprob: the first token of a prompt.
        finish_reason: "stop" or "length" if this part is the last.
    """

    index: int
    text: str
    logprobs: list[TokenLogprob | PromptStart] | None
    finish_reason: str | None


@dataclass(frozen=True)
class PromptStart:
    """The first token of a prompt, which nothing comes before."""

    token_id: int
    token: str


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"


def to_json(data: Any) -> bytes:
    """JSON without spaces, in ASCII: a text may hold line separators that clients would split at."""
    return _ENCODER.encode(data).encode()


def usage_of(usages: Sequence[Usage], n_choices: int) -> dict[str, Any]:
    """The usage of a request: each prompt counts once, all choices count.

    Args:
        usages: of the texts, the choices of a prompt beside each other.
        n_choices: of each prompt.
    """
    firsts = usages[::n_choices]
    n_prompt = sum(usage.prompt_tokens for usage in firsts)
    n_generated = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
    }


class Form(ABC):
    """How the answer to one request is written.

    Args:
        model: the name that is told.
        fingerprint: of model and machine.
        tokenizer: the model's.
        shows_usage: whether a stream has the usage.
    """

    prefix: str
    object: str
    event_object: str

    def __init__(self, model: str, fingerprint: str, tokenizer: Tokenizer, *, shows_usage: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._tokenizer = tokenizer
        self._shows_usage = shows_usage
        self._head = {"id": self.id, "object": self.object, "created": int(time.time()), "model": model}
        self._tail = {"system_fingerprint": f"fp_{fingerprint}"}
        head = to_json({**self._head, "object": self.event_object, **self._tail})
        self._event_head = b"data: " + head.removesuffix(b"}") + b',"choices":'  # most of an event is always the same

    def whole(self, parts: Sequence[Part], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer with all texts."""
        choices = [self._choice(part) for part in parts]
        return {**self._head, **self._tail, "choices": choices, "usage": usage}

    def first_event(self, index: int) -> bytes:
        """What a stream begins with for a choice."""
        return b""

    @abstractmethod
    def events(self, part: Part) -> bytes:
        """The events of a part of a text."""

    def last_event(self, usage: dict[str, Any]) -> bytes:
        """The event with the usage, if it was asked for."""
        return self._event([], usage) if self._shows_usage else b""

    @abstractmethod
    def _choice(self, part: Part) -> dict[str, Any]: ...

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        shown = b',"usage":' + to_json(usage) if self._shows_usage else b""
        return self._event_head + to_json(choices) + shown + b"}\n\n"


class CompletionForm(Form):
    """/v1/completions."""

    prefix, object, event_object = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, model: str, fingerprint: str, tokenizer: Tokenizer, *, shows_usage: bool, echo: bool = False
    ) -> None:
        super().__init__(model, fingerprint, tokenizer, shows_usage=shows_usage)
        self._echo = echo
        self._offsets: dict[int, _Offsets] = {}

    def events(self, part: Part) -> bytes:
        """One event."""
        if not part.text and not part.logprobs and part.finish_reason is None:
            return b""
        return self._event([self._choice(part)])

    def _choice(self, part: Part) -> dict[str, Any]:
        logprobs = None if part.logprobs is None else self._logprobs(part.index, part.logprobs)
        return {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob | PromptStart]) -> dict[str, Any]:
        offsets = self._offsets.setdefault(index, _Offsets(self._tokenizer, self._echo))
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [None if isinstance(entry, PromptStart) else entry.logprob for entry in entries],
            "top_logprobs": [_top(entry) for entry in entries],
            "text_offset": [offsets.push(entry.token_id) for entry in entries],
        }


class _Offsets:
    """Where the tokens of one text begin, in characters.

    Args:
        tokenizer: the model's.
        whole: whether the text begins with the prompt, and so without the space that SentencePiece puts before it.
    """

    def __init__(self, tokenizer: Tokenizer, whole: bool) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = whole
        self._n_chars = 0

    def push(self, token_id: int) -> int:
        """Return where a token begins that comes after those before."""
        start = self._n_chars
        data = self._tokenizer.token_bytes(token_id, first=self._first)
        self._first = self._first and not self._tokenizer.token_bytes(token_id)
        self._n_chars += len(self._decoder.decode(data))
        return start


def _top(entry: TokenLogprob | PromptStart) -> dict[str, float] | None:
    if isinstance(entry, PromptStart):
        return None
    # Of tokens that are spelled alike, the most likely one stays, and the token itself is always there.
    return {
        token: logprob for _, token, logprob in reversed((*entry.top, (entry.token_id, entry.token, entry.logprob)))
    }


class ChatForm(Form):
    """/v1/chat/completions."""

    prefix, object, event_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first_event(self, index: int) -> bytes:
        """The role."""
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def events(self, part: Part) -> bytes:
        """The text, then the reason why it ended."""
        events = b""
        if part.text or part.logprobs:  # a token that is a part of a character has a log-probability and no text
            events += self._delta(part.index, {"content": part.text}, part.logprobs, None)
        if part.finish_reason is not None:
            events += self._delta(part.index, {}, None, part.finish_reason)
        return events

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs), "finish_reason": finish_reason}
        return self._event([choice])

    def _choice(self, part: Part) -> dict[str, Any]:
        message = {"role": "assistant", "content": part.text, "refusal": None}
        logprobs = self._logprobs(part.logprobs)
        return {"index": part.index, "message": message, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _logprobs(self, entries: Sequence[TokenLogprob | PromptStart] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        content = [
            {
                **self._token(entry.token_id, entry.token, entry.logprob),
                "top_logprobs": [self._token(*other) for other in entry.top],
            }
            for entry in entries
            if isinstance(entry, TokenLogprob)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, token: str, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": token, "logprob": logprob, "bytes": list(data) or None}
