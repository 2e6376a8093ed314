"""pyllama2.export, quantize and perplexity are functions for every tool, also after their commands were imported."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pydoc
from collections.abc import Callable
from typing import Any

import pytest

import pyllama2
from pyllama2 import convert
from pyllama2.analysis import evaluation

FUNCTIONS = {"export": convert.export, "quantize": convert.quantize, "perplexity": evaluation.perplexity}
PARAMETERS = {
    "export": ["checkpoint", "out", "dtype", "tokenizer", "max_seq_len", "norm_eps", "progress"],
    "quantize": ["source", "out", "type", "group_size", "output_type", "progress"],
    "perplexity": ["model", "text", "against", "window", "stride", "progress"],
}


@pytest.fixture(params=FUNCTIONS)
def name(request: pytest.FixtureRequest) -> str:
    assert callable(importlib.import_module(f"pyllama2.{request.param}").main)  # the command
    return str(request.param)


def test_signature(name: str) -> None:
    function: Callable[..., Any] = getattr(pyllama2, name)
    assert function is FUNCTIONS[name] and inspect.isfunction(function)
    assert list(inspect.signature(function).parameters) == PARAMETERS[name]


def test_pickle(name: str) -> None:
    function = getattr(pyllama2, name)
    assert pickle.loads(pickle.dumps(function)) is function


def test_pydoc(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(f"pyllama2.{name}"))
    assert f"function {name} in pyllama2" in text and "Raises:" in text


def test_pydoc_of_a_command_that_is_no_function() -> None:
    text = pydoc.plain(pydoc.render_doc("pyllama2.generate"))
    assert "module pyllama2.generate" in text and "main(argv: 'list[str] | None' = None) -> 'int'" in text


def test_hover(name: str) -> None:
    """What an editor shows: jedi, which is behind many of them."""
    jedi = pytest.importorskip("jedi")
    code = f"import pyllama2\npyllama2.{name}("
    signatures = jedi.Script(code).get_signatures()
    assert [signature.full_name for signature in signatures] == [f"{FUNCTIONS[name].__module__}.{name}"]
    assert "progress" in signatures[0].to_string()
    shown = jedi.Script(code).help(2, len("pyllama2.") + 1)
    assert [place.type for place in shown] == ["function"] and "Args:" in shown[0].docstring()
