"""Llama: a model ready to be used. The object of notebooks, scripts and the command lines.

with Llama("model.bin") as llm:
    print(llm.generate("Once upon a time").text)
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .backend import select_backend
from .backend.base import Backend, KVCache
from .backend.step_times import Profile, StepTime
from .chat_formats import Message
from .config import ModelConfig
from .convert import Progress
from .errors import ContextLengthError
from .generation.chunk import Chunk
from .generation.completion import Completion
from .generation.generation import Generation, Request
from .generation.prefix_cache import PrefixCache
from .generation.prompt import (
    Prompt,
    check_token_ids,
    checked_ids,
    is_list_of_prompts,
)
from .generation.requests import RequestMaker
from .generation.saved_sequences import SequenceLayout, StateFile, save_sequences
from .generation.scheduler import Scheduler
from .generation.scoring import LogitRows, logit_pieces, logits_of, scores_of
from .generation.stream import Stream, pulled_in_threads
from .loading import find_model, load_model
from .memory import check_logits_fit, logits_bytes, piece_tokens, rows_that_fit
from .process.interrupts import Interrupts
from .sampling.sampler import SamplingParams, check_seed
from .shown import one_line, shown_value
from .storage.new_file import NewFile
from .tokenizer import load_tokenizer
from .tokenizer.base import Tokenizer

log = logging.getLogger("pyllama2")


class Llama:
    """A model with its tokenizer on one device.

    model      one of our files, any checkpoint that export() reads, "smollm2", or None for the environment's
               PYLLAMA2_MODEL, else the bundled demo model
    device     "cpu", "cuda", or "auto": the environment's PYLLAMA2_DEVICE, else the first that can be used
    n_ctx      longest sequence in tokens; None: what the model was made for
    n_threads  threads of the CPU backend; None: PYLLAMA2_NUM_THREADS, OMP_NUM_THREADS, or the physical cores
    quant      "float16", "q8" or "q4": convert the weights in memory; None: use one of our files as it is,
               others as float32
    kv_dtype   "float32", "float16" or, where the backend has it, "int8" keys and values; None: its own choice
    tokenizer  path of a tokenizer, for checkpoints without one
    seed       of requests that bring none: two instances with one seed repeat each other
    context    "stop": a text ends when it fills the context. "roll": it goes on; when prompt and text together are
               longer than n_ctx, the model sees the first 4 tokens and the newest n_ctx // 2 of them, computed
               anew from position 0 on, until that has grown to n_ctx tokens again. With max_tokens=None such a
               text goes on until it ends itself
    prompt_lookup  guess that a text goes on as it did after the same tokens before, in the prompt or since, and
               check several guesses in one pass. Texts that quote come faster, and no text is another
    verbose    say on stderr which device was taken and why
    progress   called as by export() while weights are converted in memory

    Any number of threads and streams may use one Llama: their texts are decoded together, and none says anything
    else than alone. Sequences stay in memory, up to 1 GiB of them or one, and a prompt that begins like one of them
    computes only the rest.

    A model's file is read as long as it is used. Replace it by renaming another over it, as export() and quantize()
    do, which a Llama that uses it does not notice. One that is truncated or written over ends every generation on
    the CPU in CheckpointError, until it is loaded again.

    Raises CheckpointError for bad files, Pyllama2Error when memory does not suffice, BackendUnavailableError for
    a device that cannot be used, TypeError and ValueError for wrong arguments.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        n_ctx: int | None = None,
        n_threads: int | None = None,
        quant: str | None = None,
        kv_dtype: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        context: str = "stop",
        prompt_lookup: bool = True,
        verbose: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if arguments.string("context", context) not in ("stop", "roll"):
            raise ValueError(f"context must be stop or roll, not {shown_value(context)}")
        arguments.string("device", device)
        for name, text in (("quant", quant), ("kv_dtype", kv_dtype)):
            if text is not None:
                arguments.string(name, text)
        n_ctx, n_threads = (
            None if number is None else arguments.integer(name, number)
            for name, number in (("n_ctx", n_ctx), ("n_threads", n_threads))
        )
        model = None if model is None else arguments.path("model", model)
        tokenizer = None if tokenizer is None else arguments.path("tokenizer", tokenizer)
        arguments.boolean("verbose", verbose)
        arguments.function("progress", progress)
        seed = None if seed is None else check_seed(seed)
        device = os.environ.get("PYLLAMA2_DEVICE") or device if device == "auto" else device
        select_backend(device)  # before weights are converted, which may take long
        path = find_model(model)
        self._model = load_model(
            path,
            quant=quant,
            tokenizer=tokenizer,
            n_ctx=n_ctx,
            kv_dtype=kv_dtype,
            n_threads=n_threads,
            progress=progress,
        )
        backend_class, why = select_backend(device, self._model, kv_dtype)
        if verbose:
            print(f"pyllama2: {one_line(why)}", file=sys.stderr)
        else:
            log.info("%s", one_line(why))
        self._rolls = context == "roll"
        self._guesses = arguments.boolean("prompt_lookup", prompt_lookup)
        self.n_ctx = self.config.max_seq_len if n_ctx is None else n_ctx
        embedding = self._model.weights["tok_embeddings.weight"].nbytes
        self._bytes_per_token = self._model.nbytes - (0 if self.config.tied_embeddings else embedding)
        spec = self._model.tokenizer
        self._tokenizer = None if spec is None else load_tokenizer(spec, self.config.vocab_size)
        self._requests = RequestMaker(
            self._tokenizer, self._model.chat_template, self.config.vocab_size, self.n_ctx, seed
        )
        self._backend: Backend | None = backend_class(self._model, n_threads=n_threads, kv_dtype=kv_dtype)
        self._scheduler = self._new_scheduler()

    def __reduce__(self) -> str:
        raise TypeError("a Llama cannot be pickled; make one in each process (a forked process may use its parent's)")

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions."""
        return self._model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError when it has none."""
        self._require_backend()
        if self._tokenizer is None:
            raise ValueError("the model has no tokenizer; give the path of one (tokenizer=...)")
        return self._tokenizer

    @overload
    def generate(self, prompt: str, params: SamplingParams | None = None, **sampling: Any) -> Completion: ...
    @overload
    def generate(self, prompt: list[int], params: SamplingParams | None = None, **sampling: Any) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], params: SamplingParams | None = None, **sampling: Any
    ) -> list[Completion]: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **sampling: Any
    ) -> Completion | list[Completion]:
        """Continue a prompt, a string or a list of token ids; a list of prompts gives a list, decoded together.

        sampling are fields of SamplingParams, which replace those of params. Token ids are used as they
        are, without BOS. Raises ContextLengthError when a prompt is longer than n_ctx, ValueError or
        TypeError for wrong arguments, NumericalError when the model computes NaN, CheckpointError when the model's file
        has changed.
        """
        params = self._checked(params, sampling)
        if not is_list_of_prompts(prompt):
            return self._complete([self._requests.of_prompt(cast(Prompt, prompt), params)])[0]
        requests: list[Request] = []
        for i, one in enumerate(cast(Sequence[Prompt], prompt)):
            try:
                requests.append(self._requests.of_prompt(one, params, requests[0].stop_ids if requests else None))
            except (ContextLengthError, TypeError, ValueError) as error:
                kind = next(kind for kind in (ContextLengthError, TypeError, ValueError) if isinstance(error, kind))
                raise kind(f"prompt {i}: {error}") from error
        return self._complete(requests)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any) -> Stream:
        """Continue a prompt, chunk by chunk as text becomes certain; the last chunk has finish_reason.

        Arguments are checked at once; errors are those of generate(). The stream has a property completion,
        all that came so far, and close().
        """
        return self._stream(self._requests.of_prompt(prompt, self._checked(params, sampling)))

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any
    ) -> AsyncGenerator[Chunk, None]:
        """stream() for asyncio: `async for chunk in llm.astream(...)`.

        Chunks are computed in a thread of the event loop's executor. A task that is cancelled, or leaves the loop and
        calls aclose(), ends the generation.
        """
        return pulled_in_threads(self._stream(self._requests.of_prompt(prompt, self._checked(params, sampling))))

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        **sampling: Any,
    ) -> Completion:
        """The assistant's answer to messages, [{"role": ..., "content": ...}], the last of them the user's.

        template names a chat format other than the model's own (llama2, chatml, llama3, zephyr, mistral).
        Raises ValueError for messages that the format cannot express, and for format markers inside a
        message unless allow_markers; else like generate().
        """
        request = self._requests.of_chat(messages, self._checked(params, sampling), template, allow_markers)
        return self._complete([request])[0]

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        **sampling: Any,
    ) -> Stream:
        """chat(), chunk by chunk."""
        return self._stream(self._requests.of_chat(messages, self._checked(params, sampling), template, allow_markers))

    def astream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template: str | None = None,
        allow_markers: bool = False,
        **sampling: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """stream_chat() for asyncio, as astream() is stream()."""
        return pulled_in_threads(
            self.stream_chat(messages, params, template=template, allow_markers=allow_markers, **sampling)
        )

    def tokenize(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of a text, after BOS if bos and the model begins with one. No special token comes from text."""
        ids = self.tokenizer.encode(text)
        return self.tokenizer.with_bos(ids) if arguments.boolean("bos", bos) else ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids. Raises ValueError for ids outside the vocabulary."""
        return self.tokenizer.decode(checked_ids("ids", ids, self.config.vocab_size))

    def chat_tokens(
        self, messages: Sequence[Message], *, template: str | None = None, allow_markers: bool = False
    ) -> list[int]:
        """The token ids that chat() feeds the model."""
        self._require_backend()
        return self._requests.chat_ids(messages, template, allow_markers)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits (len(tokens), vocab_size) float32 after each token.

        Raises ContextLengthError for more tokens than n_ctx, Pyllama2Error when memory does not suffice, NumericalError
        for NaN, ValueError for unknown tokens.
        """
        ids = self._requests.checked_ids("tokens", tokens)
        beside = check_logits_fit(self._require_backend(), len(ids))
        with closing(self._new_cache(1, max(1, len(ids)), beside)) as cache:
            return logits_of(self._require_backend(), cache, ids)

    def score(self, text_or_tokens: Prompt) -> NDArray[np.float32]:
        """Natural log-probabilities of each token after the first, (len(tokens) - 1,) float32.

        A text is tokenized as a prompt is. Logits are in memory in pieces of at most 64 MiB. Raises what logits() does.
        """
        ids = self._requests.prompt_ids(text_or_tokens, "text_or_tokens")
        return scores_of(self._logit_pieces(ids[:-1]), ids)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the sequences in the cache to a file: what generate() and chat() read and said last, keys and values.

        A safetensors file under a temporary name that becomes path at the end. Raises CheckpointError when it
        cannot be written.
        """
        target = arguments.path("path", path)
        layout = SequenceLayout(self._require_backend(), self._model)
        with (
            Interrupts() as interrupts,
            self._scheduler.rows(interrupts) as rows,
            NewFile(target, interrupts) as file,
            interrupts.allowed(),
        ):
            save_sequences(file, rows, layout)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Add the sequences of a file that save_state() wrote; prompts that begin like them compute only the rest.

        Sequences are cut to n_ctx tokens. One whose numbers are not finite is left out: its prompt is computed anew.
        Raises CheckpointError for a bad file and one of another model, quantization or kv_dtype; nothing is
        added then. Pyllama2Error when memory does not suffice.
        """
        source = arguments.path("path", path)
        layout = SequenceLayout(self._require_backend(), self._model)
        with (
            closing(StateFile(source, layout, self.n_ctx)) as file,
            Interrupts() as interrupts,
            self._scheduler.rows(interrupts) as rows,
        ):
            file.load_into(rows)

    def describe(self) -> dict[str, Any]:
        """Facts for people: where the model is from, its dimensions, quantization, and what the backend says of itself.

        bytes_per_token are the weights that are read to decode one token: all but the other rows of an embedding.
        weight_bytes, scratch_bytes and kv_cache_bytes (keys and values of generate() and chat()) together are what the
        process has grown by: of memory that is reserved, what was written to by now. Weights count in full, also those
        of a mapped file that were not read yet.
        """
        facts = self._require_backend().describe()
        quantization = self._model.quantization
        return {
            "source": self._model.source,
            "config": self.config,
            "n_parameters": self.config.n_parameters,
            "n_ctx": self.n_ctx,
            "quantization": quantization.type,
            "output_type": quantization.output_type,
            "group_size": quantization.group_size,
            "bytes_per_token": self._bytes_per_token,
            **facts,
            "kv_cache_bytes": self._scheduler.kv_cache_bytes,
        }

    def profile(self) -> Profile:
        """Where the time went so far, by step of the forward pass; str() of it is a table."""
        return self._profile(self._require_backend())

    def _profile(self, backend: Backend) -> Profile:
        profile = backend.profile()
        if not profile.steps:
            return profile
        sampling = StepTime("sampling, text", self._scheduler.sampling_s[0], self._scheduler.sampling_s[1])
        return replace(profile, steps=(*profile.steps, sampling))

    def close(self) -> None:
        """Give back all memory. Anything but close() raises ValueError afterwards.

        With PYLLAMA2_PROFILE=1 in the environment it prints profile() on stderr.
        """
        backend, self._backend = self._backend, None  # at once: others may be closing it, too
        if backend is not None:
            if os.environ.get("PYLLAMA2_PROFILE", "0") not in ("", "0"):
                print(self._profile(backend), file=sys.stderr)
            self._scheduler.close()
            backend.close()
            self._model.weights.clear()
        self._requests.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._backend is None else self._model.quantization.type
        return f"<Llama {self.config.n_parameters / 1e6:.1f}M parameters, {state}>"

    def _require_backend(self) -> Backend:
        if self._backend is None:
            raise ValueError("this Llama is closed")
        return self._backend

    def _checked(self, params: SamplingParams | None, sampling: dict[str, Any]) -> SamplingParams:
        """For this model, which must be open."""
        params = SamplingParams.of(params, **sampling)
        self._require_backend()
        check_token_ids(params, self.config.vocab_size)
        return params

    def _new_cache(self, n_rows: int, n_tokens: int, beside: int) -> KVCache:
        """A cache of up to n_rows rows: as many as there is memory for, besides that for so many bytes.

        Raises Pyllama2Error when it is not one.
        """
        backend = self._require_backend()
        return backend.new_cache(rows_that_fit(backend, n_rows, n_tokens, beside), n_tokens)

    def _logit_pieces(self, ids: list[int], first: int = 0, n_tokens: int | None = None) -> Iterator[LogitRows]:
        """Logits after each of ids from position first on, by n_tokens (None: the usual number), in a cache of its own.

        What is given must be dropped before the next piece is asked for, or both are in memory.
        """
        n_tokens = piece_tokens(self.config) if n_tokens is None else n_tokens
        beside = logits_bytes(self.config, n_tokens)
        with closing(self._new_cache(1, max(1, len(ids)), beside)) as cache:
            yield from logit_pieces(self._require_backend(), cache, ids, first, n_tokens)

    def _text(self, request: Request) -> Generation:
        return Generation(request, self.tokenizer, self.n_ctx, rolls=self._rolls, guesses=self._guesses)

    def _new_scheduler(self) -> Scheduler:
        backend = self._require_backend()
        rows = PrefixCache(
            backend.new_cache, partial(rows_that_fit, backend), self.n_ctx, partial(backend.kv_cache_bytes, 1)
        )
        return Scheduler(backend, rows)

    def _stream(self, request: Request) -> Stream:
        self._require_backend()
        return Stream(self._scheduler, self._text(request))

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        self._require_backend()
        return self._scheduler.run(map(self._text, requests))
