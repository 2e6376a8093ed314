"""A program that uses the whole public interface with every type written out.

tests/project/test_typing.py has mypy check it strictly, and runs it. What must not pass is marked "type: ignore": mypy
complains of a mark that is not needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import pyllama2
from pyllama2 import (
    BackendUnavailableError,
    CheckpointError,
    Chunk,
    ClosedError,
    Completion,
    ConstraintError,
    ContextLengthError,
    DeviceMemoryError,
    Llama,
    NumericalError,
    Perplexity,
    Pyllama2Error,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)


def processor(token_ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits * np.float32(1.0 + 0.0 * len(token_ids))


def in_place(token_ids: list[int], logits: NDArray[np.float32]) -> None:
    logits[0] = -np.inf


def sampling() -> SamplingParams:
    bias: Mapping[int, float] = {3: -1.0}
    params = SamplingParams(
        temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.1, repetition_window=32,
        presence_penalty=0.1, frequency_penalty=0.1, max_tokens=4, stop=["zzz"], stop_token_ids=[5], ignore_eos=True,
        logprobs=2, echo=False, seed=1, logit_bias=bias, logits_processors=[processor, in_place],
    )  # fmt: skip
    changed: SamplingParams = SamplingParams.of(params, max_tokens=3)
    temperature: float = changed.temperature
    max_tokens: int | None = changed.max_tokens
    assert temperature == 0.7 and max_tokens == 3
    return changed


def one_of(texts: list[Completion]) -> Completion:
    return texts[0]


def completions(llm: Llama) -> None:
    one: Completion = llm.generate("Once", sampling())
    from_ids: Completion = llm.generate([1, 5], max_tokens=2)
    variants: list[Completion] = llm.generate("Once", n=2, max_tokens=2)
    of_each: list[Completion] = llm.generate(["Once", "One"], [sampling(), sampling()], max_tokens=2)
    entries: list[TokenLogprob] = llm.score("Once upon", top=2)
    as_dict: dict[str, Any] = one_of(variants).to_dict()
    assert len(variants) == len(of_each) == 2 and entries and as_dict["text"] == str(variants[0])
    several: list[Completion] = llm.generate(["Once", "One day"], temperature=0, max_tokens=2)
    of_ids: list[Completion] = llm.generate([[1, 5], [1, 6]], max_tokens=2)
    assert len(several) == len(of_ids) == 2 and from_ids.usage.prompt_tokens == 2

    text: str = one.text
    token_ids: list[int] = one.token_ids
    finish_reason: Literal["stop", "length", "cancelled"] = one.finish_reason
    stop_reason: str | int | None = one.stop_reason
    logprobs: list[TokenLogprob] | None = one.logprobs
    for entry in logprobs or []:
        top: tuple[tuple[int, str, float], ...] = entry.top
        print(entry.token_id, entry.token, round(entry.logprob, 3), len(top))
    usage: Usage = one.usage
    numbers: tuple[int, int, int] = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    timings: Timings = one.timings
    seconds: float = timings.prompt_s + timings.decode_s
    speeds: tuple[float, float] = (timings.prompt_tokens_per_s, timings.decode_tokens_per_s)
    print(text, token_ids, finish_reason, stop_reason, numbers, seconds > 0, len(speeds))


def streams(llm: Llama) -> None:
    chunks: Iterator[Chunk] = llm.stream("Once", max_tokens=3)
    for chunk in chunks:
        piece: str = chunk.text
        ids: list[int] = chunk.token_ids
        logprobs: list[TokenLogprob] | None = chunk.logprobs
        ended: Literal["stop", "length", "cancelled"] | None = chunk.finish_reason
        print(piece, ids, logprobs, ended)
    stream = llm.stream([1, 5], SamplingParams(max_tokens=9))
    next(stream)
    stream.close()
    came: Completion = stream.completion
    assert came.finish_reason == "cancelled"


def chats(llm: Llama) -> None:
    messages: list[dict[str, str]] = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
    answer: Completion = llm.chat(messages, max_tokens=2, template="llama2")
    for chunk in llm.stream_chat(messages, SamplingParams(max_tokens=2), template="llama2", allow_markers=True):
        print(chunk.text)
    ids: list[int] = llm.chat_tokens(messages, template="llama2", allow_markers=False)
    assert answer.usage.prompt_tokens == len(ids)


def tokens_and_numbers(llm: Llama) -> None:
    ids: list[int] = llm.tokenize("Once upon", bos=True)
    text: str = llm.detokenize(ids)
    logits: NDArray[np.float32] = llm.logits(ids)
    scores: NDArray[np.float32] = llm.score(text)
    of_ids: NDArray[np.float32] = llm.score(ids)
    vocab_size: int = llm.config.vocab_size
    facts: dict[str, Any] = llm.describe()
    profile: pyllama2.backend.step_times.Profile = llm.profile()
    print(profile.decode_tokens)
    bos: int | None = llm.tokenizer.bos_id
    assert logits.shape == (len(ids), vocab_size) and scores.shape == of_ids.shape and facts["n_ctx"] == llm.n_ctx
    print(bos, llm)


def progress(done: int, total: int, name: str) -> None:
    print(f"{done} of {total}", name)


def files(model: Path) -> None:
    exported, quantized = model.with_suffix(".float16"), model.with_suffix(".q8")
    pyllama2.export(model, exported, dtype="float16", tokenizer=None, max_seq_len=32, norm_eps=1e-5, progress=progress)
    pyllama2.quantize(str(exported), quantized, "q8", group_size=32, output_type="q4", progress=progress)
    result: Perplexity = pyllama2.perplexity(quantized, "Once upon a time", against=exported, window=20, stride=5)
    kl: float | None = result.kl_divergence
    assert kl is not None and result.perplexity > 1


def errors(llm: Llama) -> None:
    for kind in (
        CheckpointError,
        ClosedError,
        ConstraintError,
        ContextLengthError,
        DeviceMemoryError,
        BackendUnavailableError,
        NumericalError,
    ):
        base: type[Pyllama2Error] = kind
        assert issubclass(base, Exception)
    try:
        llm.generate([1] * 1000)
    except ContextLengthError as error:
        print(error)


def mistakes(llm: Llama) -> None:
    """Never called."""
    llm.generate(3)  # type: ignore[call-overload]
    llm.generate(b"bytes")  # type: ignore[call-overload]
    llm.generate("Once", max_new_tokens=3)  # type: ignore[call-overload]
    llm.chat([{"role": "user", "content": "a"}], temperature="hot")  # type: ignore[arg-type]
    wrong: list[Completion] = llm.generate("one prompt")  # type: ignore[assignment]
    llm.tokenize("text", True)  # type: ignore[call-arg]
    llm.chat("hello")  # type: ignore[arg-type]
    Llama(None, "cpu")  # type: ignore[call-arg]
    pyllama2.export("a", "b", "float16")  # type: ignore[call-arg]
    print(wrong, llm.generate("one prompt").txt)  # type: ignore[attr-defined]


def main(path: str) -> None:
    model = Path(path)
    with Llama(
        model, device="cpu", n_ctx=60, n_threads=1, quant=None, kv_dtype=None, tokenizer=None, seed=1, verbose=False
    ) as llm:  # fmt: skip
        completions(llm)
        streams(llm)
        chats(llm)
        tokens_and_numbers(llm)
        errors(llm)
    llm.close()
    files(model)
    print(pyllama2.__version__)


if __name__ == "__main__":
    main(sys.argv[1])
