"""Which requests begin alike, and which replica they go to. Ray is not needed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyllama2.ray.prefix import CHAT, COMPLETION, in_order, key_of

REPLICAS = [f"replica{i}" for i in range(5)]
IDLE = dict.fromkeys(REPLICAS, 0)


def chat(*messages: Any) -> str:
    words = [{"role": role, "content": content} for role, content in messages]
    return key_of(CHAT, json.dumps({"messages": words, "model": "m"}).encode())


def prompt(value: Any) -> str:
    return key_of(COMPLETION, json.dumps({"prompt": value}).encode())


SYSTEM, USER, ANSWER = ("system", "Be nice."), ("user", "Why?"), ("assistant", "Because.")


def test_the_turns_of_a_chat_have_one_key() -> None:
    first = chat(SYSTEM, USER)
    assert first and first == chat(SYSTEM, USER, ANSWER, ("user", "And then?"), ANSWER, ("user", "Ah."))
    assert first == chat(SYSTEM, ("user", [{"type": "text", "text": "W"}, {"type": "text", "text": "hy?"}]))
    others = [chat(SYSTEM, ("user", "When?")), chat(USER), chat(("system", "Be rude."), USER), chat(USER, SYSTEM)]
    assert len({first, *others}) == 5
    assert "nice" not in first and len(first) == 32


def test_texts_that_begin_alike_have_one_key() -> None:
    story = "Once upon a time " * 20
    assert prompt(story) == prompt(story + "there was a cat") == prompt([story, "other"])
    assert prompt(list(range(64))) == prompt(list(range(90))) == prompt([list(range(70)), [1]])
    assert len({prompt("a"), prompt("b"), prompt([1]), prompt([2])}) == 4


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "5", "null", "[" * 100_000, "{}", '{"prompt": ""}', '{"prompt": []}', '{"prompt": [[]]}',
        '{"prompt": 5}', '{"prompt": null}', '{"prompt": {"a": 1}}', "\xff",
    ],
)  # fmt: skip
def test_what_has_no_beginning_may_go_anywhere(body: str) -> None:
    assert key_of(COMPLETION, body.encode("latin-1")) == ""


@pytest.mark.parametrize(
    "messages", [5, None, [], [5], [{}], [{"role": "user"}], [{"role": "user", "content": 5}],
                 [{"role": "user", "content": [{}]}], [{"role": "assistant", "content": "Hi"}]],
)  # fmt: skip
def test_a_wrong_chat_may_go_anywhere(messages: Any) -> None:
    assert key_of(CHAT, json.dumps({"messages": messages}).encode()) == ""


def test_chats_spread_evenly_and_stay() -> None:
    keys = [chat(("user", str(i))) for i in range(1000)]
    homes = {key: in_order(key, IDLE, 8)[0] for key in keys}
    counts = [list(homes.values()).count(name) for name in REPLICAS]
    assert all(150 < count < 250 for count in counts)
    assert homes == {key: in_order(key, dict(reversed(IDLE.items())), 8)[0] for key in keys}
    rest = {name: 0 for name in REPLICAS if name != "replica2"}
    for key, home in homes.items():  # one replica has gone: its chats alone move, to where they came second
        now = in_order(key, rest, 8)[0]
        assert now == (in_order(key, IDLE, 8)[1] if home == "replica2" else home)


def test_a_busy_replica_comes_after_those_that_have_room() -> None:
    key = chat(USER)
    order = in_order(key, IDLE, 8)
    assert sorted(order) == REPLICAS
    assert in_order(key, {**IDLE, order[0]: 8}, 8) == order
    assert in_order(key, {**IDLE, order[0]: 9}, 8) == [*order[1:], order[0]]
    assert in_order(key, {**IDLE, order[0]: 20, order[1]: 15}, 8) == [*order[2:], order[1], order[0]]
    assert in_order(key, dict.fromkeys(REPLICAS, 50), 8) == order
    assert in_order("", {"a": 3, "b": 1, "c": 2}, 8) == ["b", "c", "a"]
    assert in_order(key, {}, 8) == []
