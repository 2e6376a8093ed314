"""The rules that cut a text before a byte-level BPE merges: those of published tokenizers, and no others.

A rule is a list of steps, written as in a tokenizer.json:

    Split         cut at the matches of a regular expression
    Digits        cut at numbers, or at each digit
    Punctuation   cut at punctuation
    ByteLevel     spell the text in the alphabet of 256 bytes; with use_regex also cut as GPT-2 does

A regular expression of a file's own could take any time, and each ByteLevel step makes a text longer, so
that a file may only choose among what is here. The expressions take time linear in the text.

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
# These match parts of a text, and stand beside others.
_PART_PATTERNS = {
    # DeepSeek-LLM, -Coder, -V2
    "line breaks": r"[\r\n]",
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
    # Numbers, as many models cut them
    "digit": r"\p{N}",
    "3 digits": r"\p{N}{1,3}",
    "number": r"\p{N}+",
    "falcon": "[0-9][0-9][0-9]",
}
_NAMES = {pattern: name for name, pattern in (_WHOLE_PATTERNS | _PART_PATTERNS).items()}
_WHOLE = frozenset(_WHOLE_PATTERNS.values())

# Published tokenizers have at most six.
_MAX_STEPS = 8
_CUTS = ("Split", "Digits", "Punctuation")
# ByteLevel is the last step of all but Falcon's.
_FALCON = ["Punctuation", "ByteLevel", "Digits", "Split"]

Step = dict[str, Any]


def byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> Step:
    """The step that spells bytes; with use_regex it cuts as GPT-2 does, too."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def digits(*, each: bool) -> Step:
    """The step that cuts at numbers, or at each digit."""
    return {"type": "Digits", "individual_digits": each}


def split(name: str) -> Step:
    """The step that cuts at the matches of a known regular expression, by its name."""
    pattern = (_WHOLE_PATTERNS | _PART_PATTERNS)[name]
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def known_steps(node: Step) -> list[Step]:
    """The steps of a tokenizer.json's "pre_tokenizer", with nothing in them but what is understood.

    Raises ValueError, with what is wrong, unless all are known and in the order of a known tokenizer.
    """
    steps = node.get("pretokenizers") if node.get("type") == "Sequence" else [node]
    if not isinstance(steps, list):
        raise ValueError("its 'pretokenizers' is missing or not a list")
    if len(steps) > _MAX_STEPS:
        raise ValueError(f"its pre-tokenizer has {len(steps)} steps, of which at most {_MAX_STEPS} are supported")
    types = [str(step.get("type")) if isinstance(step, dict) else str(step) for step in steps]
    if "ByteLevel" not in types:
        raise ValueError("it is no byte-level BPE (a SentencePiece model needs its tokenizer.model)")
    for type in types:
        if type != "ByteLevel" and type not in _CUTS:
            raise ValueError(
                f"its pre-tokenizer has the step {type[:40]!r}, which is not supported "
                f"({', '.join(_CUTS)} and ByteLevel are)"
            )
    if types.index("ByteLevel") != len(types) - 1 and types != _FALCON:
        raise ValueError(
            f"its pre-tokenizer has the steps {', '.join(types)}, an order that no known tokenizer has "
            "(ByteLevel is the last, and there is one)"
        )
    return [_CHECKS[step["type"]](step) for step in steps]


def make_pre_tokenizer(steps: list[Step]) -> PreTokenizer:
    """Steps that known_steps() gave as the tokenizers package has them."""
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
    if isinstance(text, str):  # line breaks may stand in it as they are
        text = text.replace("\r", r"\r").replace("\n", r"\n")
    if text not in _NAMES:
        shown = text if isinstance(text, str) else str(pattern)
        raise ValueError(
            f"its pre-tokenizer cuts at {shown[:80]!r}, which is not the rule of a known tokenizer "
            f"({', '.join(_WHOLE_PATTERNS)}, ...)"
        )
    how = (step.get("behavior"), step.get("invert", False))
    # To remove what is no match, of which there is none, is how some converters write the same.
    if how != ("Isolated", False) and not (how == ("Removed", True) and text in _WHOLE):
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
