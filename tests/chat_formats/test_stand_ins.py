"""Stand-ins are found again, and pieces of them left out."""

from __future__ import annotations

import json

from pyllama2.chat_formats.stand_ins import StandIns

NAMES = ("<s>", "</s>")


def test_split() -> None:
    stand_ins = StandIns(NAMES)
    begin, end = (stand_ins.by_name[name] for name in NAMES)
    assert stand_ins.split(f"a{begin}{end}b <s>") == ["a", "<s>", "", "</s>", "b <s>"]
    assert stand_ins.split("") == [""]


def test_spelled_in_json_and_by_repr() -> None:
    stand_ins = StandIns(NAMES)
    begin, end = (stand_ins.by_name[name] for name in NAMES)
    assert stand_ins.split(json.dumps([begin]) + repr(end)) == ['["', "<s>", "\"]'", "</s>", "'"]
    assert json.loads(json.dumps(begin + end)) == begin + end


def test_pieces_are_left_out() -> None:
    stand_ins = StandIns(NAMES)
    begin, end = (stand_ins.by_name[name] for name in NAMES)
    assert stand_ins.split(f"a{begin[:9]}b{begin[::-1]}{end[9:]}{begin}") == ["ab", "<s>", ""]


def test_drawn_anew() -> None:
    first, second = StandIns(NAMES), StandIns([*NAMES, ""])
    assert len({*first.by_name.values(), *second.by_name.values()}) == 4
    assert first.split(f"a{second.by_name['<s>']}b") == ["ab"]
