"""The process that a constraint is compiled in first, so that a hostile one can only harm this process.

llguidance limits its work for a token, but not all of its work when it compiles: a few lines of a schema may keep it
busy for ever, or exhaust its stack. So a constraint is compiled here first, with limits of the system. Where that goes
well, compiling it again takes no more. compiler.py starts it, without the rest of pyllama2.

    stdin    JSON: {"kind": "json_schema", "regex" or "grammar", "text": ..., "after_space": bool, "limits": {...}}
    stdout   JSON: {"error": one sentence}, or
             {"source": for LLMatcher, "goes_back": whether it can forget tokens again, "is_empty": whether it matches
             nothing but the empty text}
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

from ..process.limits import confine, limit_processor_time

# Seconds of processor time, and bytes of memory besides those of Python and llguidance.
MAX_CPU_S = 4
MAX_MEMORY = 128 << 20

# One line, as json.dumps() writes it. With any whitespace, small models may write nothing else for ever.
# A schema's own "x-guidance" may say otherwise.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# llguidance's own patterns have a 29th of February in every year.
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": _DATE, "date-time": f"{_DATE}T{_TIME}"}
# Keywords with schemas by names, which may be names of keywords; and keywords with values, which are no schemas.
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_VALUES = ("const", "enum", "default", "examples")
# With forced bytes llguidance computes without a limit what a{4000000000} forces. Matcher.forced() does it instead.
_OPTIONS = '%llguidance {"no_forcing": true}\n'


def main() -> None:
    """Compile what stdin has."""
    import llguidance
    import llguidance.gbnf_to_lark

    request = json.loads(sys.stdin.buffer.read())
    _confine()
    try:
        answer = _compile(llguidance, **request)
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except (ValueError, RecursionError) as error:
        answer = {"error": _brief(str(error))}
    sys.stdout.write(json.dumps(answer))


def _compile(llguidance: Any, kind: str, text: str, after_space: bool, limits: dict[str, Any]) -> dict[str, Any]:
    native = llguidance.LLMatcher
    if kind == "json_schema":
        if text == "false":
            raise ValueError("no text can match it")
        text = "{}" if text == "true" else text
        schema = json.loads(text)
        _prepare(schema)
        whole = native.grammar_from_json_schema(json.dumps(schema), defaults=_JSON)
    elif kind == "regex":
        if len(text) - len(text.rstrip("\\")) & 1:
            raise ValueError("a backslash at its end stands for nothing")
        digits = llguidance.regex_to_lark(text, "d")  # \d is 0 to 9, as in JSON schemas
        whole = json.dumps({"grammars": [{"lark_grammar": f"start: /{digits}/" if text else 'start: ""'}]})
    else:
        if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
            text = llguidance.gbnf_to_lark.any_to_lark(text)
        whole = json.dumps({"grammars": [{"lark_grammar": text}]})
    part = {**json.loads(whole)["grammars"][0], "name": "text"}
    start = 'start: " " @text' if after_space else "start: @text"
    source = json.dumps({"grammars": [{"lark_grammar": _OPTIONS + start}, part]})
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = native(tokenizer, source, log_level=0, limits=llguidance.LLParserLimits(**limits))
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    allowed = [8 * i + bit for i, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1]
    goes_back = matcher.consume_token(allowed[0]) and matcher.rollback(1)  # not if it counts the tokens of its rules
    return {"source": source, "goes_back": goes_back, "is_empty": allowed == [tokenizer.eos_token]}


def _prepare(schema: Any) -> None:
    """Change or refuse, in a schema and those inside of it, what llguidance accepts and does not keep to."""
    if isinstance(schema, list):
        for part in schema:
            _prepare(part)
    if not isinstance(schema, dict):
        return
    least, required = schema.get("minProperties"), schema.get("required")
    if isinstance(least, int) and least > 1 + len(required if isinstance(required, list) else ()):
        # Names that are not in "properties" may come twice.
        raise ValueError("minProperties may be at most one more than the number of required properties")
    name = schema.get("format")
    if isinstance(name, str) and name in _FORMATS:
        del schema["format"]
        pattern = {"pattern": f"^{_FORMATS[name]}$"}  # says nothing about values that are no strings, as a format
        if "pattern" not in schema:
            schema.update(pattern)
        elif isinstance(schema.setdefault("allOf", []), list):
            schema["allOf"].append(pattern)
    for keyword, part in schema.items():
        if keyword in _OF_SCHEMAS and isinstance(part, dict):
            _prepare(list(part.values()))
        elif keyword not in _OF_VALUES:
            _prepare(part)


def _brief(message: str) -> str:
    """The sentence in a message of llguidance's, without the source and the state of its parser."""
    if message.startswith("NoExtension"):
        return "no text can match it"
    lines = [line.strip() for line in message.split("\n<")[0].splitlines()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or lines or ["it is not supported"])[0][:400] or "it is not supported"


def _confine() -> None:
    """Give up what compiling does not need. This cannot be undone."""
    memory = None
    with suppress(OSError), open("/proc/self/statm") as file:  # Linux only
        memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MAX_MEMORY
    confine(memory)
    limit_processor_time(MAX_CPU_S)
