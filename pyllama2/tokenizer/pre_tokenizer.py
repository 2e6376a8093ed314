"""Pre-tokenizers of byte-level BPE: how published tokenizers split a text before they merge. No others are supported.

A pre-tokenizer is a list of steps, written as in a tokenizer.json:

    Split         split at the matches of a regular expression
    Digits        split at numbers, or at each digit
    Punctuation   split at punctuation
    ByteLevel     spell the text in the alphabet of 256 bytes; with use_regex, first split as GPT-2 does

A file may only choose among the steps here. An arbitrary regular expression could take any amount of time, and
each ByteLevel step makes a text longer. The expressions here take time linear in the length of the text.

Sources: the tokenizer.json files of the models named below, and llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
# Letters with upper and lower case, as DeepSeek-LLM lists them. Written as escapes, since several look alike.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)

# These match every character of any text.
_WHOLE_PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama-3; GPT-4, Phi-4
    "llama-bpe": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    # Qwen2, Qwen2.5, Qwen3, StableLM-2
    "qwen2": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "qwen3.5": rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "minicpm5": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "seed-coder": rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
    "bailing": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "ling": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # GPT-4 in newer spelling
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    # Mistral-Nemo
    "tekken": (
        rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
    # GPT-4o, Llama-4
    "gpt-4o": (
        rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ),
}
# These match parts of a text; a pre-tokenizer has several of them.
_PART_PATTERNS = {
    # DeepSeek-LLM, -Coder, -V2. They write \s+$ for spaces at the end, which takes time quadratic in their number.
    "line breaks": r"[\r\n]",
    "cased letters": rf"\s?[{_CASED}]+",
    "ASCII punctuation": "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "spaces at the end": r"(?<!\s)\s+$",
    "letters": r"\s?\p{L}+",
    "punctuation": r"\s?\p{P}+",
    "CJK": "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    # DeepSeek-V3
    "Han and kana": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "deepseek-v3": (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
    ),
    # BLOOM, Poro, Viking
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "poro": r" ?[^(\s|.,!?…。，、।۔،)]+",
    # Numbers, as many models split them
    "digit": r"\p{N}",
    "3 digits": r"\p{N}{1,3}",
    "number": r"\p{N}+",
    "falcon": "[0-9][0-9][0-9]",
}
_NAMES = {pattern: name for name, pattern in (_WHOLE_PATTERNS | _PART_PATTERNS).items()}
_NAMES[r"\s+$"] = "spaces at the end"
_WHOLE = frozenset(_WHOLE_PATTERNS.values())

# Published tokenizers have at most seven.
_MAX_STEPS = 8
_SPLITTERS = ("Split", "Digits", "Punctuation")
# ByteLevel is the last step of all pre-tokenizers but Falcon's and Falcon3's.
_OTHER_ORDERS = (["Punctuation", "ByteLevel", "Digits", "Split"], ["Punctuation", "ByteLevel", "Digits"])

Step = dict[str, Any]


def byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> Step:
    """Make the step that spells text in the alphabet of bytes.

    Args:
        use_regex: first split as GPT-2 does.
        add_prefix_space: put a space before the text.
    """
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def digits(*, each: bool) -> Step:
    """Make the step that splits at numbers, or with each, at every digit."""
    return {"type": "Digits", "individual_digits": each}


def split(name: str) -> Step:
    """Make the step that splits at the matches of the regular expression of that name in this module."""
    pattern = (_WHOLE_PATTERNS | _PART_PATTERNS)[name]
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def known_steps(node: Step) -> list[Step]:
    """Check the pre-tokenizer of a tokenizer.json.

    Args:
        node: the JSON object "pre_tokenizer".

    Returns:
        Its steps, made anew, so that they have only fields that were checked.

    Raises:
        ValueError: a step is unknown, or their order is not that of a known tokenizer.
    """
    steps = node.get("pretokenizers") if node.get("type") == "Sequence" else [node]
    if not isinstance(steps, list):
        raise ValueError("its 'pretokenizers' is missing or not a list")
    if len(steps) > _MAX_STEPS:
        raise ValueError(f"its pre-tokenizer has {len(steps)} steps, of which at most {_MAX_STEPS} are supported")
    types = [str(step.get("type")) if isinstance(step, dict) else repr(step) for step in steps]
    if "ByteLevel" not in types:
        raise ValueError("it is no byte-level BPE (a SentencePiece model needs its tokenizer.model)")
    for kind in types:
        if kind != "ByteLevel" and kind not in _SPLITTERS:
            raise ValueError(
                f"its pre-tokenizer has the step {kind[:40]!r}, which is not supported "
                f"({', '.join(_SPLITTERS)} and ByteLevel are)"
            )
    if types.index("ByteLevel") != len(types) - 1 and types not in _OTHER_ORDERS:
        raise ValueError(
            f"its pre-tokenizer has the steps {', '.join(types)}, an order that no known tokenizer has "
            "(ByteLevel is the last, and there is one)"
        )
    return [_CHECKS[step["type"]](step) for step in steps]


def make_pre_tokenizer(steps: list[Step]) -> PreTokenizer:
    """Make the tokenizers package's pre-tokenizer from steps that known_steps() returned."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

    def make(step: Step) -> PreTokenizer:
        match step["type"]:
            case "Split":
                return Split(Regex(step["pattern"]["Regex"]), "isolated")
            case "Digits":
                return Digits(step["individual_digits"])
            case "Punctuation":
                return Punctuation(step["behavior"].lower())
        return ByteLevel(add_prefix_space=step["add_prefix_space"], use_regex=step["use_regex"])

    return Sequence([make(step) for step in steps])


def _split(step: Step) -> Step:
    pattern = step.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(text, str):  # some files have the line breaks themselves instead of escapes
        text = text.replace("\r", r"\r").replace("\n", r"\n")
    if text not in _NAMES:
        shown = text if isinstance(text, str) else str(pattern)
        raise ValueError(
            f"its pre-tokenizer splits at {shown[:80]!r}, which is not the rule of a known tokenizer "
            f"({', '.join(_WHOLE_PATTERNS)}, ...)"
        )
    how = (step.get("behavior"), step.get("invert", False))
    # Some converters invert the pattern. If it matches every character, the result is the same.
    if how != ("Isolated", False) and not (how in (("Removed", True), ("Isolated", True)) and text in _WHOLE):
        raise ValueError(
            f"its pre-tokenizer has a Split step of behavior {str(how[0])[:40]!r} (invert {str(how[1])[:40]}), "
            "which is not supported"
        )
    return split(_NAMES[text])


def _digits(step: Step) -> Step:
    return digits(each=_flag(step, "individual_digits", False))


def _punctuation(step: Step) -> Step:
    behavior = step.get("behavior", "Isolated")
    if behavior not in ("Isolated", "Contiguous"):
        raise ValueError(f"its pre-tokenizer has a Punctuation step of behavior {str(behavior)[:40]!r}")
    return {"type": "Punctuation", "behavior": behavior}


def _byte_level(step: Step) -> Step:
    return byte_level(use_regex=_flag(step, "use_regex", True), add_prefix_space=_flag(step, "add_prefix_space", False))


def _flag(step: Step, name: str, default: bool) -> bool:
    value = step.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"its pre-tokenizer's {name!r} is not a bool")
    return value


_CHECKS = {"Split": _split, "Digits": _digits, "Punctuation": _punctuation, "ByteLevel": _byte_level}
