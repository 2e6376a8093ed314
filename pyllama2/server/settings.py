"""What a server allows, as one immutable object."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import integer, real, string


@dataclass(frozen=True)
class Settings:
    """Limits and safety of one server.

    Attributes:
        names: names of the model that requests may use; the first is shown in answers.
        keys: API keys, one of which a request must bring. Empty: no key is asked for.
        host: the address that is listened to, whose Host header is accepted besides localhost's.
        allowed_hosts: further host names that requests may be sent to.
        cors_origins: origins (such as https://example.org) whose pages may use the server; "*" is any.
        max_concurrent: texts that are generated at a time.
        max_queue: requests that may wait for that.
        timeout_s: seconds that a request may take in all.
        max_body_bytes: bytes of a request.
        max_header_bytes: bytes of its headers.
        header_timeout_s: seconds in which the headers of a request must arrive.
        body_timeout_s: seconds in which each part of its body must arrive.
        max_choices: most choices that n may ask for.
        max_prompts: most prompts of one request.
        max_texts: most texts of one request: prompts times n.
        ping_s: seconds without an event after which a stream gets a comment, so that proxies keep it open.
        temperature: of requests that name none.
        top_p: of requests that name none.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_concurrent: int = 32
    max_queue: int = 128
    timeout_s: float = 600.0
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 16 << 10
    header_timeout_s: float = 20.0
    body_timeout_s: float = 30.0
    max_choices: int = 16
    max_prompts: int = 128
    max_texts: int = 256
    ping_s: float = 15.0
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_concurrent", "max_body_bytes", "max_header_bytes", "max_choices", "max_prompts", "max_texts"):
            integer(name, getattr(self, name), 1)
        integer("max_queue", self.max_queue, 0)
        for name in ("timeout_s", "header_timeout_s", "body_timeout_s", "ping_s"):
            real(name, getattr(self, name), 0.001)
        real("temperature", self.temperature, 0, 2)
        real("top_p", self.top_p, 0, 1)
        if not self.names or not all(string("names", name) for name in self.names):
            raise ValueError("names must be one or more strings of at least one character")
