"""Write what is made in docs/llama.md, and docs/llama.svg: tables from ModelConfig, links from the source.

    python scripts/docs/make_llama_docs.py            # write them
    python scripts/docs/make_llama_docs.py --check    # exit 1 if they are not what would be written

The page's text is written by hand. The part between `<!-- made: NAME -->` and `<!-- end -->` is the table of that name.
Links that the text uses as [text][PLACE] (source_links.py) are defined at the end of the page. Run the script after a
change of model.py, config.py or _cpu.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import pi
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts" / "random_models"))

from llama_picture import LETTERS, letters_of, picture  # noqa: E402
from make_random_model import SHAPES  # noqa: E402
from source_links import definitions, link_to  # noqa: E402

from pyllama2.analysis.inspection import PARTS, parameters_by_part  # noqa: E402
from pyllama2.backend.kv_cache import KV_DTYPES  # noqa: E402
from pyllama2.config import ModelConfig  # noqa: E402
from pyllama2.memory import kv_cache_bytes, weight_bytes, weight_bytes_per_token  # noqa: E402
from pyllama2.storage.weights import Quantization  # noqa: E402

PAGE = ROOT / "docs" / "llama.md"
PICTURE = ROOT / "docs" / "llama.svg"
MODELS = {name.upper(): SHAPES[name][0] for name in ("7b", "13b", "70b")}
WEIGHTS = ("float16", "q8", "q4")

# What a tensor does, by its name in a layer or of the model.
MEANING = {
    "tok_embeddings": "A row for each token of the vocabulary: where its way through the model begins",
    "attention_norm": "Scales of the normalised residual stream, before attention",
    "attention.wq": "Queries: what each head looks for",
    "attention.wk": "Keys: what a token can be found by",
    "attention.wv": "Values: what a token gives to those that find it",
    "attention.wo": "What all heads gathered, back to the residual stream",
    "ffn_norm": "Scales of the normalised residual stream, before the feed-forward network",
    "feed_forward.w1": "The gate: which of the hidden features are on, through silu",
    "feed_forward.w2": "The hidden features, back to the residual stream",
    "feed_forward.w3": "The hidden features",
    "norm": "Scales of the normalised residual stream, after the last layer",
    "output": "A row for each token of the vocabulary: its logit is the product with it",
}

# Steps of the forward pass: name, what is computed, places in model.py and in _cpu, the inner loop.
STEPS = [
    (
        "embed",
        "x = rows of tok_embeddings",
        "model.py Transformer.forward",
        "forward.pyx _embed",
        "matrix.pyx lookup_row",
    ),
    (
        "attention_norm",
        "w x / sqrt(mean(x²) + eps)",
        "model.py RMSNorm.forward",
        "forward.pyx start_on_norm",
        "portable.h rms_norm",
    ),
    (
        "wq wk wv",
        "q = Wq x, k = Wk x, v = Wv x",
        "model.py Attention.forward",
        "forward.pyx # attention_norm -> wq wk wv",
        "matrix.pyx run_products",
    ),
    (
        "rope, kv append",
        "turn each pair of q and k by position × frequency; keep k and v",
        "model.py apply_rope",
        "forward.pyx # biases -> rope -> kv append",
        "attention.pyx rope_and_append",
    ),
    (
        "attention",
        "softmax(q · k / sqrt(E)) v, over the tokens so far",
        "model.py Attention.forward",
        "attention.pyx attend",
        "attention.h attend",
    ),
    (
        "wo + residual",
        "x += Wo attended",
        "model.py Block.forward",
        "forward.pyx # wo + residual",
        "matrix.pyx run_products",
    ),
    (
        "ffn_norm",
        "w x / sqrt(mean(x²) + eps)",
        "model.py RMSNorm.forward",
        "forward.pyx start_on_norm",
        "portable.h rms_norm",
    ),
    (
        "w1 w3, silu *",
        "silu(W1 x) × (W3 x)",
        "model.py FeedForward.forward",
        "forward.pyx # ffn_norm -> w1 w3 -> silu *",
        "portable.h silu_product",
    ),
    (
        "w2 + residual",
        "x += W2 hidden",
        "model.py Block.forward",
        "forward.pyx # w2 + residual",
        "matrix.pyx run_products",
    ),
    (
        "norm, output",
        "logits = Wout RMSNorm(x)",
        "model.py Transformer.forward",
        "forward.pyx _output",
        "matrix.pyx run_products",
    ),
]


def page(text: str) -> str:
    """Renew the made parts of docs/llama.md. Takes and returns its text."""
    body = text.partition("<!-- made: links -->")[0]
    names = re.findall(r"<!-- made: (\w+) -->", body)
    if sorted(names) != sorted(_TABLES):
        raise SystemExit(f"{PAGE.name} should have each of these once: {', '.join(sorted(_TABLES))}")
    for name in names:
        block = re.compile(rf"<!-- made: {name} -->\n.*?<!-- end -->", re.DOTALL)
        new = "\n".join([f"<!-- made: {name} -->", *_TABLES[name](), "<!-- end -->"])
        body, count = block.subn(lambda match, new=new: new, body)
        assert count == 1, name
    return body + "\n".join(["<!-- made: links -->", "", *definitions(body)]) + "\n"


def row(cells: Iterable[object]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table(head: Sequence[str], rows: Iterable[Iterable[object]], left: int = 1) -> list[str]:
    """Return a Markdown table. Columns after the first `left` are aligned on the right."""
    return [row(head), row("---" if i < left else "---:" for i in range(len(head))), *map(row, rows)]


def per_model(head: str, rows: dict[str, Callable[[ModelConfig], object]]) -> list[str]:
    """Return a table with a column for each model. Rows compute their cells from its config."""
    return table([head, *MODELS], ([name, *map(cell, MODELS.values())] for name, cell in rows.items()))


def gigabytes(n_bytes: float) -> str:
    """Format bytes as 10^9 bytes, with three digits or more."""
    return f"{n_bytes / 1e9:,.{2 if n_bytes < 99.5e9 else 1}f} GB"


def kilobytes(n_bytes: int) -> str:
    """Format bytes as multiples of 1024 bytes, exactly."""
    return f"{n_bytes / 1024:,g} KiB"


def shapes() -> list[str]:
    """Make the table of each model's dimensions."""
    names = ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "max_seq_len"]
    letters = {name: f"`{name}` ({letter})" for letter, name in LETTERS.items() if name in names}
    rows: dict[str, Callable[[ModelConfig], object]] = {
        letters.get(name, f"`{name}`"): lambda config, name=name: f"{getattr(config, name):,}" for name in names
    }
    rows["`norm_eps`"] = lambda config: f"{config.norm_eps:g}"
    rows["`rope_theta`"] = lambda config: f"{config.rope_theta:g}"
    rows["parameters"] = lambda config: f"{config.n_parameters:,}"
    return per_model("", rows)


