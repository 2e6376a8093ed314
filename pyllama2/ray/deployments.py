"""The server as an application of Ray Serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..arguments import integer
from ..batches.ray_workers import import_ray
from ..cli.naming import model_name
from ..errors import Pyllama2Error
from ..model_names import find_model
from ..serve import make_settings
from ..shown import shown_value
from .front import Front, OwnApp, Replica, make_app

_GRACE_S = 30.0
_NUMBERS = ("n_replicas", "min_replicas", "max_replicas", "n_threads", "n_ctx", "max_ongoing_requests", "n_fronts")
_NAME = "pyllama2"  # of the deployment whose replicas have models
_FRONT_REQUESTS = 1000  # that a front may have; replicas have a limit of their own


def deployment(
    model: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    n_replicas: int | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    n_threads: int = 1,
    max_ongoing_requests: int = 64,
    grace_s: float = _GRACE_S,
    route_by_prefix: bool = True,
    n_fronts: int = 2,
    llama: Mapping[str, Any] | None = None,
    **server: Any,
) -> Any:
    """Make the server as an application of Ray Serve, for serve.run().

    Each replica is the app of pyllama2.serve.create_app() with a model of its own. A replica that dies is replaced, and
    one that is to end answers the requests it has first.

    If there may be more than one replica, requests go through fronts: small processes that give requests that begin
    alike, such as the turns of a chat, to the same replica, whose cache has what the earlier ones computed. A request
    whose replica dies before it has answered is given to another.

    Args:
        model: as Llama takes it. It must be at this place on each machine.
        name: the model's name for clients. None: that of its file.
        n_replicas: None: 1, or what autoscaling says.
        autoscaling: AutoscalingConfig of Ray Serve, as a dict: min_replicas, max_replicas, target_ongoing_requests.
        n_threads: of a replica, and the CPUs that it takes.
        max_ongoing_requests: of a replica. What comes beyond that goes to others, or waits.
        grace_s: seconds that a replica has for its requests when it is to end.
        route_by_prefix: False: there are no fronts, and Ray's proxy chooses replicas by how busy they are.
        n_fronts: fronts. They take no CPU of Ray's count.
        llama: further arguments of Llama, such as quant.
        server: arguments of create_app(), such as api_keys and allowed_hosts. Requests may be sent to any address of
            the cluster, unless host says otherwise. Of each front max_queue requests may wait for a replica; one more
            is answered with 429.

    Returns:
        A ray.serve.Application.

    Raises:
        Pyllama2Error: Ray is missing.
        TypeError, ValueError: an argument is wrong.
    """
    integer("n_threads", n_threads, 1)
    integer("n_fronts", n_fronts, 1)
    integer("max_ongoing_requests", max_ongoing_requests, 1)
    import_ray()
    try:
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ImportError as error:
        raise Pyllama2Error(f'{error.name} is missing: pip install "pyllama2[ray]"') from None
    path = None if model is None else os.path.abspath(find_model(os.fspath(model)))
    scale: dict[str, Any] = {} if autoscaling is None else {"autoscaling_config": dict(autoscaling)}
    if n_replicas is not None:
        scale["num_replicas"] = integer("n_replicas", n_replicas, 1)
    options = {"host": "0.0.0.0", "names": name or model_name(path), "max_concurrent": max_ongoing_requests, **server}
    settings = make_settings(**options)
    arguments = {**(llama or {}), "n_threads": n_threads}
    scale["ray_actor_options"] = {"num_cpus": n_threads}
    scale["max_ongoing_requests"] = max_ongoing_requests
    most = n_replicas or (autoscaling or {}).get("max_replicas", 1)
    if most == 1 or not route_by_prefix:

        def app_of_replica() -> OwnApp:
            """Make the app of a replica."""
            return make_app(path, arguments, options)

        decorate = serve.deployment(name=_NAME, graceful_shutdown_timeout_s=grace_s, **scale)
        return decorate(serve.ingress(app_of_replica)(_Ingress)).bind()

    def front() -> Front:
        """Make the app of a front."""
        return Front(serve.get_deployment_handle(_NAME), settings)

    replicas = serve.deployment(
        name=_NAME,
        graceful_shutdown_timeout_s=grace_s,
        request_router_config=RequestRouterConfig(request_router_class="pyllama2.ray.router.PrefixRouter"),
        max_queued_requests=max(1, settings.max_queue),  # Ray counts those that it is about to send, too
        **scale,
    )(Replica)
    decorate = serve.deployment(
        name=f"{_NAME}-front",
        num_replicas=n_fronts,
        max_ongoing_requests=_FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=grace_s,
    )
    return decorate(serve.ingress(front)(_Ingress)).bind(replicas.bind(path, arguments, options))


def build(args: Mapping[str, Any]) -> Any:
    """Make the application from the words of a command line: serve run pyllama2.ray:build model=... n_replicas=2.

    Args:
        args: arguments of deployment(): model, name, n_replicas, n_threads, max_ongoing_requests, route_by_prefix,
            n_fronts, and allowed_hosts with commas; min_replicas and max_replicas for autoscaling, quant and n_ctx for
            Llama. A key is taken from the environment variable PYLLAMA2_API_KEY, since others can read command lines.
            Ray's configuration files may have numbers, true, false and lists instead of words.

    Returns:
        A ray.serve.Application.

    Raises:
        ValueError: there is no such argument, or it is no number.
    """
    known: dict[str, Callable[[Any], Any]] = {"model": str, "name": str, "quant": str, **dict.fromkeys(_NUMBERS, int)}
    known |= {"route_by_prefix": _yes_or_no, "allowed_hosts": _list}
    for word in args:
        if word not in known:
            raise ValueError(f"{shown_value(word)} is no argument; there is {', '.join(known)}")
    given = {word: known[word](value) for word, value in args.items()}
    scale: dict[str, Any] = {word: given.pop(word) for word in ("min_replicas", "max_replicas") if word in given}
    llama: dict[str, Any] = {word: given.pop(word) for word in ("quant", "n_ctx") if word in given}
    key = os.environ.get("PYLLAMA2_API_KEY", "").strip()
    more: dict[str, Any] = {"api_keys": [key]} if key else {}
    return deployment(given.pop("model", None), autoscaling=scale or None, llama=llama, **given, **more)


class _Ingress:
    """What Ray makes of an app.

    Args:
        replicas: of a front: their handle, which Ray starts them for.
    """

    def __init__(self, *replicas: Any) -> None:
        pass


def _yes_or_no(value: Any) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in words:
        raise ValueError(f"{shown_value(value)} is neither true nor false")
    return words[str(value).lower()]


def _list(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)
