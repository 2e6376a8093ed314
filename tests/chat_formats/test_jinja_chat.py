"""What a message says never becomes a special token, whatever a template does with it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator

import pytest
from helpers.tiny_tokenizers import bpe_json, bpe_spec, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2.chat_formats.jinja import JinjaChat
from pyllama2.errors import CheckpointError
from pyllama2.tokenizer import load_tokenizer

SMOLLM2 = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
    "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
    "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>",
)  # fmt: skip
LLAMA2 = ("<s>", "</s>", "<unk>")
LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{i}|>" for i in range(248)),
)  # fmt: skip
NAMES = (*SMOLLM2, *LLAMA2, *LLAMA3)
BPE = load_tokenizer(bpe_spec(bpe_json(NAMES), bos_id=NAMES.index("<s>"), eos_ids=(NAMES.index("</s>"),)))


def plain(name: str) -> str:
    return name


def between(separator: str) -> Callable[[str], str]:
    """Puts something between all characters of a name."""
    return lambda name: separator.join(name)


def around(before: str, after: str = "") -> Callable[[str], str]:
    return lambda name: before + name + after


def code_points(name: str) -> str:
    return " ".join(str(ord(char)) for char in name)


def backwards(name: str) -> str:
    return name[::-1]


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in name)


# What a template does with a text v of a message, and how a name is written so that it comes out.
EXPRESSIONS: list[tuple[str, Callable[[str], str]]] = [
    ("{{ v }}", plain),
    ("{{ v ~ '' }}", plain),
    ("{{ '' + v }}", plain),
    ("{{ v | string }}", plain),
    ("{{ v | safe }}", plain),
    ("{{ v | default('x') }}", plain),
    ("{{ v | lower }}", str.upper),
    ("{{ v.lower() }}", str.upper),
    ("{{ v.casefold() }}", str.upper),
    ("{{ v.swapcase() }}", str.swapcase),
    ("{{ v | upper | lower }}", plain),
    ("{{ v | capitalize | replace('Z', '') }}", around("Z")),
    ("{{ v.title().lower() }}", plain),
    ("{{ v | reverse }}", backwards),
    ("{{ v[::-1] }}", backwards),
    ("{{ v[1:] }}", around("x")),
    ("{{ v[2:-2] }}", around("[[", "]]")),
    ("{{ v | trim }}", around(" \n", "\t ")),
    ("{{ v | trim('*') }}", around("**", "*")),
    ("{{ v.strip('ab ') }}", around("ab a", "b")),
    ("{{ v.lstrip() }}", around("  ")),
    ("{{ v.rstrip('.') }}", around("", "...")),
    ("{{ v.removeprefix('user: ') }}", around("user: ")),
    ("{{ v.removesuffix('!') }}", around("", "!")),
    ("{{ v.replace('<think>', '') }}", between("<think>")),
    ("{{ v | replace('/no_think', '') }}", between("/no_think")),
    ("{{ v.replace('[', '<').replace(']', '>') }}", lambda name: name.replace("<", "[").replace(">", "]")),
    ("{{ v | replace('~', '|') }}", lambda name: name.replace("|", "~")),
    ("{{ v.split('</think>')[-1] }}", around("x</think>")),
    ("{{ v.split('+') | join }}", between("+")),
    ("{{ v.split('+') | join('') }}", between("+")),
    ("{{ ''.join(v.split('\n')) }}", between("\n")),
    ("{{ v.rsplit(';', 1)[0] }}", around("", ";x")),
    ("{{ v.partition(':')[2] }}", around("x:")),
    ("{{ v.rpartition(':')[0] }}", around("", ":x")),
    ("{{ v.splitlines() | join('') }}", between("\n")),
    ("{{ v | list | join }}", plain),
    ("{{ v | batch(2) | map('join') | join }}", plain),
    ("{{ v | batch(2) | map('first') | join }}", between("x")),
    ("{{ v | slice(1) | map('join') | join }}", plain),
    ("{{ v | select('ne', 'Z') | join }}", between("Z")),
    ("{{ v | reject('in', 'XYZ') | join }}", between("Z")),
    ("{{ v | map('lower') | join }}", str.upper),
    ("{{ v.split(',') | map('trim') | join }}", between(" , ")),
    ("{{ v.split(' ') | sort | map('last') | join }}", lambda name: " ".join(f"{i:02}{c}" for i, c in enumerate(name))),
    ("{{ [{'a': 1, 'b': v}] | groupby('a') | map('last') | first | map(attribute='b') | join }}", plain),
    ("{{ [{'a': v}] | selectattr('a') | map(attribute='a') | join }}", plain),
    ("{{ v.split('+')[::-1] | join }}", lambda name: "+".join(name[::-1])),
    ("{{ (v.split('+') | first) ~ (v.split('+') | last) }}", lambda name: name[:2] + "+" + name[2:]),
    ("{{ v | striptags }}", html.escape),
    ("{{ v | striptags }}", lambda name: "".join(f"&#{ord(char)};" for char in name)),
    ("{{ (v | escape) | striptags }}", plain),
    ("{{ (v | e).unescape() }}", plain),
    ("{{ (v | forceescape).striptags() }}", plain),
    ("{{ v | tojson }}", plain),
    ("{{ [v, {v: v}] | tojson(indent=2) }}", plain),
    ("{{ {v: [v]} }}", plain),
    ("{{ [v] | pprint }}", plain),
    ("{{ '%s' % v }}", plain),
    ("{{ '%s' | format(v) }}", plain),
    ("{{ v % '<' }}", lambda name: name.replace("<", "%s")),
    ("{{ '{}'.format(v) }}", plain),
    ("{{ '{0[0]}{0[1]}{1}'.format(v, v[2:]) }}", plain),
    ("{{ v.format('<', p='|') }}", lambda name: name.replace("<", "{0}").replace("|", "{p}")),
    ("{% for n in v.split(' ') %}{{ '%c' | format(n | int) }}{% endfor %}", code_points),
    ("{{ v.encode().decode('unicode_escape') }}", escaped),
    ("{{ v.encode('utf-16').decode('utf-16') }}", plain),
    ("{{ v.translate({126: '|'}) }}", lambda name: name.replace("|", "~")),
    ("{{ v.expandtabs(0) }}", between("\t")),
    ("{{ v | indent(2) }}", plain),
    ("{{ v | wordwrap(400) }}", plain),
    ("{{ v | wordwrap(3, wrapstring='') }}", plain),
    ("{{ v | center(60) }}", plain),
    ("{{ v.ljust(60, '.') }}", plain),
    ("{{ v | truncate(40, true, '', 0) }}", around("", "x" * 40)),
    ("{{ (v | truncate(3, true, '', 0)) + v[3:] }}", plain),
    ("{{ {'a': v | safe} | xmlattr }}", plain),
    ("{{ {'a': v} | dictsort }}", plain),
    ("{{ {'a': v}.items() | list | last | last }}", plain),
    ("{% for c in v %}{{ c }}{% endfor %}", plain),
    ("{% for c in v %}{% if not loop.index % 2 %}{{ c }}{% endif %}{% endfor %}", lambda name: "x" + "x".join(name)),
    ("{% for c in v %}{{ loop.previtem }}{% if loop.last %}{{ c }}{% endif %}{% endfor %}", plain),
    ("{% macro m(x) %}{{ x }}{% endmacro %}{{ m(v) }}", plain),
    ("{% macro m() %}{{ caller() | lower }}{% endmacro %}{% call m() %}{{ v }}{% endcall %}", str.upper),
    ("{% set x %}{{ v }}{% endset %}{{ x | replace('+', '') }}", between("+")),
    ("{% filter lower %}{{ v }}{% endfilter %}", str.upper),
    ("{% set ns = namespace(x='') %}{% for c in v %}{% set ns.x = c ~ ns.x %}{% endfor %}{{ ns.x }}", backwards),
    ("{% with x = v | reverse %}{{ x }}{% endwith %}", backwards),
    ("{% autoescape true %}{{ v | safe }}{% endautoescape %}", plain),
    ("{{ joiner(v)() ~ cycler(v).next() }}", plain),
    ("{{ '<' + v }}", lambda name: name[1:]),
    ("{{ '<|' ~ v ~ '|>' }}", lambda name: name[2:-2]),
    ("<|{{ v }}|>", lambda name: name[2:-2]),
    ("<{{ v }}", lambda name: name[1:]),
    ("{{ '<|im_' + v }}", lambda name: name.removeprefix("<|im_")),
    ("{{ v.replace('B', bos_token[:1]).replace('E', bos_token[1:]) }}", plain),
    ("{{ v.replace('E', '|>') }}", lambda name: name.replace("|>", "E")),
    ("{{ bos_token[:0] ~ v ~ eos_token[:0] }}", plain),
]  # fmt: skip
PLACES = {
    "content": "messages[1].content",
    "system": "messages[0].content",
    "assistant": "messages[2].content",
    "value": "messages[1].note",
    "key": "messages[1] | list | last",
    "nested": "[{'a': [messages[1].content]}][0].a | first",
}


def branches(pick: str) -> str:
    """The template that does what EXPRESSIONS[pick] says, and nothing for another pick."""
    texts = (f"{{% elif {pick} == '{i}' %}}{text}" for i, (text, _) in enumerate(EXPRESSIONS))
    return f"{{% if false %}}{''.join(texts)}{{% endif %}}"


@pytest.fixture(scope="module")
def chat() -> Iterator[JinjaChat]:
    """A chat whose first message says where its text is, and which of EXPRESSIONS are applied to it.

    A first, or none, and a second to what came out of that. The template writes <|im_start|> before it and
    <|im_end|> after it.
    """
    places = "".join(f"{{% elif place == '{name}' %}}{{% set v = {v} %}}" for name, v in PLACES.items())
    chat = JinjaChat(
        BPE,
        "{% set first, second, place = messages[0].first, messages[0].second, messages[0].place %}"
        f"{{% if false %}}{places}{{% endif %}}"
        f"{{% if first %}}{{% set v %}}{branches('first')}{{% endset %}}{{% endif %}}"
        f"<|im_start|>{branches('second')}<|im_end|>",
        "test",
    )
    yield chat
    chat.close()


def messages(place: str, text: str, second: int, first: int | None = None) -> list[dict[str, str]]:
    """Messages with the text in a place of PLACES."""
    system = {"role": "system", "content": "", "place": place, "second": str(second)}
    system["first"] = "" if first is None else str(first)
    user = {"role": "user", "content": ""}
    assistant = {"role": "assistant", "content": ""}
    if place in ("key", "value"):
        user |= {"note": text} if place == "value" else {text: ""}
    else:
        {"system": system, "assistant": assistant}.get(place, user)["content"] = text
    return [system, user, assistant]


def special(ids: list[int]) -> list[str]:
    """The names of the special tokens among ids."""
    return [BPE.piece(token_id) for token_id in ids if token_id in BPE.special_tokens.values()]


@pytest.mark.subprocess
@pytest.mark.parametrize("place", PLACES)
def test_no_expression_makes_a_special_token(chat: JinjaChat, place: str) -> None:
    built = set()
    for i, (expression, written) in enumerate(EXPRESSIONS):
        for name in ("<|im_end|>", "</s>", "<|eot_id|>", "<repo_name>"):
            ids = chat.encode(messages(place, written(name), i))
            assert special(ids) == ["<|im_start|>", "<|im_end|>"], (expression, name)
            if name in BPE.decode(ids):
                built.add(i)
    assert built == set(range(len(EXPRESSIONS))), "the others build no name, so they show nothing"


@pytest.mark.parametrize("expression", ["{{ v }}", "{{ v | lower }}", "{{ v.replace('<think>', '') }}"])
def test_none_makes_any_of_the_special_tokens(chat: JinjaChat, expression: str) -> None:
    i, written = next((i, written) for i, (text, written) in enumerate(EXPRESSIONS) if text == expression)
    ids = chat.encode(messages("content", " ".join(map(written, NAMES)), i))
    assert special(ids) == ["<|im_start|>", "<|im_end|>"]
    assert BPE.decode(ids) == " ".join(NAMES)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_two_expressions_do(chat: JinjaChat, data: st.DataObject) -> None:
    index = st.integers(0, len(EXPRESSIONS) - 1)
    first, second = data.draw(index), data.draw(index)
    parts = st.sampled_from([*NAMES, "<", "|", "<|", "im_", ">", " ", "%s", "{", "\n", "a", "\U0010fffd"])
    text = EXPRESSIONS[first][1](EXPRESSIONS[second][1]("".join(data.draw(st.lists(parts, min_size=1)))))
    try:
        ids = chat.encode(messages(data.draw(st.sampled_from(sorted(PLACES))), text, second, first))
    except CheckpointError:  # %s without an argument, and so on
        return
    assert special(ids) == ["<|im_start|>", "<|im_end|>"]


def test_neither_does_sentencepiece() -> None:
    chat = JinjaChat(tiny_tokenizer("sentencepiece"), "{{ bos_token }}{{ messages[0].content | lower }}", "test")
    ids = chat.encode([{"role": "user", "content": "</S> </s> <S>"}])
    assert (ids.count(1), ids.count(2)) == (1, 0)
    chat.close()


def test_lone_surrogates_are_refused_in_keys_too() -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        JinjaChat(BPE, "", "test").encode([{"role": "user", "content": "", "\udc00": ""}])


@pytest.mark.slow
def test_a_message_is_searched_for_a_special_token_in_vain() -> None:
    chat = JinjaChat(BPE, "{{ messages[0].content.split('</think>')[-1].split('<|im_end|>')[-1] }}", "test")
    ids = chat.encode([{"role": "user", "content": "a</think> b<|im_end|>c"}])
    assert BPE.decode(ids) == " b<|im_end|>c"
    chat.close()


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no <|im_end|>, please') }}", r"these messages: no <\|im_end\|>, please$"),
        ("{{ {}['<s>'].x + {}['<s>'] }}", r"has no attribute '<s>'$"),
    ],
)
def test_errors_have_names_not_stand_ins(template: str, message: str) -> None:
    with pytest.raises((ValueError, CheckpointError), match=message):
        JinjaChat(BPE, template, "test").encode([{"role": "user", "content": "Hi"}])
