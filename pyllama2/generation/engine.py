"""A loaded model with all that generates from it: its tokenizer, backend, cache and scheduler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from ..arguments import integer
from ..backend.base import Backend
from ..backend.devices import MakeBackend
from ..backend.kv_cache import KVCache
from ..backend.step_times import Profile, StepTime
from ..chat_formats.base import Message
from ..errors import ClosedError
from ..memory import logits_bytes, piece_tokens, rows_that_fit, weight_bytes_per_token, with_fitting_cache
from ..sampling.params import SamplingParams
from ..storage.fingerprint import fingerprint
from ..storage.model_file import StoredModel
from ..tokenizer import load_tokenizer
from ..tokenizer.compare import check_same_vocabulary
from .background import Background
from .chunk import TokenLogprob
from .completion import Completion, Completions
from .draft import DraftModel
from .generation import Generation, Request
from .logprobs import logprobs_of
from .prefix_cache import PrefixCache
from .prompt import Prompt, check_token_ids, naming_prompt
from .requests import ChatOptions, RequestMaker, variants
from .scheduler import Scheduler
from .scoring import LogitRows, logit_pieces
from .stream import Stream


class Engine:
    """The inside of a Llama.

    Args:
        model: the weights and the tokenizer's data.
        make_backend: the class of the backend that runs it, or what makes it.
        n_ctx: longest sequence in tokens. None: what the model was made for.
        n_threads: passed to the backend.
        kv_dtype: passed to the backend, but for "auto", which with_fitting_cache() explains.
        seed: seed of requests that bring none. None: from the system.
        rolls: a text that fills the context goes on.
        guesses: texts guess their next tokens (prompt_lookup.py).
        draft: a model of the same vocabulary that guesses tokens (draft.py); None: there is none.

    Raises:
        ValueError: the draft has another vocabulary, or the backend cannot run it.
    """

    def __init__(
        self,
        model: StoredModel,
        make_backend: MakeBackend,
        *,
        n_ctx: int | None,
        n_threads: int | None,
        kv_dtype: str | None,
        seed: int | None,
        rolls: bool,
        guesses: bool,
        draft: StoredModel | None = None,
    ) -> None:
        config = model.config
        self.n_ctx = config.max_seq_len if n_ctx is None else n_ctx
        self._model = model
        self._rolls = rolls
        self._guesses = guesses
        self._tokenizer = None if model.tokenizer is None else load_tokenizer(model.tokenizer, config.vocab_size)
        self._requests = RequestMaker(self._tokenizer, model.chat_template, config.vocab_size, self.n_ctx, seed)
        backend = with_fitting_cache(
            lambda dtype: make_backend(model, n_threads=n_threads, kv_dtype=dtype), kv_dtype, self.n_ctx
        )
        self._backend: Backend | None = backend
        self._rows = PrefixCache(
            backend.new_cache, partial(rows_that_fit, backend), self.n_ctx, partial(backend.kv_cache_bytes, 1)
        )
        self._draft = draft
        try:
            drafts = None if draft is None else self._draft_model(draft, make_backend, n_threads)
        except BaseException:
            backend.close()
            raise
        self._scheduler = Scheduler(backend, self._rows, drafts)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model brings a chat template: then it was made for chat(), and generate() is without it."""
        return self._model.chat_template is not None

    @property
    def has_chat_format(self) -> bool:
        """Whether chat() needs no template=...: the model has a template, or the vocabulary of Llama-2."""
        self._require_backend()
        return self._requests.has_chat_format()

    def fingerprint(self, *more: str) -> str:
        """Return 16 hexadecimal digits for the model, the device and its instruction set, and for more.

        With other digits, a seed may mean another text. Of each tensor, its beginning and end are looked at.
        """
        facts = self._require_backend().describe().known()
        kind = (f"{name} {facts.get(name)}" for name in ("device", "isa", "kv_dtype"))
        return fingerprint(self._model, *kind, *more)

    def cache_use(self) -> tuple[int, int]:
        """Return how many tokens have keys and values in the cache, and how many it has room for now."""
        return self._rows.use

    def prompt_logprobs(self, prompt: Prompt, top: int = 0) -> Iterator[list[TokenLogprob]]:
        """Compute how likely each token of a prompt is after those before it, and what was likelier.

        Arguments are checked at once. A piece is computed when it is asked for.

        Args:
            prompt: a string or token ids.
            top: how many of the most likely tokens to give with each.

        Returns:
            An iterator of lists, which join to one TokenLogprob for each token after the first.

        Raises:
            ContextLengthError: the prompt is longer than n_ctx.
            NumericalError: logits are NaN or infinite.
            TypeError, ValueError: an argument is wrong.
        """
        self._require_backend()
        ids = self._requests.prompt_ids(prompt)
        n_top = integer("top", top, 0)
        return logprobs_of(self._requests.tokenizer, self._logit_pieces(ids[:-1]), ids, n_top)

    def prompt_request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """Make the request to continue a prompt, for streams(). Raises what generate() raises for wrong arguments."""
        return self._requests.of_prompt(prompt, self._checked(params, {}))

    def chat_request(self, messages: Sequence[Message], params: SamplingParams) -> Request:
        """Make the request to answer a chat, for streams(). Raises what chat() raises for wrong arguments."""
        return self._requests.of_chat(messages, self._checked(params, {}), ChatOptions())

    def check_constraint(self, params: SamplingParams) -> None:
        """Raise what a text with params would raise for a json_schema, regex or grammar that cannot be used."""
        self._requests.grammar(self._checked(params, {}), continues=False)

    def streams(self, request: Request, n: int) -> list[Stream]:
        """Make n streams of one request. The i-th has the request's seed + i."""
        return [self._stream(one) for one in variants(request, n)]

    def background(self, updated: Callable[[bool], None]) -> Background:
        """Make what generates streams in a thread of its own. updated is called after each step; see Background."""
        return Background(self._scheduler, updated)

    def _draft_model(self, draft: StoredModel, make_backend: MakeBackend, n_threads: int | None) -> DraftModel:
        if draft.config.vocab_size != self._model.config.vocab_size:
            sizes = self._model.config.vocab_size, draft.config.vocab_size
            raise ValueError(f"the draft has another vocabulary, of {sizes[1]} tokens instead of {sizes[0]}")
        if self._tokenizer is not None and draft.tokenizer is not None and draft.tokenizer != self._model.tokenizer:
            check_same_vocabulary(self._tokenizer, load_tokenizer(draft.tokenizer, draft.config.vocab_size))
        backend = make_backend(draft, n_threads=n_threads)
        return DraftModel(backend, min(self.n_ctx, draft.config.max_seq_len))

    def _require_backend(self) -> Backend:
        """The backend. Raises ClosedError when closed."""
        if self._backend is None:
            raise ClosedError("this Llama is closed")
        return self._backend

    def _checked(self, params: SamplingParams | None, sampling: Mapping[str, Any]) -> SamplingParams:
        """Parameters that fit this model, which must be open."""
        params = SamplingParams.of(params, **sampling)
        self._require_backend()
        check_token_ids(params, self._model.config.vocab_size)
        return params

    def _requests_of(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        sampling: Mapping[str, Any],
    ) -> list[Request]:
        """The requests to continue several prompts, with the same parameters or a list of those of each."""
        if params is None or isinstance(params, SamplingParams) or not isinstance(params, Sequence):
            of_each = [self._checked(params, sampling)] * len(prompts)
        elif len(params) != len(prompts):
            raise ValueError(f"there are {len(params)} params for {len(prompts)} prompts")
        else:
            of_each = [self._checked(one, sampling) for one in params]
        requests: list[Request] = []
        for i, (prompt, checked) in enumerate(zip(prompts, of_each, strict=True)):
            with naming_prompt(i):
                same = bool(i) and checked is of_each[i - 1]
                requests.append(self._requests.of_prompt(prompt, checked, requests[-1].stop_ids if same else None))
        return requests

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        self._require_backend()
        if len(requests) > 1:
            for params in {id(request.params): request.params for request in requests}.values():
                params.check_for_several()
        return Completions(self._scheduler.run(map(self._text, requests)))

    def _stream(self, request: Request) -> Stream:
        self._require_backend()
        return Stream(self._scheduler, self._text(request))

    def _text(self, request: Request) -> Generation:
        self._require_backend()
        tokenizer = self._requests.tokenizer
        return Generation(request, tokenizer, self.n_ctx, rolls=self._rolls, guesses=self._guesses)

    def _new_cache(self, n_rows: int, n_tokens: int, other_bytes: int) -> KVCache:
        """A cache of at most n_rows rows, as many as fit into memory beside other_bytes.

        Raises Pyllama2Error when not even one fits.
        """
        backend = self._require_backend()
        return backend.new_cache(rows_that_fit(backend, n_rows, n_tokens, other_bytes), n_tokens)

    def _logit_pieces(self, ids: list[int], first: int = 0, n_tokens: int | None = None) -> Iterator[LogitRows]:
        """Logits after each of ids from position first on, n_tokens at a time (None: the usual number).

        They have a cache of their own. Drop each piece before asking for the next, or both are in memory.
        """
        config = self._model.config
        n_tokens = piece_tokens(config) if n_tokens is None else n_tokens
        with closing(self._new_cache(1, max(1, len(ids)), logits_bytes(config, n_tokens))) as cache:
            yield from logit_pieces(self._require_backend(), cache, ids, first, n_tokens)

    def _facts(self) -> dict[str, Any]:
        facts = self._require_backend().describe().known()
        quantization = self._model.quantization
        return {
            "source": self._model.source,
            "config": self._model.config,
            "n_parameters": self._model.config.n_parameters,
            "n_ctx": self.n_ctx,
            "quantization": quantization.type,
            "output_type": quantization.output_type,
            "group_size": quantization.group_size,
            "bytes_per_token": weight_bytes_per_token(self._model.config, quantization),
            **facts,
            "kv_cache_bytes": self._rows.resident_bytes,
        }

    def _profile(self, backend: Backend) -> Profile:
        profile = backend.profile()
        if not profile.steps:
            return profile
        time = self._scheduler.sampling_time
        sampling = StepTime("sampling, text", time.single, time.prompts)
        return replace(profile, steps=(*profile.steps, sampling))

    def _close(self) -> None:
        backend, self._backend = self._backend, None  # at once: another thread may be closing it too
        if backend is not None:
            if os.environ.get("PYLLAMA2_PROFILE", "0") not in ("", "0"):
                print(self._profile(backend), file=sys.stderr)
            self._scheduler.close()
            backend.close()
            self._model.weights.clear()
            if self._draft is not None:
                self._draft.weights.clear()
        self._requests.close()