def tensors() -> list[str]:
    """Make the table of tensors: name, shape and meaning."""

    def shape(config: ModelConfig, name: str) -> str:
        return " × ".join(f"{n:,}" for n in config.tensor_shapes()[name])

    rows = []
    for name in MODELS["7B"].tensor_shapes():
        if name.startswith("layers.") and not name.startswith("layers.0."):
            continue
        stem = name.removesuffix(".weight").removeprefix("layers.0.")
        where = f"`layers.N.{stem}`" if name.startswith("layers.") else f"`{stem}`"
        rows.append([where, letters_of(name), *(shape(config, name) for config in MODELS.values()), MEANING[stem]])
    return table(["tensor (`.weight`)", "shape", *MODELS, "what it does"], rows, left=6)


def parameters() -> list[str]:
    """Make the table of parameters by part of the model."""

    def cell(part: str) -> Callable[[ModelConfig], str]:
        return lambda config: (
            f"{parameters_by_part(config)[part]:,} ({parameters_by_part(config)[part] / config.n_parameters:.1%})"
        )

    return per_model("", {part: cell(part) for part in dict.fromkeys(PARTS.values())})


def one_token() -> list[str]:
    """Make the table of bytes that decoding a token reads."""
    rows: dict[str, Callable[[ModelConfig], object]] = {}
    for type in WEIGHTS:
        rows[f"{type} weights"] = lambda config, type=type: gigabytes(
            weight_bytes_per_token(config, Quantization.of(type))
        )
    for dtype in ("float16", "int8"):
        rows[f"+ {dtype} keys and values at the last position"] = lambda config, dtype=dtype: gigabytes(
            kv_cache_bytes(config, config.max_seq_len, dtype)
        )
    for name, cell in {
        "share of attention's matrices": lambda config: parameters_by_part(config)["attention"],
        "share of the feed-forward network": lambda config: parameters_by_part(config)["feed forward"],
        "share of the output matrix": lambda config: parameters_by_part(config)["output"],
    }.items():
        rows[name] = lambda config, cell=cell: (
            f"{cell(config) / (config.n_parameters - config.vocab_size * config.dim):.1%}"
        )
    return per_model("read for one token", rows)


