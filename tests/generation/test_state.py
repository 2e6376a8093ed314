"""Files of sequences: what is saved is there again, and nothing damaged or foreign gets in."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.scheduling import Watched
from helpers.tiny import random_weights
from helpers.tiny_llama import CONFIG, PROMPT, PROMPTS, same, write_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pyllama2 import CheckpointError, ClosedError, Llama, NumericalError
from pyllama2.generation import saved_sequences as state
from pyllama2.storage.safetensors import make_header

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def saved(llm: Llama, tmp_path: Path) -> Path:
    """The state of a Llama that has generated some texts."""
    llm.generate(PROMPTS, seed=1, max_tokens=10, ignore_eos=True)
    llm.save_state(tmp_path / "state")
    return tmp_path / "state"


def changed(path: Path, target: Path, **tensors: np.ndarray | None) -> Path:
    """A copy of a state with other tensors (None: without it), written by the safetensors package."""
    arrays = {name: array for name, array in (load_file(path) | tensors).items() if array is not None}
    with safe_open(path, framework="np") as file:
        save_file(arrays, target, file.metadata())
    return target


def with_metadata(path: Path, target: Path, **metadata: str) -> Path:
    with safe_open(path, framework="np") as file:
        save_file(load_file(path), target, file.metadata() | metadata)
    return target


def in_cache(llm: Llama) -> set[tuple[int, ...]]:
    return {tuple(row.ids) for row in llm._scheduler._rows.rows if row.ids}


class TestRoundTrip:
    @pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
    def test_goes_on_where_it_was(self, path: Path, tmp_path: Path, kv_dtype: str) -> None:
        with Llama(path, kv_dtype=kv_dtype) as llm:
            begun = llm.generate(PROMPT, seed=1, max_tokens=10, ignore_eos=True)
            ids = [*llm.tokenize(PROMPT), *begun.token_ids, 5]
            llm.save_state(tmp_path / "state")
            before = in_cache(llm)
        with Llama(path, kv_dtype=kv_dtype) as llm:
            expected = llm.generate(ids, seed=2, max_tokens=10)
        with Llama(path, kv_dtype=kv_dtype) as llm:
            llm.load_state(tmp_path / "state")
            assert in_cache(llm) == before
            found = llm.generate(ids, seed=2, max_tokens=10)
        assert same(found, expected) and found.usage.cached_tokens == len(ids) - 2

    def test_all_sequences(self, llm: Llama, path: Path, saved: Path) -> None:
        with Llama(path) as other:
            other.load_state(saved)
            assert in_cache(other) == in_cache(llm) and len(in_cache(other)) >= len(PROMPTS)
            other.load_state(saved)  # nothing twice
            assert len(in_cache(other)) == len([row for row in other._scheduler._rows.rows if row.ids])
            for prompt in PROMPTS:
                again = other.generate(prompt, seed=1)
                assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
                assert same(again, llm.generate(prompt, seed=1))

    def test_adds_to_what_is_there(self, path: Path, saved: Path) -> None:
        with Llama(path) as llm:
            llm.generate([1, 7, 8, 9, 10], max_tokens=1)
            running = llm.stream([1, 9, 9], seed=1, ignore_eos=True)
            next(running)
            llm.load_state(saved)
            for _ in running:
                pass
            assert same(running.completion, llm.generate([1, 9, 9], seed=1, ignore_eos=True))
            assert llm.generate([1, 7, 8, 9, 10], max_tokens=1).usage.cached_tokens == 4

    def test_longer_than_the_context(self, llm: Llama, path: Path, saved: Path) -> None:
        ids = llm.tokenize(PROMPTS[2])
        with Llama(path, n_ctx=len(ids) - 3) as short:
            short.load_state(saved)
            completion = short.generate(ids[:-4], seed=1)
            assert completion.usage.cached_tokens == len(ids) - 5 and completion.usage.completion_tokens <= 1

    def test_nothing_to_save(self, path: Path, tmp_path: Path) -> None:
        with Llama(path) as llm:
            llm.save_state(tmp_path / "state")
            llm.load_state(tmp_path / "state")
            assert in_cache(llm) == set()

    def test_the_safetensors_package_opens_it(self, llm: Llama, saved: Path) -> None:
        arrays = load_file(saved)
        n = sum(name.endswith("tokens") for name in arrays)
        assert {tuple(arrays[f"{i}.tokens"]) for i in range(n)} == in_cache(llm)
        length = len(arrays["0.tokens"])
        assert arrays["0.keys"].shape == (CONFIG.n_layers, CONFIG.n_kv_heads, length, CONFIG.head_dim)


class TestWriting:
    def test_a_failure_leaves_nothing(self, llm: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "state"
        target.write_bytes(b"old")
        llm.generate(PROMPT, max_tokens=1)
        cache = llm._scheduler._rows.cache
        assert cache is not None
        monkeypatch.setattr(cache, "save_row", lambda row, length: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            llm.save_state(target)
        assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]

    def test_where_it_cannot_be_written(self, llm: Llama, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is a directory"):
            llm.save_state(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot write .*nowhere"):
            llm.save_state(tmp_path / "nowhere" / "state")


class TestRefused:
    def test_other_models(self, saved: Path, path: Path, tmp_path: Path) -> None:
        weights = random_weights(CONFIG)
        weights["layers.1.attention.wv.weight"] = weights["layers.1.attention.wv.weight"] * np.float32(1.01)
        others = [
            write_tiny(tmp_path / "a.bin", weights=weights),
            write_tiny(tmp_path / "b.bin", weight_type="q8"),
            write_tiny(tmp_path / "c.bin", rope_theta=20_000.0),
        ]
        for other in others:
            with Llama(other, kv_dtype="float32") as llm, pytest.raises(CheckpointError, match="another model"):
                llm.load_state(saved)
        with Llama(path, kv_dtype="float16") as llm, pytest.raises(CheckpointError, match="kv_dtype 'float32'"):
            llm.load_state(saved)

    def test_other_files(self, llm: Llama, saved: Path, path: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="not one that save_state"):
            llm.load_state(path)
        with pytest.raises(CheckpointError, match="version '9'"):
            llm.load_state(with_metadata(saved, tmp_path / "a", version="9"))
        with pytest.raises(CheckpointError, match="cannot open"):
            llm.load_state(tmp_path / "none")
        with pytest.raises(CheckpointError, match="not a regular file"):
            llm.load_state(tmp_path)

    def test_wrong_tensors(self, llm: Llama, saved: Path, tmp_path: Path) -> None:
        arrays = load_file(saved)
        keys, tokens = arrays["1.keys"], arrays["1.tokens"]
        before = in_cache(llm)
        for tensors in (
            {"1.keys": None},
            {"1.keys": keys[:, :, :-1].copy()},
            {"1.keys": keys.astype(np.float16)},
            {"1.keys": keys.reshape(-1)},
            {"1.tokens": tokens.astype(np.int16)},
            {"1.tokens": tokens.reshape(1, -1)},
            {"1.tokens": tokens[:0], "1.keys": keys[:, :, :0], "1.values": keys[:, :, :0]},
            {"1.tokens": tokens - 400},
            {"1.tokens": tokens + CONFIG.vocab_size},
            {"1.more": tokens},
            {name.replace("0.", "99."): array for name, array in arrays.items() if name.startswith("0.")},
            {f"{i}.{name}": arrays[f"0.{name}"] for i in range(40) for name in ("tokens", "keys", "values")},
        ):
            with pytest.raises(CheckpointError):
                llm.load_state(changed(saved, tmp_path / "bad", **tensors))
        assert in_cache(llm) == before

    def test_truncation(self, llm: Llama, saved: Path, tmp_path: Path) -> None:
        data = saved.read_bytes()
        for length in (*range(0, 300, 7), *range(300, len(data), 997), len(data) - 1):
            (tmp_path / "cut").write_bytes(data[:length])
            with pytest.raises(CheckpointError):
                llm.load_state(tmp_path / "cut")

    @pytest.mark.slow
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_changed_headers(self, llm: Llama, saved: Path, tmp_path: Path, data: st.DataObject) -> None:
        raw = bytearray(saved.read_bytes())
        end = 8 + int.from_bytes(raw[:8], "little")
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "flip").write_bytes(raw)
        try:
            llm.load_state(tmp_path / "flip")
        except CheckpointError:
            return
        header = json.loads(raw[8:end])
        assert header["__metadata__"]["format"] == state.FORMAT
        llm.generate(PROMPT, max_tokens=2)

    @pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_numbers_that_are_not_finite(
        self, path: Path, tmp_path: Path, kv_dtype: str, value: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The sequence is left out, and its prompt computed anew."""
        with Llama(path, kv_dtype=kv_dtype) as llm:
            expected = llm.generate(PROMPTS, seed=1, max_tokens=5)
            llm.save_state(tmp_path / "state")
            sequences = in_cache(llm)
        for name, array in load_file(tmp_path / "state").items():
            if array.dtype.kind != "f" or not name.startswith("1."):
                continue
            array = array.copy()
            array[-1, -1, -1] = value
            bad = changed(tmp_path / "state", tmp_path / "bad", **{name: array})
            with Llama(path, kv_dtype=kv_dtype) as llm:
                llm.load_state(bad)
                assert (
                    len(sequences - in_cache(llm)) == 1 and "sequence 1 has numbers that are not finite" in caplog.text
                )
                assert all(map(same, llm.generate(PROMPTS, seed=1, max_tokens=5), expected))

    def test_numbers_that_the_model_makes_nan_of(self, llm: Llama, path: Path, saved: Path, tmp_path: Path) -> None:
        """They are finite, and lead to NaN: what was loaded is forgotten, and the prompt computed anew."""
        arrays = load_file(saved)
        values = {name: np.full_like(a, 3e38) for name, a in arrays.items() if name.endswith("values")}
        with Llama(path) as other:
            other.load_state(changed(saved, tmp_path / "bad", **values))
            with pytest.raises(NumericalError):
                other.generate(PROMPT, seed=1, max_tokens=5)
            for prompt in PROMPTS:
                assert same(other.generate(prompt, seed=1, max_tokens=5), llm.generate(prompt, seed=1, max_tokens=5))

    def test_lengths_that_no_memory_has(self, path: Path, tmp_path: Path) -> None:
        """A sparse file of 20 million tokens is cut like others, at no cost."""
        with Llama(path) as llm:
            layout = state.SequenceLayout(llm._backend, llm._model)
            infos = state._layout(layout.infos(0, 20_000_000))
            metadata = {"format": state.FORMAT, "version": state.VERSION, **layout.identity}
            header = make_header(infos, metadata)
            with open(tmp_path / "giant", "wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(info.nbytes for info in infos.values()))
            tracemalloc.start()
            llm.load_state(tmp_path / "giant")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert in_cache(llm) == {(0,) * CONFIG.max_seq_len} and peak < 4 << 20

    def test_a_file_that_changes_while_it_is_read(
        self, llm: Llama, path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Llama(path) as other:
            before = in_cache(other)
            monkeypatch.setattr(state, "all_finite", lambda part: saved.write_bytes(b"x") == 1)
            with pytest.raises(CheckpointError, match="changed while it was in use"):
                other.load_state(saved)
            assert in_cache(other) == before

    def test_closed(self, path: Path, saved: Path) -> None:
        llm = Llama(path)
        llm.close()
        for call in (llm.save_state, llm.load_state):
            with pytest.raises(ClosedError, match="this Llama is closed"):
                call(saved)

    def test_in_a_signal_handler_amid_a_step(self, fresh: Llama, tmp_path: Path) -> None:
        """It would wait for the step that it interrupts; a text that is asked for there is refused, too."""
        refused: list[str] = []

        def handle(number: int, frame: object) -> None:
            for call in (lambda: fresh.save_state(tmp_path / "state"), lambda: fresh.generate(PROMPT)):
                with pytest.raises(ValueError, match="a signal's handler cannot wait") as caught:
                    call()
                refused.append(str(caught.value))

        before = signal.signal(signal.SIGALRM, handle)
        try:
            Watched(fresh, lambda batch: None if refused else signal.raise_signal(signal.SIGALRM))
            fresh.generate(PROMPT, max_tokens=2)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert len(refused) == 2
