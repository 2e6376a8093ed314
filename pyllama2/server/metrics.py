"""What /metrics tells Prometheus. Each app has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .service import Service
from .work import Figures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# What ended a request early, by its error's code.
_CANCELLED = {"client_closed": "client", "timeout": "timeout", "shutting_down": "shutdown"}


class Metrics:
    """Counts requests.

    Args:
        service: what is looked at when Prometheus asks.
    """

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pyllama2_requests", "Requests by path and status; 499: the client left.", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._cancelled = Counter(
            "pyllama2_requests_cancelled", "Requests whose texts were ended early.", ["reason"], registry=registry
        )
        for reason in _CANCELLED.values():
            self._cancelled.labels(reason)
        self._prompt = Counter("pyllama2_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter(
            "pyllama2_cached_tokens", "Tokens of prompts that were found in the cache.", registry=registry
        )
        self._generated = Counter("pyllama2_generated_tokens", "Generated tokens.", registry=registry)
        self._first = Histogram(
            "pyllama2_time_to_first_token_seconds", "From a request's arrival to its first token.",
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self._token = Histogram(
            "pyllama2_time_per_token_seconds", "Of a request's tokens after the first, for each of its texts.",
            buckets=_TOKEN, registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "pyllama2_request_seconds", "From a request's arrival to its last byte.", buckets=_WHOLE, registry=registry
        )
        for name, what, value in (
            ("requests_running", "Texts that are generated now.", lambda: service.counts[0]),
            ("requests_waiting", "Requests that wait.", lambda: service.counts[1]),
            ("kv_cache_tokens", "Tokens whose keys and values are in the cache.", lambda: service.llm.cache_use()[0]),
            ("kv_cache_capacity_tokens", "Tokens that the cache has room for.", lambda: service.llm.cache_use()[1]),
            ("kv_cache_use_ratio", "Share of the cache that is in use.", lambda: _ratio(*service.llm.cache_use())),
        ):
            Gauge(f"pyllama2_{name}", what, registry=registry).set_function(value)

    def count(self, path: str, status: int, figures: Figures, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(path, str(status)).inc()
        if figures.error in _CANCELLED or figures.gone:
            self._cancelled.labels("client" if figures.gone else _CANCELLED[figures.error or ""]).inc()
        usage = figures.usage
        if usage is None:
            return
        self._prompt.inc(usage["prompt_tokens"])
        self._cached.inc(usage["prompt_tokens_details"]["cached_tokens"])
        self._generated.inc(usage["completion_tokens"])
        self._whole.observe(seconds)
        if figures.first is not None:
            self._first.observe(figures.first - figures.arrived)
            per_token = figures.seconds_per_token
            if per_token is not None:
                self._token.observe(per_token)

    def text(self) -> bytes:
        """All figures in Prometheus's format."""
        return generate_latest(self._registry)


def _ratio(used: int, capacity: int) -> float:
    return used / capacity if capacity else 0.0