def work() -> list[str]:
    """Make the table of multiplications for a token."""

    def attention(config: ModelConfig, position: int) -> int:
        return 2 * config.n_layers * config.q_dim * position

    rows: dict[str, Callable[[ModelConfig], object]] = {
        "in matrices": lambda config: f"{(config.n_parameters - config.vocab_size * config.dim) / 1e9:.2f}",
        "in attention, at position 1,000": lambda config: f"{attention(config, 1000) / 1e9:.2f}",
        "in attention, at the last position": lambda config: f"{attention(config, config.max_seq_len) / 1e9:.2f}",
    }
    return per_model("10⁹ multiplications and additions for one token", rows)


def rope() -> list[str]:
    """Make the table of how fast pairs of a head turn."""
    config = MODELS["7B"]
    frequencies = config.rope_frequencies()
    pairs = [0, 1, *(len(frequencies) * i // 4 for i in (1, 2, 3)), len(frequencies) - 1]
    rows = [[i, f"{frequencies[i]:.3g}", f"{2 * pi / frequencies[i]:,.1f} tokens"] for i in pairs]
    return table(["pair", "radians per token", "a full turn takes"], rows, left=0)


def cache() -> list[str]:
    """Make the table of the size of keys and values."""

    def full(config: ModelConfig, dtype: str) -> int:
        return kv_cache_bytes(config, config.max_seq_len, dtype)

    rows: dict[str, Callable[[ModelConfig], object]] = {}
    for dtype in KV_DTYPES:
        rows[f"a token, {dtype}"] = lambda config, dtype=dtype: kilobytes(kv_cache_bytes(config, 1, dtype))
    for dtype in KV_DTYPES:
        rows[f"a full context, {dtype}"] = lambda config, dtype=dtype: gigabytes(full(config, dtype))
    rows["the same in float16 if no head shared keys"] = lambda config: gigabytes(
        full(replace(config, n_kv_heads=config.n_heads), "float16")
    )
    return per_model("", rows)


def memory() -> list[str]:
    """Make the table of memory: weights, and weights with a full cache."""
    rows: dict[str, Callable[[ModelConfig], object]] = {}
    for type in WEIGHTS:
        rows[f"weights, {type}"] = lambda config, type=type: gigabytes(weight_bytes(config, Quantization.of(type)))
    for type in WEIGHTS:
        rows[f"{type} and a full context in float16"] = lambda config, type=type: gigabytes(
            weight_bytes(config, Quantization.of(type)) + kv_cache_bytes(config, config.max_seq_len, "float16")
        )
    return per_model("", rows)


def steps() -> list[str]:
    """Make the table of the forward pass, with links."""

    def link(place: str) -> str:
        text = place.partition(" ")[2].lstrip("# ")
        return f"[`{text}`]({link_to(place)})"

    rows = [[f"`{name}`", formula, *map(link, places)] for name, formula, *places in STEPS]
    return table(["step", "what is computed", "model.py", "`_cpu`", "inner loop"], rows, left=5)


_TABLES = {
    function.__name__: function
    for function in (shapes, tensors, steps, rope, parameters, one_token, work, cache, memory)
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write what is made in docs/llama.md, and docs/llama.svg.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    check = parser.parse_args().check
    current = PAGE.read_text()
    wanted = {PAGE: page(current), PICTURE: picture()}
    if check:
        return 0 if all(path.exists() and path.read_text() == text for path, text in wanted.items()) else 1
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
