"""The text that a model is quantized for: its tokens, in windows, and whether it is a good one.

Windows are taken evenly over all texts. Each begins with BOS where the model's prompts do, as the model was trained to
see text. Some windows, evenly too, are held out: no matrix is quantized for them, and what the model loses is
measured on them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..storage.calibration_record import window_hash
from ..tokenizer.base import Tokenizer
from .layers import Tokens

WINDOW = 512  # tokens, if the model's context is as long
TOKENS = 16384  # of a text that are used at most
_FEW = 4096  # below which a sentence says that more would be better
_HELD_OUT = 8  # of so many windows one is held out
_MOST_HELD_OUT = 4

# When is a text a bad one? Rules of thumb, on the careful side: each only prints a sentence.
_REPEATED = 6.0  # how many times smaller zlib makes it
_SCRIPT = 0.3  # share of letters that are not Latin
_CUT = 0.8  # tokens per character
_UNKNOWN = 0.002  # share of tokens that the vocabulary has no text for
_PARTS = 8  # of a text, whose long words are compared
_LONG_WORD = re.compile(r"[^\W\d_]{6,}")
_LONG_WORDS = 800  # below which nothing is said of the subject
_SAME_WORDS = 0.3  # mean cosine of the counts of long words in two parts; a mixture has half of it
_FAVOURITES = 0.27  # share of the 20 most frequent long words


@dataclass(frozen=True)
class CalibrationText:
    """Tokens in windows, and where they come from.

    Attributes:
        kind: "self" or "given".
        tokens: the windows, held-out ones last.
        sha256: of each text, or of the tokens.
        starts: window_hash() of each window that is used.
        remarks: what is wrong with the text, a sentence each.
    """

    kind: str
    tokens: Tokens
    sha256: tuple[str, ...]
    starts: tuple[str, ...]
    remarks: tuple[str, ...]


def window_size(max_seq_len: int) -> int:
    """Tokens of a window, for a model of so long a context."""
    return min(WINDOW, max_seq_len)


def of_texts(texts: Sequence[str], tokenizer: Tokenizer, max_seq_len: int, most_tokens: int) -> CalibrationText:
    """Cut texts into windows.

    Args:
        texts: at least one.
        tokenizer: the model's.
        max_seq_len: of the model.
        most_tokens: to use.

    Raises:
        ValueError: together they have fewer than two windows.
    """
    window = window_size(max_seq_len)
    bos = tokenizer.with_bos([])
    encoded = [tokenizer.encode(text) for text in texts]
    whole = [window_ for ids in encoded for window_ in _cut(ids, bos, window)]
    n_tokens = sum(map(len, encoded))
    if len(whole) < 2:
        raise ValueError(
            f"the calibration text has {n_tokens} tokens; at least {2 * window} in texts of {window} or more are "
            f"needed, and {TOKENS} are better"
        )
    windows = np.array(_evenly(whole, n_windows(most_tokens, window)), np.int32)
    remarks = (*_size_remarks(n_tokens), *text_remarks(texts, encoded, tokenizer))
    hashes = tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return _with_held_out("given", windows, len(bos), hashes, remarks)


def of_windows(windows: NDArray[np.int32], n_bos: int) -> CalibrationText:
    """Make a calibration text of windows (n, tokens) that the model wrote, each with n_bos tokens of BOS."""
    digest = hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()
    return _with_held_out("self", windows, n_bos, (digest,), ())


def _with_held_out(
    kind: str, windows: NDArray[np.int32], n_bos: int, hashes: tuple[str, ...], remarks: tuple[str, ...]
) -> CalibrationText:
    n = len(windows)
    n_held_out = max(1, min(_MOST_HELD_OUT, n // _HELD_OUT))
    held_out = [(2 * i + 1) * n // (2 * n_held_out) for i in range(n_held_out)]
    order = [i for i in range(n) if i not in held_out] + held_out
    tokens = Tokens(windows[order], n - n_held_out)
    starts = tuple(window_hash(window[n_bos:]) for window in tokens.windows[: tokens.n_training].tolist())
    return CalibrationText(kind, tokens, hashes, starts, remarks)


def n_windows(n_tokens: int, window: int) -> int:
    """Windows for so many training tokens, with those that are held out."""
    training = max(1, n_tokens // window)
    return training + max(1, min(_MOST_HELD_OUT, training // (_HELD_OUT - 1)))


def _cut(ids: list[int], bos: list[int], window: int) -> list[list[int]]:
    room = window - len(bos)
    return [bos + ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]


def _evenly(windows: list[list[int]], most: int) -> list[list[int]]:
    if len(windows) <= most:
        return windows
    return [windows[(2 * i + 1) * len(windows) // (2 * most)] for i in range(most)]


def _size_remarks(n_tokens: int) -> list[str]:
    if n_tokens >= _FEW:
        return []
    return [f"the calibration text has only {n_tokens} tokens; with {TOKENS} the model loses less"]


def text_remarks(texts: Sequence[str], encoded: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[str]:
    """Say what makes texts bad ones to calibrate on: repetition, a script, tokens that the model does not know."""
    joined = "\n".join(texts)
    data = joined.encode()
    ids = [token_id for part in encoded for token_id in part]
    remarks = []
    if len(data) > _REPEATED * len(zlib.compress(data, 6)):
        remarks.append("the calibration text repeats itself; with a varied text the model loses less")
    if _one_subject(joined):
        remarks.append(
            "the calibration text seems to be of one subject; with texts of many kinds the model loses less on others"
        )
    scripts = Counter(_script(letter) for letter in joined if letter.isalpha())
    others = scripts.total() - scripts["LATIN"]
    if scripts and others > _SCRIPT * scripts.total():
        name = max((script for script in scripts if script != "LATIN"), key=lambda script: scripts[script])
        remarks.append(
            f"{others / scripts.total():.0%} of the calibration text's letters are not Latin but mostly "
            f"{name.capitalize()}; the file is going to be good at texts like it, and worse at others"
        )
    if ids and len(ids) > _CUT * len(joined):
        remarks.append(
            f"the tokenizer cuts the calibration text into {len(ids) / len(joined):.1f} tokens a character; the model "
            "hardly knows such text"
        )
    unknown = sum(not tokenizer.token_bytes(token_id) for token_id in ids)
    if ids and unknown > _UNKNOWN * len(ids):
        remarks.append(f"{unknown} of the calibration text's {len(ids)} tokens are unknown to the model")
    return remarks


def _one_subject(text: str) -> bool:
    """Whether all parts of a text have much the same long words, or a few of them make up a large share."""
    words = _LONG_WORD.findall(text.lower())
    if len(words) < _LONG_WORDS:
        return False
    favourites = sum(n for _, n in Counter(words).most_common(20)) / len(words)
    parts = [Counter(words[i * len(words) // _PARTS : (i + 1) * len(words) // _PARTS]) for i in range(_PARTS)]
    lengths = [sum(n * n for n in part.values()) ** 0.5 for part in parts]
    cosines = [
        sum(n * parts[j][word] for word, n in parts[i].items()) / (lengths[i] * lengths[j])
        for i in range(_PARTS)
        for j in range(i + 2, _PARTS)  # neighbours may be of one chapter
    ]
    return favourites > _FAVOURITES or sum(cosines) / len(cosines) > _SAME_WORDS


def _script(letter: str) -> str:
    """The first word of the letter's name, which is its script for most: LATIN, GREEK, CJK."""
    return unicodedata.name(letter, "?").split(" ")[0]
