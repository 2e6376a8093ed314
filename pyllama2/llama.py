"""Llama: a model that is ready to use, for notebooks, scripts and the command lines.

with Llama("model.bin") as llm:
    print(llm.generate("Once upon a time").text)
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .backend import asked_device, placed_threads, select_backend
from .backend.step_times import Profile
from .config import ModelConfig
from .convert import Progress
from .generation.chat_engine import ChatEngine
from .generation.chunk import Chunk, TokenLogprob
from .generation.completion import Completion
from .generation.other_names import answering_other_names
from .generation.prompt import Prompt, checked_ids, is_list_of_prompts
from .generation.requests import variants
from .generation.saved_sequences import load_state, save_state
from .generation.scoring import logits_of, scores_of
from .generation.stream import Stream, pulled_in_threads
from .loading import check_types, load_draft, load_model
from .memory import check_logits_fit
from .model_names import Adapters, find_adapters, find_model
from .progress import progress_bar
from .sampling.keywords import Sampling
from .sampling.params import SamplingParams, check_seed
from .shown import one_line, shown_value
from .tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("pyllama2")


class Llama(ChatEngine):
    """A model with its tokenizer on one device.

    Any number of threads and streams may use one Llama. Their texts are decoded together, and each result is the same
    as when it runs alone. Sequences stay in the cache, up to 1 GiB of them but at least one. A prompt that begins like
    one of them computes only the rest.

    The model's file is read as long as it is in use. To replace it, rename another file over it, as export() and
    quantize() do: a Llama that uses the old file does not notice. If the file is truncated or overwritten, every
    generation on the CPU ends in CheckpointError until the model is loaded again.

    Args:
        model: one of our files, any checkpoint that export() reads, or the name of a model: ORG/NAME on the Hugging
            Face hub, "smollm2" or "demo". None: the environment variable PYLLAMA2_MODEL, else the bundled demo model.
        device: "cpu", "cuda", "cuda:1", "cuda:0,cuda:1" for layers on several GPUs, or "auto", which is the first that
            can be used. None: the environment variable PYLLAMA2_DEVICE, else "auto".
        n_gpu_layers: how many layers GPUs have, from the first on; the CPU has the rest. None: as many as fit; -1: all.
        n_ctx: longest sequence in tokens. None: what the model was made for.
        n_threads: threads of the CPU backend. None: PYLLAMA2_NUM_THREADS, OMP_NUM_THREADS, or the physical cores.
        cpu_affinity: CPUs that these threads are bound to, one each: numbers, a string such as "0-3,8", or "cores", one
            CPU of each physical core. It says how many threads there are if n_threads does not. None: the system, or
            OMP_PLACES, places them.
        quant: "float32", "float16", "q8" or "q4" converts the weights in memory. "auto": one of our files is used as
            it is, any other checkpoint as what keeps its numbers and fits into memory. None: the latter as float32.
        kv_dtype: type of keys and values: "float32", "float16" or, where the backend has it, "int8". "auto": int8 if a
            sequence of n_ctx tokens fits into memory only so. None: the backend's choice.
        tokenizer: path of a tokenizer, for checkpoints without one.
        lora: LoRA adapters that are merged into the weights, each PATH or PATH:SCALE. A path is PEFT's directory or a
            GGUF file, or the name of either on the hub.
        seed: seed of requests that bring none. Two instances with one seed repeat each other.
        context: "stop": a text ends when it fills the context. "roll": it goes on. When prompt and text together are
            longer than n_ctx, the model sees the first 4 tokens and the newest n_ctx // 2, computed anew from position
            0 on, until the sequence has grown to n_ctx again. With max_tokens=None only the model ends such a text.
        prompt_lookup: check guesses that a text goes on as after the same tokens earlier. The output is unchanged.
        draft: check guesses of a smaller model of the same vocabulary, named like model; or of "self", the model in
            fewer bits, which "q8" or "q4" names. The output is unchanged. It needs memory, too, and becomes 4 bits
            unless it is one of our files.
        keep: keep a converted model, in ~/.cache/pyllama2 or the folder PYLLAMA2_CACHE.
        verbose: say on stderr which device was taken and why.
        progress: called as by export() while weights are converted in memory. None: on a terminal and in notebooks, a
            bar is shown if that takes longer than a second. False: nothing is shown, not even of a download.

    Attributes:
        n_ctx: longest sequence in tokens.

    Raises:
        CheckpointError: a file is bad.
        Pyllama2Error: memory does not suffice.
        BackendUnavailableError: the device cannot be used.
        TypeError, ValueError: an argument is wrong.
    """

    @answering_other_names
    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        n_gpu_layers: int | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        cpu_affinity: str | Sequence[int] | None = None,
        quant: str | None = "auto",
        kv_dtype: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        lora: Adapters = (),
        seed: int | None = None,
        context: str = "stop",
        prompt_lookup: bool = True,
        draft: str | os.PathLike[str] | None = None,
        keep: bool = False,
        verbose: bool = False,
        progress: Progress | Literal[False] | None = None,
    ) -> None:
        if arguments.string("context", context) not in ("stop", "roll"):
            raise ValueError(f"context must be stop or roll, not {shown_value(context)}")
        n_ctx = None if n_ctx is None else arguments.integer("n_ctx", n_ctx)
        n_threads = None if n_threads is None else arguments.integer("n_threads", n_threads)
        cpus, n_threads = placed_threads(cpu_affinity, n_threads)
        n_gpu_layers = None if n_gpu_layers is None else arguments.integer("n_gpu_layers", n_gpu_layers, -1)
        for name, place in (("model", model), ("draft", draft)):
            if place is not None:
                arguments.path(name, place)
        tokenizer = None if tokenizer is None else arguments.path("tokenizer", tokenizer)
        for name, flag in (("verbose", verbose), ("keep", keep), ("prompt_lookup", prompt_lookup)):
            arguments.boolean(name, flag)
        if progress is not False:
            arguments.function("progress", progress)
        seed = None if seed is None else check_seed(seed)
        check_types(quant, kv_dtype)
        select_backend(device, n_gpu_layers=n_gpu_layers)  # before weights are converted, which may take long
        quiet = progress is False
        lora = find_adapters(lora, quiet=quiet)
        path = find_model(model, needs_tokenizer=tokenizer is None, quiet=quiet)
        with progress_bar("convert", delay_s=1.0) if progress is None else nullcontext(progress or None) as progress:
            stored = load_model(
                path,
                quant=quant,
                tokenizer=tokenizer,
                lora=lora,
                n_ctx=n_ctx,
                kv_dtype=kv_dtype,
                n_threads=n_threads,
                quantized=asked_device(device).startswith("cuda"),
                keep=keep,
                progress=progress,
            )
        make_backend, why = select_backend(device, stored, None if kv_dtype == "auto" else kv_dtype, n_gpu_layers, cpus)
        if verbose:
            print(f"pyllama2: {one_line(why)}", file=sys.stderr)
        else:
            log.info("%s", one_line(why))
        super().__init__(
            stored,
            make_backend,
            n_ctx=n_ctx,
            n_threads=n_threads,
            kv_dtype=kv_dtype,
            seed=seed,
            rolls=context == "roll",
            guesses=prompt_lookup,
            draft=None if draft is None else load_draft(draft, stored, n_ctx, n_threads, quiet=quiet),
        )
        self._settings: dict[str, Any] = {
            "model": os.path.abspath(path),
            "device": device,
            "n_gpu_layers": n_gpu_layers,
            "n_ctx": n_ctx,
            "n_threads": n_threads,
            "cpu_affinity": cpu_affinity,
            "quant": quant,
            "kv_dtype": kv_dtype,
            "tokenizer": None if tokenizer is None else os.path.abspath(tokenizer),
            "lora": lora,
            "draft": os.path.abspath(draft) if draft is not None and os.path.exists(draft) else draft,
            "seed": seed,
            "context": context,
            "prompt_lookup": prompt_lookup,
            "keep": keep,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the model and the settings: another process opens the model again, with an empty cache."""
        self._require_backend()
        return partial(Llama, **self._settings), ()

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions."""
        return self._model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError when it has none, ClosedError after close()."""
        self._require_backend()
        return self._requests.tokenizer

    @overload
    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        n: None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: str | list[int], params: SamplingParams | None = None, *, n: int, **sampling: Unpack[Sampling]
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: None = None,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion | list[Completion]:
        """Continue a prompt, or several that are decoded together.

        Args:
            prompt: a string or a list of token ids, which are used as they are, without BOS; or a list of prompts.
            params: None: the defaults. For a list of prompts, a list has the parameters of each.
            n: make so many texts of one prompt, with the seeds S, S + 1 and so on, where S is that of params.
            sampling: fields of SamplingParams, which replace those of params.

        Returns:
            A Completion; a list of them for a list of prompts, or with n.

        Raises:
            ContextLengthError: a prompt is longer than n_ctx.
            NumericalError: the model computed NaN or infinite logits.
            CheckpointError: the model's file has changed.
            ClosedError: this Llama is closed.
            TypeError, ValueError: an argument is wrong.
        """
        if not is_list_of_prompts(prompt):
            checked = self._checked(cast("SamplingParams | None", params), sampling)
            request = self._requests.of_prompt(cast(Prompt, prompt), checked)
            return self._complete([request])[0] if n is None else self._complete(variants(request, n))
        if n is not None:
            raise ValueError("n makes several texts of one prompt; a list of prompts needs one entry for each text")
        return self._complete(self._requests_of(cast(Sequence[Prompt], prompt), params, sampling))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[Sampling]) -> Stream:
        """Continue a prompt chunk by chunk, as text becomes certain.

        Arguments are checked at once. Errors are those of generate().

        Args:
            prompt: a string or a list of token ids, which are used as they are, without BOS.
            params: None: the defaults.
            sampling: fields of SamplingParams, which replace those of params.

        Returns:
            An iterator of chunks; the last one has a finish_reason. Its property completion is all that came so far,
            and close() ends the generation.
        """
        return self._stream(self._requests.of_prompt(prompt, self._checked(params, sampling)))

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Unpack[Sampling]
    ) -> AsyncGenerator[Chunk, None]:
        """Run stream() for asyncio: `async for chunk in llm.astream(...)`. Arguments and errors are those of stream().

        Chunks are computed in a thread of the event loop's executor. The
        generation ends when its task is cancelled, or leaves the loop and calls aclose().
        """
        return pulled_in_threads(self._stream(self._requests.of_prompt(prompt, self._checked(params, sampling))))

    def tokenize(self, text: str, *, bos: bool = True) -> list[int]:
        """Tokenize a text. No special token comes from text.

        Args:
            text: any string.
            bos: begin with BOS, if the model's texts do.
        """
        ids = self.tokenizer.encode(text)
        return self.tokenizer.with_bos(ids) if arguments.boolean("bos", bos) else ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Raises ValueError for an id outside the vocabulary."""
        return self.tokenizer.decode(checked_ids("ids", ids, self.config.vocab_size))

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Compute raw logits.

        Args:
            tokens: at most n_ctx token ids.

        Returns:
            Logits (len(tokens), vocab_size) float32, a row after each token.

        Raises:
            ContextLengthError: there are more tokens than n_ctx.
            Pyllama2Error: memory does not suffice.
            NumericalError: logits are NaN or infinite.
            ClosedError: this Llama is closed.
            ValueError: a token is outside the vocabulary.
        """
        ids = self._requests.checked_ids("tokens", tokens)
        other_bytes = check_logits_fit(self._require_backend(), len(ids))
        with closing(self._new_cache(1, max(1, len(ids)), other_bytes)) as cache:
            return logits_of(self._require_backend(), cache, ids)

    @overload
    def score(self, text_or_tokens: Prompt, top: None = None) -> NDArray[np.float32]: ...
    @overload
    def score(self, text_or_tokens: Prompt, top: int) -> list[TokenLogprob]: ...

    def score(self, text_or_tokens: Prompt, top: int | None = None) -> NDArray[np.float32] | list[TokenLogprob]:
        """Compute how likely each token is after those before it.

        Logits are in memory in pieces of at most 64 MiB. Errors are those of logits().

        Args:
            text_or_tokens: token ids, or a text, which is tokenized as a prompt.
            top: how many of the most likely tokens to give with each. None: log-probabilities alone.

        Returns:
            Natural log-probabilities (len(tokens) - 1,) float32 of each token after the first. With top, a list of
            TokenLogprob.
        """
        if top is not None:
            return [entry for piece in self.prompt_logprobs(text_or_tokens, top) for entry in piece]
        ids = self._requests.prompt_ids(text_or_tokens, "text_or_tokens")
        return scores_of(self._logit_pieces(ids[:-1]), ids)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the sequences in the cache to a safetensors file.

        These are what generate() and chat() read and generated last. Raises CheckpointError when it cannot be written.
        """
        save_state(arguments.path("path", path), self._require_backend(), self._model, self._scheduler)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Add the sequences of a file that save_state() wrote. Prompts that begin like them compute only the rest.

        Sequences are cut to n_ctx tokens. A sequence with numbers that are not finite is left out.

        Raises:
            CheckpointError: the file is bad, or of another model, quantization or kv_dtype. Nothing is added then.
            Pyllama2Error: memory does not suffice.
        """
        load_state(arguments.path("path", path), self._require_backend(), self._model, self._scheduler, self.n_ctx)

    def describe(self) -> dict[str, Any]:
        """Return facts: where the model is from, its dimensions and quantization, and those of the backend.

        They are source, config, n_parameters, n_ctx, quantization, output_type, group_size, bytes_per_token,
        kv_cache_bytes, device, kv_dtype, weight_bytes and scratch_bytes; on the CPU also n_threads, isa and, if
        given, cpu_affinity; on a GPU gpu, compute_capability, n_multiprocessors and launches; on several GPUs layers.

        bytes_per_token counts the weights that are read to decode one token: all but the other rows of an embedding.
        The process has grown by weight_bytes, scratch_bytes and kv_cache_bytes: what was written to, and weights.
        """
        return self._facts()

    def profile(self) -> Profile:
        """Return where the time went so far, by step. str() of it is a table."""
        return self._profile(self._require_backend())

    def close(self) -> None:
        """Give back all memory. Whatever needs the model raises ClosedError afterwards.

        With PYLLAMA2_PROFILE=1 in the environment, profile() is printed on stderr.
        """
        self._close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._backend is None else self._model.quantization.type
        return f"<Llama {self.config.n_parameters / 1e6:.1f}M parameters, {state}>"
