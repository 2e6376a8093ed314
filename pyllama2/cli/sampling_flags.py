"""Flags for penalties, biases and constraints, and the escapes of --stop."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from ..sampling.params import SamplingParams

_ESCAPE = re.compile(r"\\(?:([ntr\\])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4}))")
_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def add_penalty_flags(add: Callable[..., Any], default: SamplingParams) -> None:
    """Add the flags of the penalties and of logit_bias.

    Args:
        add: the method add_argument of a parser or group.
        default: has the defaults.
    """
    window = default.repetition_window
    add("--repetition-window", type=int, default=window, metavar="N", help="tokens that the repetition penalty is for")
    add("--presence-penalty", type=float, default=0.0, metavar="X", help="for tokens that the text has; 0 is off")
    add("--frequency-penalty", type=float, default=0.0, metavar="X", help="for each time it has them; 0 is off")
    bias_help = "added to a token's logit; -inf forbids it; may be repeated"
    add("--logit-bias", action="append", type=bias, default=[], metavar="ID=X", help=bias_help)


def add_constraint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what the text must be."""
    about = 'A text that ends before -n tokens keeps to it. This needs pip install "pyllama2[constraints]".'
    add = parser.add_argument_group("what the text must be", about).add_mutually_exclusive_group().add_argument
    add("--json-schema", metavar="FILE", help="JSON that is valid by this JSON schema")
    add("--regex", metavar="R", help="a match of this regular expression, in the syntax of Rust's package regex")
    add("--grammar", metavar="FILE", help="a text of this grammar: llguidance's kind of Lark, or llama.cpp's GBNF")


def bias(text: str) -> tuple[int, float]:
    """Parse ID=X, or llama.cpp's ID+X and ID-X. For argparse's type=; raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)(?:=|(?=[+-]))(.+)", text)
    try:
        if match is not None:
            return int(match[1]), float(match[2])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a token id and a number, such as 15=-inf")


def with_escapes(text: str) -> str:
    r"""Return text where \n, \t, \r, \\, \xNN and \uNNNN stand for one character."""
    return _ESCAPE.sub(lambda match: _CHARACTERS.get(match[1]) or chr(int(match[2] or match[3], 16)), text)
