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

# The parameters that come by position, and the first that come by name.
PARAMETERS = {
    "export": (["checkpoint", "out"], "dtype"),
    "quantize": (["source", "out", "type"], "group_size"),
    "perplexity": (["model", "text"], "against"),
}


@pytest.fixture(params=PARAMETERS)
def name(request: pytest.FixtureRequest) -> str:
    assert callable(importlib.import_module(f"pyllama2.{request.param}").main)  # the command
    return str(request.param)


def test_signature(name: str) -> None:
    function: Callable[..., Any] = getattr(pyllama2, name)
    assert inspect.isfunction(function)
    by_position, by_name = PARAMETERS[name]
    kinds = {parameter.name: parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert list(kinds)[: len(by_position) + 1] == [*by_position, by_name]
    assert kinds[by_position[-1]] == inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert kinds[by_name] == inspect.Parameter.KEYWORD_ONLY


def test_pickle(name: str) -> None:
    function = getattr(pyllama2, name)
    assert pickle.loads(pickle.dumps(function)) is function


def test_pydoc(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(f"pyllama2.{name}"))
    assert f"function {name} in pyllama2" in text and "Raises:" in text


def test_pydoc_of_a_command_that_is_no_function() -> None:
    text = pydoc.plain(pydoc.render_doc("pyllama2.generate"))
    assert "module pyllama2.generate" in text and "main(argv: 'list[str] | None' = None) -> 'int'" in text


@pytest.mark.subprocess
def test_hover(name: str) -> None:
    """What an editor shows: jedi, which is behind many of them."""
    jedi = pytest.importorskip("jedi")
    code = f"import pyllama2\npyllama2.{name}("
    signatures = jedi.Script(code).get_signatures()
    assert [signature.full_name for signature in signatures] == [f"{getattr(pyllama2, name).__module__}.{name}"]
    assert "progress" in signatures[0].to_string()
    shown = jedi.Script(code).help(2, len("pyllama2.") + 1)
    assert [place.type for place in shown] == ["function"] and "Args:" in shown[0].docstring()
