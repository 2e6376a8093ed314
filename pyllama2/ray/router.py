"""Ray Serve's choice of a replica for a request. Ray loads this file by its name."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from .prefix import in_order


class PrefixRouter(RequestRouter):  # type: ignore[misc, unused-ignore]  # Ray is Any where it is missing
    """Sends requests that begin alike to the same replica, unless that one is much busier than others.

    The first argument of a request is its key (prefix.py).
    """

    def initialize_state(self, slack: int = 8) -> None:
        """Take the arguments of request_router_kwargs.

        Args:
            slack: requests that the replica of a key may have above the least busy one.
        """
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which Ray asks them whether they have room for a request."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # before all are asked again
        replicas: dict[str, Any] = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        names = list(replicas)
        random.shuffle(names)  # of those that are equally busy, any
        known = self.replica_queue_len_cache
        queues = {name: known.get(replicas[name].replica_id) or 0 for name in names}
        key = pending_request.args[0] if pending_request.args else ""
        return [[replicas[name]] for name in in_order(key, queues, self._slack)]
