"""An Inspection, and a text cut into tokens, for people at a terminal. Used by inspect.py.

Whatever comes from a file is shown with its control characters spelled out, so that no file can steer the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ..analysis.inspection import Inspection, MemoryPlan, TensorFacts
from ..analysis.tensor_statistics import Statistics, merged
from ..shown import shown
from ..tokenizer.base import Tokenizer

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_TOKEN_COLOURS = ("\x1b[30;46m", "\x1b[30;43m")  # black on cyan, on yellow
_LAYER = re.compile(r"layers\.\d+\.")


def report(found: Inspection, colour: bool, *, layers: bool = False) -> str:
    """The whole inspection; with layers the tensors of every layer on their own."""
    sections = [
        ("", _file_lines(found)),
        ("config", _config_lines(found)),
        ("parameters", _parameter_lines(found)),
        ("tensors", _tensor_lines(found.tensors, layers)),
        (f"memory for a context of {found.context:,} tokens", _memory_lines(found)),
        ("decoding, tokens/s expected at most", _speed_lines(found)),
    ]
    lines = []
    for title, body in sections:
        if title:
            lines += ["", f"{_BOLD}{title}{_PLAIN}" if colour else title]
        lines += body
    return "\n".join(lines)


def _file_lines(found: Inspection) -> list[str]:
    quantization = found.quantization
    format = {"pyllama2": "our own file", "meta": "Meta's", "huggingface": "Hugging Face's"}.get(found.kind, found.kind)
    types = list(dict.fromkeys(tensor.type for tensor in found.tensors if len(tensor.shape) > 1))
    groups = f", groups of {quantization.group_size}" if quantization and quantization.group_size else ""
    total = sum(found.files.values())
    n_files = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    rows = [
        ("model", shown(found.path)),
        ("format", f"{format}, {size(total)}{n_files}"),
        ("source", shown(found.source)),
        ("weights", f"{found.n_parameters:,} parameters, matrices in {' and '.join(types)}{groups}"),
        ("tokenizer", _tokenizer_line(found)),
        ("chat", _template_line(found.chat_template)),
    ]
    return [f"{name:<11}{value}" for name, value in rows if value]


def _tokenizer_line(found: Inspection) -> str:
    facts = found.tokenizer
    if facts is None:
        return "none; --tokenizer PATH gives it one"
    names = {id: shown(name) for name, id in facts.special_tokens.items()}
    ends = ", ".join(f"{names.get(id, '')} ({id})".strip() for id in facts.eos_ids)
    bos = (
        f"; begins with {names.get(facts.bos_id, '')} ({facts.bos_id})"
        if facts.add_bos and facts.bos_id is not None
        else ""
    )
    return f"{facts.kind}, {facts.n_tokens:,} tokens{bos}; ends with {ends or 'nothing'}"


def _template_line(template: str | None) -> str:
    if template is None:
        return "no template in the file"
    return f"template of {len(template):,} characters, {shown(template[:40])} ..."


def _config_lines(found: Inspection) -> list[str]:
    values = asdict(found.config)
    scaling = values.pop("rope_scaling")
    tied = values.pop("tied_embeddings")
    numbers = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:g}" for name, value in values.items()]
    rope = "none" if scaling is None else f"{scaling['kind']} x {scaling['factor']:g}"
    parts = [*numbers, f"rope_scaling {rope}", f"tied_embeddings {'yes' if tied else 'no'}"]
    return ["  " + "   ".join(parts[i : i + 6]) for i in range(0, len(parts), 6)]


def _parameter_lines(found: Inspection) -> list[str]:
    rows = [
        (f"  {name}", f"{n:,}", f"{n / found.n_parameters:.1%}")
        for name, n in found.parameters.items()
        if n or name != "output"
    ]
    return table([*rows, ("  all", f"{found.n_parameters:,}", "")], "<>>")


def _tensor_lines(tensors: list[TensorFacts], layers: bool) -> list[str]:
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorFacts]] = {}
    for tensor in tensors:
        name = tensor.name if layers else _LAYER.sub("layers.*.", tensor.name)
        groups.setdefault((name, tensor.shape, tensor.type), []).append(tensor)
    rows: list[tuple[str, ...]] = [("  name", "", "shape", "type", "size", "min", "max", "mean", "std", "")]
    sampled = False
    for (name, shape, type), group in groups.items():
        statistics = merged([tensor.statistics for tensor in group])
        partly = statistics.n_read < sum(tensor.n_parameters for tensor in group)
        sampled |= partly
        times = f"{len(group)} x" if "*" in name else ""
        nbytes = sum(tensor.nbytes for tensor in group)
        cells = (f"  {name.removesuffix('.weight')}", times, " x ".join(map(str, shape)), type, size(nbytes))
        rows.append((*cells, *_statistics_cells(statistics, partly)))
    lines = table(rows, "<>>>>>>>><")
    return lines + (["  ~ of a sample of the tensor; --exact reads all of it"] if sampled else [])


def _statistics_cells(found: Statistics, sampled: bool) -> tuple[str, ...]:
    about = "~" if sampled else ""
    numbers = (found.min, found.max, found.mean, found.std)
    cells = ["-" if number is None else f"{about if i < 2 else ''}{number:.3g}" for i, number in enumerate(numbers)]
    return (*cells, f"{found.not_finite:,} not finite!" if found.not_finite else "")


def _memory_lines(found: Inspection) -> list[str]:
    dtypes = list(found.kv_bytes)
    rows = [("  weights", "", *(f"{dtype} keys, values" for dtype in dtypes))]
    rows.append(("  keys and values", "", *(size(found.kv_bytes[dtype]) for dtype in dtypes)))
    for need in found.needs:
        rows.append((f"  {_way(need)}", size(need.weight_bytes), *_totals(need, found.available_bytes)))
    lines = table(rows, "<" + ">" * (len(dtypes) + 1))
    if found.available_bytes is not None:
        note = "; ! does not fit" if any(line.rstrip().endswith("!") or " !  " in line for line in lines) else ""
        lines.append(f"  {size(found.available_bytes)} are available here{note}")
    return lines


def _totals(need: MemoryPlan, available: int | None) -> Iterable[str]:
    for total in need.total_bytes.values():
        yield size(total) + (" !" if available is not None and total > available else "")


def _speed_lines(found: Inspection) -> list[str]:
    rows = [("  weights", "GB/token", "reading GB/s", *(f"{dtype} keys, values" for dtype in found.kv_bytes))]
    in_cache = False
    for need in found.needs:
        if need.speed is None or need.bandwidth is None:
            continue
        in_cache |= found.cpu_cache_bytes is not None and need.bytes_per_token < found.cpu_cache_bytes
        speeds = (f"{_rate(speed.at_start)} to {_rate(speed.at_end)}" for speed in need.speed.values())
        rows.append((f"  {_way(need)}", f"{need.bytes_per_token / 1e9:.3g}", f"{need.bandwidth:.1f}", *speeds))
    if len(rows) == 1:
        return ["  not measured"]
    threads = f"{found.n_threads} thread{'s' * (found.n_threads > 1)}"
    notes = [
        f"  from the first token to a full context, by measurements just now with {threads};",
        "  pyllama2 bench runs the model itself",
    ]
    if in_cache:
        cache = size(found.cpu_cache_bytes or 0)
        notes.append(f"  weights that fit in the processor's cache ({cache}) are read faster than memory")
    return table(rows, "<" + ">" * (len(found.kv_bytes) + 2)) + notes


def _way(need: MemoryPlan) -> str:
    return f"{need.quant} (the file)" if need.as_stored else need.quant


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def size(n_bytes: int) -> str:
    """Bytes for people: 910,976 B is 0.91 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.1 * factor:
            return f"{n_bytes / factor:,.2f} {unit}"
    return f"{n_bytes} B"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Columns as wide as they need, two spaces apart; align has < or > for each."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]


def tokens_report(text: str, ids: list[int], tokenizer: Tokenizer, colour: bool) -> str:
    """How a text is cut: the pieces in a row, then one line for each token."""
    special = set(tokenizer.special_tokens.values())
    pieces = [shown(tokenizer.piece(id)) for id in ids]
    if colour:
        row = "".join(f"{_TOKEN_COLOURS[i % 2]}{piece}{_PLAIN}" for i, piece in enumerate(pieces))
    else:
        row = "|".join(pieces)
    n_bytes = len(text.encode())
    ratio = f", {n_bytes / len(ids):.2f} bytes a token" if ids else ""
    n_tokens = f"{len(ids):,} token{'s' * (len(ids) != 1)}"
    lines = [row, "", f"{n_tokens} for {n_bytes:,} bytes of UTF-8{ratio}"]
    if ids:
        rows = [("place", "id", "bytes", "text")]
        for i, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
            text_cell = f"{piece}  (special)" if id in special else f"'{piece}'"
            rows.append((str(i), str(id), tokenizer.token_bytes(id).hex(" "), text_cell))
        lines += ["", *table(rows, ">><<")]
    return "\n".join(lines)
