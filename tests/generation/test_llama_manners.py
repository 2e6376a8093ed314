"""What Llama answers to names of other libraries, and what its results can do; variants, parameters of each prompt."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llama import CHATML, write_tiny

from pyllama2 import ClosedError, Completion, Llama, SamplingParams
from pyllama2.generation import other_names as llama_names
from pyllama2.sampling import other_names as sampling_names
from pyllama2.sampling.keywords import Sampling

PROMPT = "Once upon"
SAMPLING: dict[str, Any] = {"max_tokens": 6, "seed": 3, "temperature": 2.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "m.bin")


@pytest.fixture(scope="module")
def llm(path: Path) -> Llama:
    return Llama(path)


class TestNamesOfOthers:
    def test_of_llama(self, path: Path) -> None:
        known = inspect.signature(Llama).parameters
        assert not llama_names.OTHER_NAMES.keys() & llama_names.HINTS.keys()
        for name, ours in llama_names.OTHER_NAMES.items():
            assert ours in known and name not in known
            with pytest.raises(TypeError, match=f"no argument '{name}'; did you mean '{ours}'"):
                Llama(path, **{name: 1})  # type: ignore[arg-type]
        for name, hint in llama_names.HINTS.items():
            assert name not in known
            with pytest.raises(TypeError) as error:
                Llama(path, **{name: 1})  # type: ignore[arg-type]
            assert hint in str(error.value)
        with pytest.raises(TypeError, match="did you mean 'n_ctx'"):
            Llama(path, n_ctxt=5)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="there are model, device"):
            Llama(path, frobnicate=5)  # type: ignore[call-arg]

    def test_of_methods(self, llm: Llama) -> None:
        for name, ours in llama_names.METHODS.items():
            assert name not in dir(Llama) and not hasattr(llm, name)
            with pytest.raises(AttributeError, match=re.escape(f"Llama has no {name}: {ours}")):
                getattr(llm, name)
            method = re.match(r"(\w+)\(", ours)
            assert method is None or callable(getattr(llm, method[1]))
        with pytest.raises(AttributeError, match=r"^Llama has no frobnicate$") as caught:
            llm.frobnicate  # type: ignore[attr-defined]  # noqa: B018
        assert (caught.value.name, caught.value.obj) == ("frobnicate", llm)

    def test_of_sampling(self, llm: Llama) -> None:
        known = {field.name for field in fields(SamplingParams)}
        assert not sampling_names.OTHER_NAMES.keys() & sampling_names.HINTS.keys()
        for name, ours in sampling_names.OTHER_NAMES.items():
            assert ours in known and name not in known
            with pytest.raises(TypeError, match=f"did you mean '{ours}'"):
                llm.generate(PROMPT, **{name: 1})
        for name, hint in sampling_names.HINTS.items():
            assert name not in known
            with pytest.raises(TypeError) as error:
                llm.generate(PROMPT, **{name: 1})
            assert hint in str(error.value)

    def test_editors_know_all_fields(self) -> None:
        assert list(Sampling.__annotations__) == [field.name for field in fields(SamplingParams)]
        assert "model" in inspect.signature(Llama).parameters


class TestSeveralTexts:
    def test_variants_have_the_seeds_after_the_first(self, llm: Llama) -> None:
        texts = llm.generate(PROMPT, n=3, **SAMPLING)
        assert [one.token_ids for one in texts] == [
            llm.generate(PROMPT, **{**SAMPLING, "seed": seed}).token_ids for seed in (3, 4, 5)
        ]
        assert len({one.text for one in texts}) > 1
        assert len(llm.generate([1, 5], SamplingParams(max_tokens=1), n=1)) == 1

    def test_variants_of_one_prompt(self, llm: Llama) -> None:
        with pytest.raises(ValueError, match="n must be at least 1"):
            llm.generate(PROMPT, n=0)
        with pytest.raises(ValueError, match="one prompt"):
            llm.generate([PROMPT], n=2)  # type: ignore[call-overload]

    def test_parameters_of_each_prompt(self, llm: Llama) -> None:
        of_each = [SamplingParams(**SAMPLING), SamplingParams(**{**SAMPLING, "seed": 9, "max_tokens": 3})]
        texts = llm.generate([PROMPT, "One"], of_each, top_k=40)
        expected = [llm.generate(p, one, top_k=40).token_ids for p, one in zip([PROMPT, "One"], of_each, strict=True)]
        assert [one.token_ids for one in texts] == expected and len(expected[1]) == 3
        with pytest.raises(ValueError, match="2 params for 1 prompts"):
            llm.generate([PROMPT], of_each)
        with pytest.raises(TypeError, match="params must be SamplingParams"):
            llm.generate(PROMPT, of_each)  # type: ignore[call-overload]

    def test_stop_ids_are_those_of_each(self, llm: Llama) -> None:
        first = llm.generate(PROMPT, **SAMPLING).token_ids[0]
        of_each = [SamplingParams(**SAMPLING), SamplingParams(**SAMPLING, stop_token_ids=[first])]
        assert [one.finish_reason for one in llm.generate([PROMPT] * 2, of_each)] == ["length", "stop"]


class Counts:
    """A processor that keeps state: it forces the tokens 5, 6, 7 and so on."""

    def __init__(self) -> None:
        self.next = 5

    def __call__(self, token_ids: list[int], logits: np.ndarray) -> None:
        logits[:] = -np.inf
        logits[self.next] = 0
        self.next += 1


class TestProcessorsWithState:
    def test_each_text_has_its_own(self, llm: Llama) -> None:
        sampling = {**SAMPLING, "logits_processor_factories": [Counts]}
        for texts in (llm.generate([PROMPT, "One"], **sampling), llm.generate(PROMPT, n=2, **sampling)):
            assert [one.token_ids for one in texts] == [[5, 6, 7, 8, 9, 10]] * 2

    def test_they_come_after_the_others(self, llm: Llama) -> None:
        def forbid(token_ids: list[int], logits: np.ndarray) -> None:
            logits[:] = -np.inf
            logits[9] = 0

        found = llm.generate(PROMPT, **SAMPLING, logits_processors=[forbid], logits_processor_factories=[Counts])
        assert found.token_ids[0] == 5

    def test_an_object_of_several_texts_is_refused(self, llm: Llama) -> None:
        assert llm.generate(PROMPT, **SAMPLING, logits_processors=[Counts()]).token_ids[:2] == [5, 6]
        for call in (
            lambda: llm.generate([PROMPT, "One"], logits_processors=[Counts()]),
            lambda: llm.generate(PROMPT, n=2, logits_processors=[Counts()]),
        ):
            with pytest.raises(ValueError, match="Counts in logits_processors would get the tokens of several texts"):
                call()
        assert len(llm.generate([PROMPT], **SAMPLING, logits_processors=[Counts()])) == 1

    def test_what_is_no_function(self, llm: Llama) -> None:
        with pytest.raises(TypeError, match="logits_processor_factories must be functions"):
            SamplingParams(logits_processor_factories=[3])  # type: ignore[list-item]
        with pytest.raises(
            TypeError, match=r"what a function in logits_processor_factories returns must be a function"
        ):
            llm.generate(PROMPT, logits_processor_factories=[lambda: None])


class TestResults:
    def test_as_text_and_json(self, llm: Llama) -> None:
        completion = llm.generate(PROMPT, **SAMPLING, logprobs=2)
        assert str(completion) == completion.text
        kept = json.loads(json.dumps(completion.to_dict()))
        assert kept["token_ids"] == completion.token_ids and kept["usage"]["completion_tokens"] == 6
        assert completion.logprobs is not None and kept["logprobs"][0]["logprob"] == completion.logprobs[0].logprob
        chunks = list(llm.stream(PROMPT, **SAMPLING))
        assert "".join(map(str, chunks)) == completion.text
        assert json.loads(json.dumps(chunks[-1].to_dict()))["finish_reason"] == "length"

    def test_in_notebooks(self, llm: Llama) -> None:
        texts: Any = llm.generate([PROMPT, "One"], **SAMPLING, echo=True)
        html = texts._repr_html_()
        assert isinstance(texts, list) and all(one._repr_html_() in html for one in texts)
        stream: Any = llm.stream(PROMPT, **SAMPLING, echo=True)
        assert "6 + 0" not in stream._repr_html_()
        next(stream)
        assert PROMPT in stream._repr_html_() and stream.completion.usage.completion_tokens == 1
        assert f"{len(stream.completion.token_ids)} tokens" in stream._repr_html_()
        assert "more to come" in stream._repr_html_() and "cancelled" not in stream._repr_html_()
        list(stream)
        assert "length" in stream._repr_html_() and "more to come" not in stream._repr_html_()
        closed: Any = llm.stream(PROMPT, **SAMPLING)
        closed.close()
        assert "cancelled" in closed._repr_html_()


def generated(llm: Llama) -> Completion:
    return llm.generate(PROMPT, **SAMPLING)


class TestPickle:
    def test_it_is_the_path_and_the_settings(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        with Llama(path.name, n_ctx=40, n_threads=1, quant="q8", seed=5, context="roll") as llm:
            data = pickle.dumps(llm)
            monkeypatch.chdir("/")
            assert len(data) < 1000
            with pickle.loads(data) as copy:
                assert copy.n_ctx == 40 and copy.describe()["quantization"] == "q8"
                assert copy.generate(PROMPT).text == llm.generate(PROMPT).text  # the seed is Llama's
        with pytest.raises(ClosedError):
            pickle.dumps(llm)

    def test_all_arguments_are_kept(self, llm: Llama) -> None:
        opened, _ = llm.__reduce__()
        assert {*opened.keywords, "verbose", "progress"} == {*inspect.signature(Llama).parameters}

    @pytest.mark.slow
    def test_in_another_process(self, llm: Llama) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(generated, (llm,)).token_ids == generated(llm).token_ids


class TestScore:
    def test_alternatives(self, llm: Llama) -> None:
        entries = llm.score(PROMPT, top=3)
        scores = llm.score(PROMPT)
        ids = llm.tokenize(PROMPT)
        assert [entry.token_id for entry in entries] == ids[1:]
        np.testing.assert_allclose([entry.logprob for entry in entries], scores, rtol=1e-6)
        logits = llm.logits(ids)
        assert [[other for other, _, _ in entry.top] for entry in entries] == [
            np.argsort(-row, kind="stable")[:3].tolist() for row in logits[:-1]
        ]


MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It is"}]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return Llama(write_tiny(tmp_path_factory.mktemp("models") / "chat.bin", "bpe", template=CHATML))


class TestChats:
    def test_the_last_message_is_the_users(self, chatml: Llama, llm: Llama) -> None:
        for one, template in ((chatml, None), (llm, "llama2")):
            for call in (one.chat, one.stream_chat, one.chat_tokens):
                with pytest.raises(
                    ValueError, match=r"must be the user's, not the assistant's \(continue_final_message"
                ):
                    call(MESSAGES, template=template)
                with pytest.raises(ValueError, match="must be the user's, not the system's"):
                    call([{"role": "system", "content": "a"}], template=template)
                with pytest.raises(ValueError, match="a last message of the assistant"):
                    call(MESSAGES[:1], template=template, continue_final_message=True)

    def test_an_answer_goes_on(self, chatml: Llama, llm: Llama) -> None:
        for one, template in ((chatml, None), (llm, "llama2")):
            start = one.chat_tokens(MESSAGES[:1], template=template)
            ids = one.chat_tokens(MESSAGES, template=template, continue_final_message=True)
            assert ids[: len(start)] == start and one.detokenize(ids[len(start) :]).strip() == "It is"
            answer = one.chat(MESSAGES, template=template, continue_final_message=True, **SAMPLING)
            assert answer.token_ids == one.generate(ids, **SAMPLING).token_ids
            stream = one.stream_chat(MESSAGES, template=template, continue_final_message=True, **SAMPLING)
            assert "".join(map(str, stream)) == answer.text

    def test_llama_2_has_one_space_before_it(self, llm: Llama) -> None:
        text = "[INST] What? [/INST] It is"
        assert llm.chat_tokens(MESSAGES, template="llama2", continue_final_message=True) == llm.tokenize(text)

    def test_markers_in_the_answer_are_refused(self, llm: Llama) -> None:
        messages = [MESSAGES[0], {"role": "assistant", "content": "[INST] x"}]
        with pytest.raises(ValueError, match="INST"):
            llm.chat_tokens(messages, template="llama2", continue_final_message=True)

    @pytest.mark.slow
    def test_variables_of_the_template(self, tmp_path: Path) -> None:
        template = "{{ name | default('nobody') }}{% if tools %}{{ tools[0].x }}{% endif %}:{{ messages[0].content }}"
        with Llama(write_tiny(tmp_path / "m.bin", "bpe", template=template)) as llm:

            def text(**variables: Any) -> str:
                return llm.detokenize(llm.chat_tokens(MESSAGES[:1], template_kwargs=variables))

            assert text() == "nobody:What?" and text(name="<Ann>", tools=[{"x": 3}]) == "<Ann>3:What?"
            for name in ("messages", "bos_token"):
                with pytest.raises(ValueError, match=f"must not have {name}"):
                    text(**{name: "x"})
            for value in (object(), float("nan"), {1, 2}):
                with pytest.raises(TypeError, match="template_kwargs must be JSON values"):
                    text(x=value)
            with pytest.raises(TypeError, match="template_kwargs must be a mapping"):
                llm.chat_tokens(MESSAGES[:1], template_kwargs=[1])  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="no template_kwargs"):
                llm.chat_tokens(MESSAGES[:1], template="llama2", template_kwargs={"x": 1})


@pytest.mark.subprocess
def test_the_messages_name_no_internals() -> None:
    code = "import pyllama2\npyllama2.Llama(model_path='x')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "TypeError: Llama has no argument 'model_path'; did you mean 'model'?"
