"""Writes the tables and pictures of docs/quantization.md, from the figures of benchmarks/how_close.py --calibrate.

    python scripts/docs/make_quantization_docs.py

The figures are in docs/how_close.json. docs/quantization-bits.svg has the KL divergence of each way to quantize against
its bits, docs/quantization-layers.svg what the residual stream has lost after each layer. Their colours can be read on
white and on black.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[2] / "docs"
GREY, OURS, THEIRS = "#808080", "#3080d0", "#d07030"
COLOURS = ("#d07030", "#b0a030", "#30a060", "#3080d0")  # of the ways whose layers are compared
LLAMA_CPP = "llama.cpp "


def grey(axes: Any, title: str) -> None:
    """Give axes and their legend a colour for both themes."""
    axes.set_title(title, color=GREY, fontsize=10)
    for text in (axes.xaxis.label, axes.yaxis.label, *axes.legend(frameon=False, fontsize=8).get_texts()):
        text.set_color(GREY)
    axes.tick_params(which="both", colors=GREY)
    for spine in axes.spines.values():
        spine.set_color(GREY)


def draw_bits(models: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw KL divergence against bits, for each model; those of 8 bits would be far away from the others."""
    figure, columns = plt.subplots(1, len(models), figsize=(5 * len(models), 4.5), sharey=True, squeeze=False)
    for axes, (title, rows) in zip(columns[0], models.items(), strict=True):
        for theirs, colour, label in ((False, OURS, "pyllama2"), (True, THEIRS, "llama.cpp")):
            points = [row for row in rows if row["name"].startswith(LLAMA_CPP) == theirs and row["bits"] < 8]
            if points:
                axes.scatter([row["bits"] for row in points], [row["kl"] for row in points], color=colour, label=label)
            for row in points:
                name = row["name"].removeprefix(LLAMA_CPP).split(",")[0] if theirs else short_name(row["name"])
                side = (6, "left") if theirs else (-6, "right")
                place = {"textcoords": "offset points", "xytext": (side[0], -2), "ha": side[1]}
                axes.annotate(name, (row["bits"], row["kl"]), color=colour, fontsize=7, **place)
        axes.set_yscale("log")
        axes.set_xlim(3.6, 6.6)
        axes.set_xlabel("bits of a weight in the layers")
        grey(axes, title)
    columns[0][0].set_ylabel("mean KL divergence, nats")
    save(figure, path)


def short_name(name: str) -> str:
    """What stands beside a point."""
    for end, short in (
        ("inputs", "q4, plain"), ("`--no-calibrate`", "q4, in memory"), ("(the default)", "q4, own text"),
        ("on texts", "q4"), ("groups of 32", "q4/32"),
    ):  # fmt: skip
        if name.endswith(end) and not name.startswith("`--bits"):
            return short
    return name.split("`")[1].removeprefix("--") if "`" in name else name


def draw_layers(models: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the error of the residual stream against the layer, for each model."""
    figure, columns = plt.subplots(1, len(models), figsize=(5 * len(models), 3.5), sharey=True, squeeze=False)
    for axes, (title, rows) in zip(columns[0], models.items(), strict=True):
        compared = [row for row in rows if row["layer_errors"]]
        for row, colour in zip(compared, COLOURS, strict=False):
            errors = row["layer_errors"]
            axes.plot(range(1, len(errors) + 1), errors, color=colour, label=short_name(row["name"]))
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        grey(axes, title)
    columns[0][0].set_ylabel("share of the stream that is error")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a picture, the same bytes for the same figures."""
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def tables(models: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table of each model, in Markdown."""
    found = []
    for title, rows in models.items():
        lines = [f"| {title} | bits | mean KL, nats | share | the most likely token agrees |", "|---|---|---|---|---|"]
        for row in rows:
            share = row["kl"] / rows[0]["kl"]
            kl = f"{row['kl']:.4f} ± {row['kl_error']:.4f}"
            lines.append(f"| {row['name']} | {row['bits']:.2f} | {kl} | {share:.2f} | {row['top_1']:.1%} |")
        found.append("\n".join(lines))
    return "\n\n".join(found)


def with_tables(page: str, models: dict[str, list[dict[str, Any]]]) -> str:
    """Return a page with the tables between its marks."""
    return re.sub(
        r"(?<=<!-- made: ways -->\n\n).*?(?=\n\n<!-- end -->)", lambda _: tables(models), page, flags=re.DOTALL
    )


def main() -> None:
    """Write all."""
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "pyllama2", "svg.fonttype": "none"})
    models = json.loads((DOCS / "how_close.json").read_text())["models"]
    draw_bits(models, DOCS / "quantization-bits.svg")
    draw_layers(models, DOCS / "quantization-layers.svg")
    page = DOCS / "quantization.md"
    page.write_text(with_tables(page.read_text(), models))


if __name__ == "__main__":
    main()
