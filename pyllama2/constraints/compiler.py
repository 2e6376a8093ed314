"""From a Constraint to a Grammar, which is checked in a process of its own (worker.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from typing import Any, TypeVar

from ..errors import ConstraintError, Pyllama2Error
from ..process.confined import command, folder_of, options, program
from ..process.locks import Lock
from ..sampling.constraint import Constraint
from ..shown import shown
from ..tokenizer.base import Tokenizer
from .matcher import LIMITS, Grammar
from .vocabulary import Vocabulary

# Seconds that a check may take on a busy machine. Its processor time has a limit of its own.
_TIMEOUT_S = 30.0
# Constraints that are not checked again: so many that can be used, and so many that cannot.
_KEPT = 16
# The return code of a process that was not ended by its own limits, but perhaps for want of memory in the machine.
_KILLED = -9
_START = program("constraints", "worker")

# Checks wait for one of these, so that no more run at the same time. Which one follows from the constraint, so that
# equal constraints wait for each other.
_TURNS = (Lock(), Lock())

V = TypeVar("V")
_Key = tuple[Constraint, bool]


class _NoVerdictError(ConstraintError):
    """A check did not end, which another time it may."""


class Compiler:
    """Compiles the constraints of one model. All methods may be called from any thread.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()  # guards the next three
        self._vocabulary: Vocabulary | None = None
        self._grammars: OrderedDict[_Key, Grammar] = OrderedDict()
        self._refusals: OrderedDict[_Key, str] = OrderedDict()

    def compile(self, constraint: Constraint, *, after_space: bool = False) -> Grammar:
        """Compile a constraint, unless that was done before. At most two are checked at the same time.

        Args:
            constraint: what a text must be.
            after_space: the tokens begin with a space that is not part of the text.

        Raises:
            ConstraintError: the constraint is wrong or not supported, nothing can match it, or it takes too much time
                or memory.
            Pyllama2Error: llguidance is missing, or the process that checks it cannot be started.
        """
        key = (constraint, after_space)
        grammar = self._known(key)
        if grammar is None:
            with _TURNS[hash(key) % len(_TURNS)]:
                grammar = self._known(key) or self._check(key)  # another thread may have checked it meanwhile
        return grammar

    def _known(self, key: _Key) -> Grammar | None:
        """What was checked before, if it was. Raises ConstraintError if it was refused."""
        with self._lock:
            if key in self._refusals:
                self._refusals.move_to_end(key)
                raise ConstraintError(self._refusals[key])
            if key in self._grammars:
                self._grammars.move_to_end(key)
            return self._grammars.get(key)

    def _check(self, key: _Key) -> Grammar:
        constraint, after_space = key
        try:
            answer = checked(constraint, after_space)
        except _NoVerdictError:
            raise
        except ConstraintError as error:
            with self._lock:
                _keep(self._refusals, key, str(error))
            raise
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer)
            grammar = Grammar(constraint.kind, self._vocabulary, **answer)
            _keep(self._grammars, key, grammar)
        return grammar


def _keep(kept: OrderedDict[_Key, V], key: _Key, value: V) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def checked(constraint: Constraint, after_space: bool) -> dict[str, Any]:
    """Compile a constraint in another process, to see what that takes.

    Args:
        constraint: what a text must be.
        after_space: begin with a space.

    Returns:
        source, goes_back and is_empty of a Grammar.

    Raises:
        ConstraintError: it cannot be used.
        Pyllama2Error: llguidance is missing, or the process cannot be started.
    """
    request = {"kind": constraint.kind, "text": constraint.text, "after_space": after_space, "limits": LIMITS}
    start = command(_START, _folder())
    name = f"{constraint.kind} cannot be used"
    try:
        result = subprocess.run(
            start,
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
            **options(),
        )
    except OSError as error:
        raise Pyllama2Error(f"cannot start {sys.executable!r} to check {constraint.kind}: {error}") from error
    except subprocess.TimeoutExpired:
        raise _NoVerdictError(f"{name}: to compile it takes too long") from None
    if result.returncode != 0:
        refusal = _NoVerdictError if result.returncode == _KILLED else ConstraintError
        raise refusal(f"{name}: to compile it takes too much time or memory")
    answer: dict[str, Any] = json.loads(result.stdout)
    if "error" in answer:
        raise ConstraintError(f"{name}: {shown(answer['error'], 400)}")
    return answer


def _folder() -> str:
    """The folder that llguidance is imported from."""
    folder = folder_of("llguidance")
    if folder is None:
        raise Pyllama2Error(
            'json_schema, regex and grammar need llguidance, which is missing: pip install "pyllama2[constraints]"'
        )
    return folder
