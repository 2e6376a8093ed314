"""pyllama2 on a Ray cluster: prompts of a dataset with Ray Data, and the server with Ray Serve.

It needs pip install "pyllama2[ray]", on every machine of the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .arguments import integer, string
from .batches.inputs import Defaults, Item
from .batches.ray_workers import BLOCK, Worker, cpus_and_workers, import_ray, share_model
from .cli.naming import model_name
from .errors import Pyllama2Error
from .llama import Llama
from .model_names import find_model
from .shown import shown_value

_GRACE_S = 30.0
_NUMBERS = ("n_replicas", "min_replicas", "max_replicas", "n_threads", "n_ctx", "max_ongoing_requests")


class _PromptWorker(Worker):
    """A Worker that adds columns to batches of rows."""

    def __init__(
        self, model: Any, options: dict[str, Any], name: str, columns: dict[str, Any], asked: Defaults
    ) -> None:
        super().__init__(model, options, name)
        self._columns = columns
        self._asked = asked

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        column, output, seed = self._columns["column"], self._columns["output"], self._columns["seed"]
        texts = batch[column]
        items = []
        for i, text in enumerate(texts):
            own = {} if seed is None else {"seed": int(batch[seed][i])}
            prompt = text.tolist() if isinstance(text, np.ndarray) else text
            items.append((Item(i + 1, b"", None, *self._asked.of_text(prompt, own)), str(i)))
        columns: dict[str, list[Any]] = {output: [], "finish_reason": [], "completion_tokens": [], "error": []}
        for result in self.answer(items):
            body = result["response"]["body"]
            choice = body.get("choices", [None])[0]
            text = None if choice is None else choice.get("text", choice.get("message", {}).get("content"))
            columns[output].append(text)
            columns["finish_reason"].append(choice and choice["finish_reason"])
            columns["completion_tokens"].append(body["usage"]["completion_tokens"] if choice else 0)
            columns["error"].append(None if choice else body["error"]["message"])
        return {**batch, **{name: np.array(values, dtype=object) for name, values in columns.items()}}


def map_prompts(
    dataset: Any,
    model: str | os.PathLike[str] | None = None,
    *,
    column: str = "prompt",
    output: str = "text",
    chat: bool = False,
    system: str | None = None,
    seed_column: str | None = None,
    n_workers: int | None = None,
    n_threads: int | None = None,
    batch_size: int = BLOCK,
    llama: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Any:
    """Continue the prompts of a dataset, or answer its messages.

    Each worker loads the model once, and decodes the prompts of a batch together. A text depends on its row alone, and
    with a seed it is the same however the dataset is divided.

    Args:
        dataset: a ray.data.Dataset.
        model: as Llama takes it. A file is copied to machines that do not have it.
        column: the prompts: strings, or lists of token ids.
        output: the new column of texts. Beside it come finish_reason, completion_tokens, and error: a sentence for a
            row that was refused, whose text is null then.
        chat: whether a prompt is the message of a user.
        system: the system prompt of such chats.
        seed_column: a column with a seed for each row.
        n_workers: None: as many as the cluster has CPUs for.
        n_threads: of a worker, which takes one CPU less, so that the dataset's other steps find one. None: the CPUs of
            the smallest machine.
        batch_size: rows that a worker gets at a time.
        llama: further arguments of Llama, such as quant.
        sampling: fields of a request, such as max_tokens (256), temperature (1) and seed, as the server takes them.

    Returns:
        A ray.data.Dataset with the new columns. As always with Ray Data, it is computed when it is used.

    Raises:
        CheckpointError: there is no such model.
        Pyllama2Error: Ray is missing.
        TypeError, ValueError: an argument is wrong.
    """
    string("column", column)
    string("output", output)
    integer("batch_size", batch_size, 1)
    ray = import_ray()
    shared = share_model(ray, None if model is None else os.fspath(model))
    n_cpus, fitting = cpus_and_workers(ray, None if n_threads is None else integer("n_threads", n_threads, 1))
    asked = Defaults(sampling, chat=chat or system is not None, system=system)
    columns = {"column": column, "output": output, "seed": seed_column}
    options = {**(llama or {}), "n_threads": n_cpus}
    return dataset.map_batches(
        _PromptWorker,
        fn_constructor_args=(shared, options, model_name(shared.path), columns, asked),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=fitting if n_workers is None else integer("n_workers", n_workers, 1)),
        num_cpus=n_cpus - 1,  # the steps before this one need a CPU, too
        scheduling_strategy="SPREAD",
    )


def deployment(
    model: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    n_replicas: int | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    n_threads: int = 1,
    max_ongoing_requests: int = 64,
    grace_s: float = _GRACE_S,
    llama: Mapping[str, Any] | None = None,
    **server: Any,
) -> Any:
    """Make the server as an application of Ray Serve, for serve.run().

    Each replica is the app of pyllama2.serve.create_app() with a model of its own. Ray's proxy chooses a replica for
    each request. A replica that dies is replaced, and one that is to end answers the requests it has first.

    Args:
        model: as Llama takes it. It must be at this place on each machine.
        name: the model's name for clients. None: that of its file.
        n_replicas: None: 1, or what autoscaling says.
        autoscaling: AutoscalingConfig of Ray Serve, as a dict: min_replicas, max_replicas, target_ongoing_requests.
        n_threads: of a replica, and the CPUs that it takes.
        max_ongoing_requests: of a replica. What comes beyond that goes to others, or waits.
        grace_s: seconds that a replica has for its requests when it is to end.
        llama: further arguments of Llama, such as quant.
        server: arguments of create_app(), such as api_keys and allowed_hosts. Requests may be sent to any address of
            the cluster, unless host says otherwise.

    Returns:
        A ray.serve.Application.

    Raises:
        Pyllama2Error: Ray is missing.
        TypeError, ValueError: an argument is wrong.
    """
    integer("n_threads", n_threads, 1)
    integer("max_ongoing_requests", max_ongoing_requests, 1)
    import_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise Pyllama2Error(f'{error.name} is missing: pip install "pyllama2[ray]"') from None
    path = None if model is None else os.path.abspath(find_model(os.fspath(model)))
    scale: dict[str, Any] = {} if autoscaling is None else {"autoscaling_config": dict(autoscaling)}
    if n_replicas is not None:
        scale["num_replicas"] = integer("n_replicas", n_replicas, 1)
    options = {"host": "0.0.0.0", "names": name or model_name(path), "max_concurrent": max_ongoing_requests, **server}
    arguments = {**(llama or {}), "n_threads": n_threads}

    def make_app() -> Any:
        """Make the app of a replica."""
        from .serve import create_app

        return create_app(Llama(path, **arguments), **options)

    class Pyllama2:
        """A replica; what it answers is the app's."""

    decorate = serve.deployment(
        name="pyllama2",
        ray_actor_options={"num_cpus": n_threads},
        max_ongoing_requests=max_ongoing_requests,
        graceful_shutdown_timeout_s=grace_s,
        **scale,
    )
    return decorate(serve.ingress(make_app)(Pyllama2)).bind()


