"""Texts that keep to a JSON schema, a regular expression or a grammar, by llguidance. Start at Compiler."""

from .compiler import Compiler

__all__ = ["Compiler"]
