"""The state of one text in its grammar: which tokens may come next.

    Grammar (checked once) -> Matcher (one for each text): mask() -> a token is sampled -> accept() -> mask() ...

llguidance limits its work for each token (LIMITS). A text that needs more ends with an error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConstraintError
from ..process.exit_gate import GATE
from ..sampling import sample
from ..sampling.constraint import Kind
from .vocabulary import Vocabulary

# A token is guessed only where so few are allowed: the longest, if it begins with each of the others.
_FEW = 24


# Limits of llguidance: what it does for one token, and the memory of one text. Items are those of its Earley parser.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,  # of 1 to 2 KB
    "max_grammar_size": 500_000,
    "precompute_large_lexemes": False,  # it has no limit
    "verbose_errors": False,
}


@dataclass(frozen=True)
class Grammar:
    """A constraint that was checked (compiler.py), for one model.

    Attributes:
        kind: the name of the parameter, for errors.
        vocabulary: the model's tokens.
        source: what llguidance compiles.
        goes_back: whether its state can forget tokens again.
        is_empty: whether it matches nothing but the empty text.
    """

    kind: Kind
    vocabulary: Vocabulary
    source: str
    goes_back: bool
    is_empty: bool

    def matcher(self, stop_ids: Collection[int]) -> Matcher:
        """Make the matcher of a new text.

        It is compiled anew, mostly within 2 ms. Copies of a matcher of llguidance's share what they learn, and so a
        limit: a text might end with an error because of another one.

        Args:
            stop_ids: tokens that end the text. Those that add no text are allowed where the text may end.

        Raises:
            ConstraintError: llguidance refuses the grammar.
        """
        return Matcher(self, stop_ids)


class Matcher:
    """The state of one text. Grammar.matcher() makes it.

    Attributes:
        ended: whether nothing can follow.
    """

    def __init__(self, grammar: Grammar, stop_ids: Collection[int]) -> None:
        import llguidance

        self._kind = grammar.kind
        self._vocabulary = grammar.vocabulary
        self._goes_back = grammar.goes_back
        self._stops = [token_id for token_id in stop_ids if self._vocabulary.is_special(token_id)]
        self._bits = np.zeros(self._vocabulary.n_tokens // 32 + 1, np.uint32)
        self._address = self._bits.ctypes.data
        self._is_current = False  # whether _bits are those of the next token
        with GATE:
            limits = llguidance.LLParserLimits(**LIMITS)
            self._native = llguidance.LLMatcher(self._vocabulary.native, grammar.source, log_level=0, limits=limits)
        self._check()
        self.ended = grammar.is_empty  # llguidance says so only after a token

    def mask(self) -> NDArray[np.uint32]:
        """Return which tokens may come next.

        Returns:
            A bit for each token, valid until the next call of any method: see TokenMask.

        Raises:
            ConstraintError: this takes more work than the limits allow.
        """
        if not self._is_current:
            with GATE:
                self._native.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
            self._check()
            n = self._vocabulary.n_tokens
            may_end = bool(self._bits[n >> 5] >> (n & 31) & 1)
            for token_id in self._stops:
                bit = np.uint32(1 << (token_id & 31))
                if may_end:
                    self._bits[token_id >> 5] |= bit
                else:
                    self._bits[token_id >> 5] &= ~bit
            self._is_current = True
        return self._bits

    def accept(self, token_id: int) -> None:
        """Go on with a token that mask() allows and that does not end the text.

        Raises:
            ConstraintError: this takes more work than the limits allow.
        """
        self._advance(token_id)

    def forced(self, most: int) -> list[int]:
        """Guess tokens that come next because the grammar allows little else, such as the name of a property.

        Each is the longest of a few allowed tokens, and begins with all others of them, so it goes the only way or part
        of it. The state is unchanged.

        Args:
            most: most tokens to guess.
        """
        found: list[int] = []
        if not self._goes_back:
            return found
        while len(found) < most and not self.ended and (token := self._longest()) is not None:
            self._advance(token)
            found.append(token)
        if found:
            self._go_back(len(found))
        return found

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of tokens may come next, in this order."""
        with GATE:
            return int(self._native.validate_tokens(list(tokens))) if tokens else 0

    def _longest(self) -> int | None:
        """The longest allowed token, if it begins with all other allowed ones, which are few."""
        allowed = sample.few_allowed(self.mask(), self._vocabulary.n_tokens, _FEW)
        if not allowed:
            return None
        tokens = self._vocabulary.tokens
        longest = max(allowed, key=lambda token_id: len(tokens[token_id]))
        if not all(tokens[token_id] and tokens[longest].startswith(tokens[token_id]) for token_id in allowed):
            return None
        return longest

    def _advance(self, token_id: int) -> None:
        self._is_current = False
        with GATE:
            self._native.consume_token(token_id)
        self._check()
        self.ended = self._native.is_stopped()

    def _go_back(self, n_tokens: int) -> None:
        self._is_current = False
        with GATE:
            self._native.rollback(n_tokens)
        self._check()
        self.ended = self._native.is_stopped()

    def _check(self) -> None:
        if self._native.is_error():
            dead_end = self._native.get_error().startswith("NoExtension")
            why = "the model has no token for what must follow" if dead_end else "it is too complex"
            raise ConstraintError(f"{self._kind} cannot be followed any further: {why}")
