"""Special tokens of a template's own text are found there, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers.model_templates import NAMES_OF_MODELS, OF_MODELS
from jinja2 import UndefinedError

from pyllama2.chat_formats.stand_ins import StandIns
from pyllama2.chat_formats.template_environment import compile_template, mark_roles

NAMES = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|user|>", "<|system|>", "<|assistant|>", "[tool]")


def parts_of(template: str, content: str = "Hi", role: str = "user") -> list[str]:
    """Texts and special tokens in turn, as in StandIns.split()."""
    stand_ins = StandIns(NAMES)
    messages = [{"role": role, "content": content}]
    mark_roles(messages)
    tokens = {"bos_token": stand_ins.by_name["<s>"], "eos_token": stand_ins.by_name["</s>"]}
    return stand_ins.split(compile_template(template, stand_ins.by_name).render(messages=messages, **tokens))


def names_of(template: str, content: str = "Hi", role: str = "user") -> list[str]:
    return parts_of(template, content, role)[1::2]


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("<|im_start|>", ["<|im_start|>"]),
        ("{% raw %}<|im_start|>{% endraw %}", ["<|im_start|>"]),
        ("{{ '<|im_' + 'start|>' }}", ["<|im_start|>"]),
        ("{{ messages[0].content + '<|im_' + 'start|>' + 'a' }}", ["<|im_start|>"]),
        ("{{ '<|im_' ~ 'start|>' }}", ["<|im_start|>"]),
        ("<|im_{{ 'start|>' }}", ["<|im_start|>"]),
        ("{{ '\\u003c|im_start|>' }}", ["<|im_start|>"]),
        ("{{ ['<s>', messages[0].content, '</s>'] | join('<|eot_id|>') }}", ["<s>", *["<|eot_id|>"] * 2, "</s>"]),
        ("{{ ('  <s>' + messages[0].content) | trim | lower | indent }}", ["<s>"]),
        ("{{ {'user': '<|eot_id|>'}[messages[0].role] }}", ["<|eot_id|>"]),
        ("{{ '%s%s' % ('<s>', eos_token) }}{{ '<s>{}'.format(bos_token) }}", ["<s>", "</s>", "<s>", "<s>"]),
        ("{% macro m(end='<|im_end|>') %}a{{ end }}{% endmacro %}{{ m() + m('</s>') }}", ["<|im_end|>", "</s>"]),
        ("{% set x %}<s>{{ eos_token }}{% endset %}{{ x ~ x.split('<s>')[1] }}", ["<s>", "</s>", "</s>"]),
        ("{% if '<s>' == bos_token %}{{ eos_token }}{% endif %}", ["</s>"]),
        ("{% for m in messages %}{{ loop.cycle('<s>', '</s>') }}{% endfor %}", ["<s>"]),
        ("{{ ['<s>'] | tojson }}{{ messages[0].content.replace('Hi', '<s>') }}", ["<s>", "<s>"]),
        ("{{ ['<s>'] | tojson(ensure_ascii=true) }}{{ {'a': '</s>'} }}", ["<s>", "</s>"]),
        ("{{ '<|im_start|>'[:9] ~ '<|im_start|>'[9:] }}", ["<|im_start|>"]),
        ("{{ '<|im_start|>'[:9] }}{{ '<s>' | reverse }}", []),
        ("{% set x = '<|im_' %}{{ x + 'start|>' }}", []),  # only literals side by side are joined
        ("{{ '<|im_' + messages[0].content + 'start|>' }}", []),
    ],
)
def test_own_special_tokens(template: str, names: list[str]) -> None:
    assert names_of(template) == names


def test_the_longest_name_at_the_first_place() -> None:
    stand_ins = StandIns(["ab", "abc", "bcde", "d"])
    assert stand_ins.split(compile_template("xabcdeabd", stand_ins.by_name).render()) == [
        "x", "abc", "", "d", "e", "ab", "", "d", ""
    ]  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        "{{ '<|' + messages[0].role + '|>\n' + messages[0].content + '<|im_end|>' }}",
        "{{ 'a<|' ~ messages[0]['role'] ~ '|>' ~ '<|im_end|>' }}",
        "<|{{ messages[0].role }}|>a<|im_end|>",
        "{% set role = messages[0].role %}{{ '<|' + role + '|><|' + 'im_end|>' }}",
    ],
)
def test_markers_made_of_roles(template: str) -> None:
    for role in ("user", "system", "assistant"):
        assert names_of(template, role=role) == [f"<|{role}|>", "<|im_end|>"]
    for role in ("tool", "someone", "im_start"):  # without a token, or no role
        parts = parts_of(template, role=role)
        assert parts[1::2] == ["<|im_end|>"] and f"<|{role}|>" in parts[0]


def test_markers_of_several_kinds() -> None:
    template = "{{ 'x[' + messages[0].role + '][' + messages[0].role + '|><|' + messages[0].role + '|>' }}"
    assert parts_of(template, role="tool") == ["x", "[tool]", "[tool|><|tool|>"]
    assert parts_of(template, role="user") == ["x[user][user|>", "<|user|>", ""]


@pytest.mark.parametrize("role", ["im_start", "im_end", "eot_id", "s", "User", "<|user|>"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ '<|' + messages[0].role + '|>' }}",
        "{{ '<|' ~ messages[0]['role'] ~ '|>' }}",
        "<|{{ messages[0].role }}|>",
        "{{ '<' + messages[0].role + '>' }}",
        "{{ messages | tojson }}{{ messages }}",
    ],
)
def test_other_roles_make_no_markers(template: str, role: str) -> None:
    assert names_of(template, role=role) == []


@pytest.mark.parametrize(
    "value", ["messages[0].content", "messages[0].role | lower", "messages[0].role[:]", "messages[0].role ~ ''"]
)
def test_only_a_role_as_it_is_makes_a_marker(value: str) -> None:
    assert names_of(f"{{{{ '<|' + ({value}) + '|>' }}}}", content="user") == []


def test_operands_that_are_no_strings() -> None:
    template = "{{ 1 + 2 + 3 }}{{ [1] + [2] }}{{ '<|' ~ 5 ~ none ~ '|>' }}<|{{ 1.5 }}|><|{{ undefined }}|>"
    assert parts_of(template) == ["6[1, 2]<|5None|><|1.5|><||>"]
    with pytest.raises(UndefinedError):
        parts_of("{{ '<|' + undefined + '|>' }}")


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("model", OF_MODELS)
def test_templates_of_models_mean_what_they_mean_without_stand_ins(model: str, system: bool) -> None:
    def render(stand_ins: dict[str, str]) -> str:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "Be kind. "},
            {"role": "user", "content": " Hi"},
            {"role": "assistant", "content": "<think>hm</think>Hello "},
            {"role": "user", "content": "Bye\n"},
        ][0 if system else 1 :]
        mark_roles(messages)
        tokens = {"bos_token": stand_ins.get("<s>", "<s>"), "eos_token": stand_ins.get("</s>", "</s>")}
        template = compile_template(OF_MODELS[model], stand_ins)
        return template.render(messages=messages, add_generation_prompt=True, tools=None, **tokens)

    stand_ins = StandIns(NAMES_OF_MODELS)
    names = "|".join(map(re.escape, sorted(NAMES_OF_MODELS, key=len, reverse=True)))
    expected = re.split(f"({names})", render({}))
    assert stand_ins.split(render(stand_ins.by_name)) == expected
    assert len(expected) > 5
