"""Jinja as models' chat templates expect it, with stand-ins for special tokens in a template's own text.

Rendered text does not tell whether the template or a message wrote "<|im_end|>". Therefore the names of special tokens
are looked for before any message is rendered, in the literals of the template's syntax tree. Each name is replaced by
its stand-in, a string that no message can contain. Only stand-ins become special tokens (jinja.py). A name that is in
a message, or that is put together while the template is rendered, is text.

    '<|im_start|>' + message.role    STAND_IN + message.role
    '<|im_' ~ 'start|>'              STAND_IN: adjacent literals are joined first
    '<|' + message.role + '|>'       the stand-in for <|user|> if the role of a message is one of ROLES;
                                     text for any other role, and for a content

Literals that a template compares messages with have stand-ins too. So a template does not find the name of a special
token in a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import reduce
from typing import Any

from jinja2 import Template, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

# The roles that may become part of a marker.
ROLES = frozenset({"system", "developer", "user", "assistant", "model", "tool", "function", "ipython"})


class Role(str):
    """A message's role that is one of ROLES. The result of any operation on it is a plain string."""


class Refused(Exception):
    """Raised by a template's raise_exception()."""


def compile_template(source: str, stand_ins: Mapping[str, str]) -> Template:
    """Compile a template, with stand-ins in its literals.

    Args:
        source: Jinja source.
        stand_ins: the stand-in of each name.

    Raises:
        jinja2.TemplateSyntaxError: the source is not valid.
    """
    environment = _make_environment()
    environment.filters["role_marker"] = _role_marker(stand_ins)
    return environment.from_string(_NameReplacer(stand_ins).visit(environment.parse(source)))


def mark_roles(messages: list[dict[str, Any]]) -> None:
    """Replace each role that is one of ROLES by a Role, in place."""
    for message in messages:
        if message.get("role") in ROLES:
            message["role"] = Role(message["role"])


def _role_marker(stand_ins: Mapping[str, str]) -> Callable[[Any, str, str], Any]:
    """Make the filter that writes a role between two texts, as a stand-in if that gives a name."""

    def marker(role: Any, before: str, after: str) -> Any:
        text = before + role + after
        return stand_ins.get(text, text) if type(role) is Role else text

    return marker


class _NameReplacer(NodeTransformer):
    """Replaces names by stand-ins in the literals of a syntax tree."""

    def __init__(self, stand_ins: Mapping[str, str]) -> None:
        self._stand_ins = stand_ins
        self._names = sorted(stand_ins, key=len, reverse=True)  # the longest match wins
        # The texts before and after a role in names.
        around = {name.partition(role)[::2] for name in stand_ins for role in ROLES}
        self._around_roles = sorted((pair for pair in around if all(pair)), key=lambda pair: -len("".join(pair)))

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        return self._with_stand_ins(node)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._with_stand_ins(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = self._joined(node.nodes, as_text=True)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node.nodes = self._joined(node.nodes, as_text=True)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        operands = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):  # a + b + c is (a + b) + c
            operands.append(left.right)
            left = left.left
        operands = self._joined([left, *reversed(operands)], as_text=False)
        return reduce(lambda a, b: nodes.Add(a, b, lineno=node.lineno, environment=node.environment), operands)

    def _joined(self, operands: list[nodes.Expr], *, as_text: bool) -> list[nodes.Expr]:
        """Join adjacent literals, and put in stand-ins. as_text: operands become strings first, as with ~."""
        joined: list[nodes.Expr] = []
        for operand in operands:
            text = _literal(operand)
            if text is None:
                joined.append(self.visit(operand))
            elif joined and (before := _literal(joined[-1])) is not None:
                _set_literal(joined[-1], before + text)
            else:
                joined.append(operand)
        for i in range(1, len(joined) - 1):
            self._make_role_marker(joined, i, as_text)
        return [self._with_stand_ins(operand) for operand in joined]

    def _make_role_marker(self, operands: list[nodes.Expr], i: int, as_text: bool) -> None:
        """Make operand i a role marker if the literals beside it end and begin as in a name with a role.

        The part of the name before and after the role then moves from the literals to the marker.
        """
        left, operand, right = operands[i - 1 : i + 2]
        before, after = _literal(left), _literal(right)
        if before is None or after is None:
            return
        for head, tail in self._around_roles:
            if before.endswith(head) and after.startswith(tail):
                _set_literal(left, before.removesuffix(head))
                _set_literal(right, after.removeprefix(tail))
                where = {"lineno": operand.lineno, "environment": operand.environment}
                if as_text:
                    operand = nodes.Filter(operand, "string", [], [], None, None, **where)
                texts = [nodes.Const(head, **where), nodes.Const(tail, **where)]
                operands[i] = nodes.Filter(operand, "role_marker", texts, [], None, None, **where)
                return

    def _with_stand_ins(self, node: nodes.Expr) -> nodes.Expr:
        text = _literal(node)
        if text and (names := [re.escape(name) for name in self._names if name in text]):
            _set_literal(node, re.sub("|".join(names), lambda name: self._stand_ins[name[0]], text))
        return node


def _literal(node: nodes.Expr) -> str | None:
    """The text of a string constant, or of template text between tags; None for other nodes."""
    if isinstance(node, nodes.TemplateData):
        return node.data
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _set_literal(node: nodes.Expr, text: str) -> None:
    if isinstance(node, nodes.TemplateData):
        node.data = text
    elif isinstance(node, nodes.Const):
        node.value = text


class _GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's text for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _make_environment() -> ImmutableSandboxedEnvironment:
    """Make an environment with the settings, filters and functions of transformers' apply_chat_template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes < and > for HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise Refused(message)
