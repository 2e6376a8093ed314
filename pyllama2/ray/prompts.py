"""Prompts of a dataset of Ray Data, continued by workers with a model each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..arguments import integer, string
from ..batches.inputs import Defaults, Item
from ..batches.ray_workers import BLOCK, Worker, cpus_and_workers, import_ray, share_model
from ..cli.naming import model_name


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
    )
