"""What a notebook shows of a Completion: its text, coloured, and nothing that a model said as markup."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from helpers.tiny_llama import PROMPT, forced

from pyllama2 import Completion, Llama, Timings, TokenLogprob, Usage

COMPLETION = Completion("", [], None, "length", None, Usage(3, 2), Timings(0.1, 0.1, 30.0, 1234.5))
NASTY = ["<script>alert(1)</script>", '" onmouseover="x', "'&amp;", "\n  two lines", "</div>", "\x00\u202e"]


class Page(HTMLParser):
    """Elements with their attributes, and the text of the first inner div."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.depth = self.divs = 0
        self.text = ""
        self.feed(html)
        self.close()
        assert self.depth == 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.depth += 1
        self.divs += tag == "div"

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        if self.divs == 2:
            self.text += data

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [attributes for tag, attributes in self.tags if tag == "span"]


def shown(text: str, tokens: list[str], logprobs: list[float] | None = None, **changes: Any) -> Page:
    """A completion of tokens with these log-probabilities."""
    logprobs = logprobs or [-1.0] * len(tokens)
    entries = [TokenLogprob(i, token, p, ()) for i, (token, p) in enumerate(zip(tokens, logprobs, strict=True))]
    return Page(replace(COMPLETION, text=text, logprobs=entries, **changes)._repr_html_())


def opacity(span: dict[str, Any]) -> float:
    found = re.search(r"rgba\(255,90,30,([\d.]+)\)", span["style"])
    assert found
    return float(found[1])


def test_without_logprobs_it_is_the_text() -> None:
    for text in ["", "Once\n upon  a time", *NASTY]:
        page = Page(replace(COMPLETION, text=text)._repr_html_())
        assert [tag for tag, _ in page.tags] == ["div", "div", "div"]
        assert page.text.replace("\ufffd", "\0") == text
    html = COMPLETION._repr_html_()
    assert "3 + 2 tokens" in html and "length" in html and "1,234 tokens/s" in html and "bits" not in html


def test_nothing_said_is_markup() -> None:
    """Not in the text, nor in titles, nor the stop string; the top tokens included."""
    entries = [TokenLogprob(1, token, -1.0, tuple((2, other, -2.0) for other in NASTY)) for token in NASTY]
    text = "".join(NASTY)
    page = Page(replace(COMPLETION, text=text, logprobs=entries, stop_reason="<b>&")._repr_html_())
    assert {tag for tag, _ in page.tags} == {"div", "span"} and len(page.spans) == len(NASTY)
    assert all(set(attributes) <= {"style", "title"} for _, attributes in page.tags)
    assert page.text.replace("\ufffd", "\0") == text
    for span, token in zip(page.spans, NASTY, strict=True):
        assert span["title"].startswith(f"{token!r}  36.8%, 1.4 bits") and span["title"].count("\n") == len(NASTY)


def test_colours_are_surprise() -> None:
    page = shown("abcd", list("abcd"), [-0.0, -1.0, -3.0, -99.0])
    levels = [opacity(span) for span in page.spans]
    assert levels[0] == 0 and levels == sorted(levels) and levels[3] == 0.6 and len(set(levels)) == 4
    assert "100.0%, 0.0 bits" in page.spans[0]["title"] and "0.0%" in page.spans[3]["title"]
    assert "bits a token" in replace(COMPLETION, logprobs=[TokenLogprob(0, "a", -math.log(4), ())])._repr_html_()
    assert opacity(shown("a", ["a"], [-math.inf]).spans[0]) == 0.6


@pytest.mark.parametrize(
    ("text", "tokens", "before", "faint"),
    [
        ("Once upon", ["Once", " upon"], "", []),
        ("Once upon", [" Once", " upon"], "", []),  # a text that continues nothing
        ("So: once", [" once"], "So:", []),  # echo
        ("ab", [" a", "b"], "", []),
        ("Once", ["Once", "\n", "\n"], "", [1, 2]),  # a stop string
        ("So: on", [" on", "ce"], "So:", [1]),  # both
        ("So: o", [" on", "ce"], "So:", [0, 1]),
        ("Once", [" Once", "\n"], "", [1]),  # a stop string, without the leading space
        ("", ["stop"], "", [0]),
        ("", [], "", []),
        ("So:", [], "So:", []),
        ("So so", [" so"], "So", []),  # the prompt ends as the text does
        ("So so", [" so", " on"], "So", [1]),
        ("So: caf\ufffd", [" caf", "<0xC3>"], "So:", []),  # a character whose end never came
        ("So: \ufffd€x\ufffd", [" ", "<0xE2>", "<0xE2>", "<0x82><0xAC>", "x", "<0x82>"], "So:", []),
    ],
)
def test_prompts_and_stops(text: str, tokens: list[str], before: str, faint: list[int]) -> None:
    page = shown(text, tokens, stop_reason="x" if faint else None, n_echoed=len(before))
    parts = re.split("((?:<0x..>)+)", "".join(tokens))
    parts[1::2] = [bytes.fromhex(re.sub("<0x|>", "", part)).decode("utf-8", "replace") for part in parts[1::2]]
    assert page.text == before + "".join(parts)
    assert [i for i, span in enumerate(page.spans) if ";opacity" in span["style"]] == faint


def test_a_stream_that_goes_on(llm: Llama) -> None:
    """Its text lags behind its tokens; what was read is always shown."""
    stream = llm.stream(PROMPT, seed=1, max_tokens=20, logprobs=1, echo=True, temperature=2)
    texts = [Page(stream.completion._repr_html_()).text for _ in stream]
    assert all(text.startswith(PROMPT) for text in texts) and texts[-1] == stream.completion.text
    page = shown("So: ", [" ", "<0xF0>"], finish_reason="cancelled", n_echoed=3)
    assert page.text == "So: \ufffd" and [";opacity" in span["style"] for span in page.spans] == [False, True]


def test_bytes_of_a_character_are_one() -> None:
    tokens = ["a", "<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>", "<0xC3><0xA9>", "<0xE2>", "b", "<0x82>"]
    page = shown("a🦊é<0xE2>b<0x82>", tokens)
    assert page.text == "a🦊é\ufffdb\ufffd" and len(page.spans) == 6
    assert page.spans[1]["title"].count("bits") == 4 and opacity(page.spans[1]) > opacity(page.spans[0])


def test_of_a_model(llm: Llama) -> None:
    for text in ("Once upon a time\n  the fox", "🦊 é <b>", "[INST] & so on"):
        for echo in (False, True):
            completion = forced(llm, text, logprobs=2, echo=echo)
            html = completion._repr_html_()
            assert Page(html).text == completion.text
            assert completion.text[: completion.n_echoed] == (PROMPT if echo else "")
            assert len(completion.logprobs or []) >= html.count("<span") and "&#10;" in html
            assert "<b>" not in html
    assert PROMPT in Page(forced(llm, "a", logprobs=0, echo=True)._repr_html_()).text


def test_nothing_is_needed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert COMPLETION._repr_html_().startswith("<div>")
