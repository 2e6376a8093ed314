"""Draws the picture of docs/llama.md: the way of a token through a Llama, as an SVG for light and dark pages.

    residual stream (thick) ── ⊕ ──────────── ⊕ ──
                │   attention  │  feed-forward │

Shapes come from ModelConfig.tensor_shapes(), in the letters of model.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pyllama2.config import ModelConfig

# The letters of model.py.
LETTERS = {
    "D": "dim",
    "F": "hidden_dim",
    "H": "n_heads",
    "K": "n_kv_heads",
    "E": "head_dim",
    "V": "vocab_size",
    "T": "new tokens",
    "S": "all tokens so far",
}
WIDTH, HEIGHT = 900, 1186
# name: light, dark
COLOURS = {
    "page": ("#ffffff", "#15191f"),
    "frame": ("#f4f6f8", "#1c222a"),
    "text": ("#1b2430", "#e8edf3"),
    "faint": ("#4c5866", "#aab6c3"),
    "line": ("#6b7785", "#8a97a6"),
    "stream": ("#c2410c", "#fb923c"),
    "weight": ("#dbeafe", "#1e3a5f"),
    "norm": ("#ede9fe", "#3b2f63"),
    "step": ("#e2e8f0", "#2b3440"),
    "cache": ("#dcfce7", "#17432b"),
}
FILLS = ("page", "frame", "weight", "norm", "step", "cache")  # those that have text on them
_MEANINGS = {"weight": "learned matrix", "norm": "learned scales", "step": "nothing learned"}
_STREAM_X = 130
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Box:
    """A box of the picture: a step, or a matrix.

    Attributes:
        x, y: the centre.
        width, height: the size.
        kind: the colour, a key of COLOURS.
        name: the text in it.
        note: a second line below the name.
    """

    x: int
    y: int
    width: int
    kind: str
    name: str
    note: str = ""
    height: int = 48

    @property
    def top(self) -> tuple[int, int]:
        """Middle of the upper edge."""
        return self.x, self.y - self.height // 2

    @property
    def bottom(self) -> tuple[int, int]:
        """Middle of the lower edge."""
        return self.x, self.y + self.height // 2


@cache
def letters_of(name: str) -> str:
    """Return the shape of a tensor in letters, such as (H × E, D)."""
    # All sizes are different, q_dim and kv_dim included, so that each gives its letters.
    config = ModelConfig(dim=11, hidden_dim=13, n_layers=1, n_heads=6, n_kv_heads=2, head_dim=4, vocab_size=17,
                         max_seq_len=1)  # fmt: skip
    names = {11: "D", 13: "F", 17: "V", config.q_dim: "H × E", config.kv_dim: "K × E"}
    shape = config.tensor_shapes()[name]
    return f"({', '.join(names[size] for size in shape)})"


def boxes() -> dict[str, Box]:
    """Return every box of the picture by a name."""

    def weight(x: int, y: int, name: str, width: int = 150, kind: str = "weight") -> Box:
        layer = "" if name in ("tok_embeddings", "norm", "output") else "layers.0."
        return Box(x, y, width, kind, name.rpartition(".")[2], letters_of(f"{layer}{name}.weight"))

    left, middle, right = 380, 565, 750
    return {
        "tokens": Box(_STREAM_X, 92, 180, "step", "token ids", "(T)"),
        "tok_embeddings": weight(_STREAM_X, 172, "tok_embeddings", 180),
        "attention_norm": weight(middle, 272, "attention_norm", 166, "norm"),
        "wq": weight(left, 352, "attention.wq"),
        "wk": weight(middle, 352, "attention.wk"),
        "wv": weight(right, 352, "attention.wv"),
        "rope q": Box(left, 432, 150, "step", "RoPE", "q (T, H, E)"),
        "rope k": Box(middle, 432, 150, "step", "RoPE", "k (T, K, E)"),
        "cache": Box((middle + right) // 2, 512, 335, "cache", "KV cache", "keys and values (S, K, E)"),
        "attention": Box(middle, 592, 520, "step", "attention", "softmax(q · k / √E) v, for each of H heads"),
        "wo": weight(middle, 672, "attention.wo"),
        "ffn_norm": weight(middle, 772, "ffn_norm", 166, "norm"),
        "w1": weight(470, 852, "feed_forward.w1"),
        "w3": weight(660, 852, "feed_forward.w3"),
        "silu": Box(middle, 932, 340, "step", "silu(w1 x) × (w3 x)", "(T, F)"),
        "w2": weight(middle, 1012, "feed_forward.w2"),
        "norm": weight(_STREAM_X, 1122, "norm", 150, "norm"),
        "output": weight(middle - 185, 1122, "output"),
        "logits": Box(right, 1122, 190, "step", "logits", "(T, V)"),
    }


FRAME = (40, 216, 820, 850)  # around a layer: left, top, width, height
_PLUS = {"attention": 672, "feed forward": 1012}  # height at which a result is added to the residual stream


def picture() -> str:
    """Return the SVG."""
    all_boxes = boxes()
    x, y, width, height = FRAME
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-labelledby="title">',
        '<title id="title">The architecture of Llama: embeddings, layers of attention and feed-forward network '
        "around a residual stream, output</title>",
        f"<style>\n{_style()}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
        *_legend(),
        f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="14"/>',
        f'<text class="label" x="{x + width - 20}" y="{y + 30}" text-anchor="end">a layer, n_layers times</text>',
        *_arrows(all_boxes),
        *(_drawn(box) for box in all_boxes.values()),
        *(_plus(y) for y in _PLUS.values()),
        f'<text class="label stream-text" transform="translate({_STREAM_X - 22} 500) rotate(-90)" '
        'text-anchor="middle">residual stream (T, D)</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend() -> list[str]:
    """Draw the letters, and the meanings of the colours, right of the first boxes."""
    lines = []
    for i, (letter, name) in enumerate(LETTERS.items()):
        x, y = 305 + 190 * (i // 3), 60 + 26 * (i % 3)
        lines.append(f'<text class="name" x="{x}" y="{y}">{letter}</text>')
        lines.append(f'<text class="note" x="{x + 22}" y="{y}">{escape(name)}</text>')
    for i, (kind, meaning) in enumerate(_MEANINGS.items()):
        x = 305 + 190 * i
        lines.append(f'<rect class="box {kind}" x="{x}" y="151" width="22" height="22" rx="4"/>')
        lines.append(f'<text class="note" x="{x + 32}" y="167">{meaning}</text>')
    return lines


def _style() -> str:
    def rules(scheme: int) -> list[str]:
        colour = {name: pair[scheme] for name, pair in COLOURS.items()}
        fills = [f".{kind} {{ fill: {colour[kind]} }}" for kind in FILLS]
        return [
            *fills,
            f".frame, .box {{ stroke: {colour['line']} }}",
            f"text {{ fill: {colour['text']} }}",
            f".note {{ fill: {colour['faint']} }}",
            f".arrow {{ stroke: {colour['line']} }}",
            f".head {{ fill: {colour['line']} }}",
            f".stream {{ stroke: {colour['stream']} }}",
            f".plus {{ fill: {colour['page']}; stroke: {colour['stream']} }}",
        ]

    always = [
        f"text {{ font-family: {_FONT} }}",
        ".label { font-size: 15px; font-style: italic }",
        ".name { font-size: 16px; font-weight: 600 }",
        ".note { font-size: 14px }",
        ".frame { stroke-dasharray: 6 5 }",
        ".arrow { fill: none; stroke-width: 1.8 }",
        ".stream { fill: none; stroke-width: 5 }",
        ".plus { stroke-width: 3 }",
    ]
    dark = "\n".join(f"  {rule}" for rule in rules(1))
    return "\n".join([*always, *rules(0), f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"])


def _drawn(box: Box) -> str:
    left, top = box.x - box.width // 2, box.y - box.height // 2
    return (
        f'<rect class="box {box.kind}" x="{left}" y="{top}" width="{box.width}" height="{box.height}" rx="8"/>'
        f'<text class="name" x="{box.x}" y="{box.y - 3}" text-anchor="middle">{escape(box.name)}</text>'
        f'<text class="note" x="{box.x}" y="{box.y + 16}" text-anchor="middle">{escape(box.note)}</text>'
    )


def _plus(y: int) -> str:
    return (
        f'<circle class="plus" cx="{_STREAM_X}" cy="{y}" r="15"/>'
        f'<path class="stream" style="stroke-width:3" d="M{_STREAM_X - 8} {y} H{_STREAM_X + 8} '
        f'M{_STREAM_X} {y - 8} V{y + 8}"/>'
    )


def _line(points: Sequence[tuple[int, int]], *, stream: bool = False) -> str:
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    return f'<path class="{"stream" if stream else "arrow"}" d="{path}"{"" if stream else _HEAD}/>'


_HEAD = ' marker-end="url(#head)"'


def _arrows(b: dict[str, Box]) -> list[str]:
    """Draw the residual stream, and the arrows between boxes."""
    lines = [
        _line([b["tokens"].bottom, b["tok_embeddings"].top]),
        _line([b["tok_embeddings"].bottom, b["norm"].top], stream=True),
        _line([(b["norm"].x + b["norm"].width // 2, 1122), (b["output"].x - b["output"].width // 2, 1122)]),
        _line([(b["output"].x + b["output"].width // 2, 1122), (b["logits"].x - b["logits"].width // 2, 1122)]),
    ]
    for norm, back in (("attention_norm", "wo"), ("ffn_norm", "w2")):
        box = b[norm]
        lines.append(_line([(_STREAM_X, box.y), (box.x - box.width // 2, box.y)]))
        lines.append(_line([(b[back].x - b[back].width // 2, b[back].y), (_STREAM_X + 17, b[back].y)]))
    for source, targets in (("attention_norm", ("wq", "wk", "wv")), ("ffn_norm", ("w1", "w3"))):
        half = b[source].y + 40
        for target in targets:
            x = b[target].x
            middle = [] if x == b[source].x else [(b[source].x, half), (x, half)]
            lines.append(_line([b[source].bottom, *middle, b[target].top]))
    lines += [
        _line([b["wq"].bottom, b["rope q"].top]),
        _line([b["wk"].bottom, b["rope k"].top]),
        _line([b["rope k"].bottom, (b["rope k"].x, b["cache"].top[1])]),
        _line([b["wv"].bottom, (b["wv"].x, b["cache"].top[1])]),
        _line([b["rope q"].bottom, (b["rope q"].x, b["attention"].top[1])]),
        _line([b["cache"].bottom, (b["cache"].x, b["attention"].top[1])]),
        _line([b["attention"].bottom, b["wo"].top]),
        _line([b["w1"].bottom, (b["w1"].x, b["silu"].top[1])]),
        _line([b["w3"].bottom, (b["w3"].x, b["silu"].top[1])]),
        _line([b["silu"].bottom, b["w2"].top]),
    ]
    return lines