def build(args: Mapping[str, str]) -> Any:
    """Make the application from the words of a command line: serve run pyllama2.ray:build model=... n_replicas=2.

    Args:
        args: arguments of deployment(): model, name, n_replicas, n_threads, max_ongoing_requests; and min_replicas and
            max_replicas for autoscaling, quant and n_ctx for Llama. A key is taken from the environment variable
            PYLLAMA2_API_KEY, since others can read command lines.

    Returns:
        A ray.serve.Application.

    Raises:
        ValueError: there is no such argument, or it is no number.
    """
    known = {"model": str, "name": str, "quant": str, **dict.fromkeys(_NUMBERS, int)}
    for word in args:
        if word not in known:
            raise ValueError(f"{shown_value(word)} is no argument; there is {', '.join(known)}")
    given = {word: known[word](value) for word, value in args.items()}
    scale: dict[str, Any] = {word: given.pop(word) for word in ("min_replicas", "max_replicas") if word in given}
    llama: dict[str, Any] = {word: given.pop(word) for word in ("quant", "n_ctx") if word in given}
    key = os.environ.get("PYLLAMA2_API_KEY", "").strip()
    more: dict[str, Any] = {"api_keys": [key]} if key else {}
    return deployment(given.pop("model", None), autoscaling=scale or None, llama=llama, **given, **more)
