"""An Inspection, and the tokens of a text, as text for a terminal.

Control characters in anything that comes from a file are escaped, so that no file can control the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ..analysis.inspection import Inspection, MemoryPlan, TensorFacts
from ..analysis.tensor_statistics import Statistics, merged
from ..memory import layer_bits
from ..shown import shown
from ..storage.calibration_record import CalibrationRecord
from ..tokenizer.base import Tokenizer

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_TOKEN_COLOURS = ("\x1b[30;46m", "\x1b[30;43m")  # black on cyan, on yellow
_LAYER = re.compile(r"layers\.\d+\.")


def report(inspection: Inspection, colour: bool, *, layers: bool = False) -> str:
    """Render an inspection as lines of text.

    Args:
        inspection: what inspect_model() returned.
        colour: print titles in bold, with escape sequences.
        layers: list the tensors of every layer; otherwise each kind of tensor has one line.
    """
    sections = [
        ("", _file_lines(inspection)),
        ("config", _config_lines(inspection)),
        ("parameters", _parameter_lines(inspection)),
        ("tensors", _tensor_lines(inspection.tensors, layers)),
        (f"memory for a context of {inspection.context:,} tokens", _memory_lines(inspection)),
        ("decoding, tokens/s expected at most", _speed_lines(inspection)),
    ]
    lines = []
    for title, body in sections:
        if title:
            lines += ["", f"{_BOLD}{title}{_PLAIN}" if colour else title]
        lines += body
    return "\n".join(lines)


def _file_lines(inspection: Inspection) -> list[str]:
    quantization = inspection.quantization
    file_format = {"pyllama2": "our own file", "meta": "Meta's", "huggingface": "Hugging Face's"}.get(
        inspection.kind, inspection.kind
    )
    types = list(dict.fromkeys(tensor.type for tensor in inspection.tensors if len(tensor.shape) > 1))
    groups = ""
    if quantization and quantization.layers:
        groups = f", {layer_bits(inspection.config, quantization):.3g} bits a weight of the layers"
    elif quantization and quantization.group_size:
        groups = f", groups of {quantization.group_size}"
    total = sum(inspection.files.values())
    n_files = f" in {len(inspection.files)} files" if len(inspection.files) > 1 else ""
    rows = [
        ("model", shown(inspection.path)),
        ("format", f"{file_format}, {size(total)}{n_files}"),
        ("source", shown(inspection.source)),
        ("weights", f"{inspection.n_parameters:,} parameters, matrices in {' and '.join(types)}{groups}"),
        *_calibration_rows(inspection.calibration),
        ("tokenizer", _tokenizer_line(inspection)),
        ("chat", _template_line(inspection.chat_template)),
    ]
    return [f"{name:<11}{value}" for name, value in rows if value]


def _calibration_rows(record: CalibrationRecord | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    text = "a text that the model wrote" if record.text == "self" else "a text"
    hashes = ", ".join(shown(digest[:12]) for digest in record.sha256)
    return [
        ("calibrated", f"{shown(record.method)}, on {record.n_tokens:,} tokens of {text} (SHA-256 {hashes})"),
        (
            "",
            f"on {record.n_held_out:,} others of it: KL {record.kl_divergence:.4f} nats (standard error "
            f"{record.kl_standard_error:.4f}), top-1 {record.top_1_agreement:.1%}, "
            f"perplexity x {record.perplexity_ratio:.3f}",
        ),
    ]


def _tokenizer_line(inspection: Inspection) -> str:
    facts = inspection.tokenizer
    if facts is None:
        return "none; --tokenizer PATH gives it one"
    names = {token_id: shown(name) for name, token_id in facts.special_tokens.items()}
    ends = ", ".join(f"{names.get(token_id, '')} ({token_id})".strip() for token_id in facts.eos_ids)
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


def _config_lines(inspection: Inspection) -> list[str]:
    values = asdict(inspection.config)
    scaling = values.pop("rope_scaling")
    tied = values.pop("tied_embeddings")
    qkv_bias, wo_bias = values.pop("qkv_bias"), values.pop("wo_bias")
    numbers = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:g}" for name, value in values.items()]
    rope = "none" if scaling is None else f"{scaling['kind']} x {scaling['factor']:g}"
    parts = [*numbers, f"rope_scaling {rope}", f"tied_embeddings {'yes' if tied else 'no'}"]
    if qkv_bias:
        parts.append(f"biases of wq wk wv{' wo' if wo_bias else ''}")
    return ["  " + "   ".join(parts[i : i + 6]) for i in range(0, len(parts), 6)]


def _parameter_lines(inspection: Inspection) -> list[str]:
    rows = [
        (f"  {name}", f"{n:,}", f"{n / inspection.n_parameters:.1%}")
        for name, n in inspection.parameters.items()
        if n or name != "output"
    ]
    return table([*rows, ("  all", f"{inspection.n_parameters:,}", "")], "<>>")


def _tensor_lines(tensors: list[TensorFacts], layers: bool) -> list[str]:
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorFacts]] = {}
    for tensor in tensors:
        name = tensor.name if layers else _LAYER.sub("layers.*.", tensor.name)
        groups.setdefault((name, tensor.shape, tensor.type), []).append(tensor)
    rows: list[tuple[str, ...]] = [("  name", "", "shape", "type", "size", "min", "max", "mean", "std", "")]
    sampled = False
    for (name, shape, dtype), group in groups.items():
        statistics = merged([tensor.statistics for tensor in group])
        partly = statistics.n_read < sum(tensor.n_parameters for tensor in group)
        sampled |= partly
        times = f"{len(group)} x" if "*" in name else ""
        nbytes = sum(tensor.nbytes for tensor in group)
        cells = (f"  {name.removesuffix('.weight')}", times, " x ".join(map(str, shape)), dtype, size(nbytes))
        rows.append((*cells, *_statistics_cells(statistics, partly)))
    lines = table(rows, "<>>>>>>>><")
    return lines + (["  ~ of a sample of the tensor; --exact reads all of it"] if sampled else [])


def _statistics_cells(statistics: Statistics, sampled: bool) -> tuple[str, ...]:
    about = "~" if sampled else ""
    numbers = (statistics.min, statistics.max, statistics.mean, statistics.std)
    cells = ["-" if number is None else f"{about if i < 2 else ''}{number:.3g}" for i, number in enumerate(numbers)]
    return (*cells, f"{statistics.not_finite:,} not finite!" if statistics.not_finite else "")


def _memory_lines(inspection: Inspection) -> list[str]:
    dtypes = list(inspection.kv_bytes)
    rows = [("  weights", "", *(f"{dtype} keys, values" for dtype in dtypes))]
    rows.append(("  keys and values", "", *(size(inspection.kv_bytes[dtype]) for dtype in dtypes)))
    for need in inspection.needs:
        rows.append((f"  {_way(need)}", size(need.weight_bytes), *_totals(need, inspection.available_bytes)))
    lines = table(rows, "<" + ">" * (len(dtypes) + 1))
    if inspection.available_bytes is not None:
        totals = [total for need in inspection.needs for total in need.total_bytes.values()]
        note = "; ! does not fit" if any(total > inspection.available_bytes for total in totals) else ""
        lines.append(f"  {size(inspection.available_bytes)} are available here{note}")
    return lines


def _totals(need: MemoryPlan, available: int | None) -> Iterable[str]:
    for total in need.total_bytes.values():
        yield size(total) + (" !" if available is not None and total > available else "")


def _speed_lines(inspection: Inspection) -> list[str]:
    rows = [("  weights", "GB/token", "reading GB/s", *(f"{dtype} keys, values" for dtype in inspection.kv_bytes))]
    in_cache = False
    for need in inspection.needs:
        if need.speed is None or need.bandwidth is None:
            continue
        in_cache |= inspection.cpu_cache_bytes is not None and need.bytes_per_token < inspection.cpu_cache_bytes
        speeds = (f"{_rate(speed.at_start)} to {_rate(speed.at_end)}" for speed in need.speed.values())
        rows.append((f"  {_way(need)}", f"{need.bytes_per_token / 1e9:.3g}", f"{need.bandwidth:.1f}", *speeds))
    if len(rows) == 1:
        return ["  not measured"]
    threads = f"{inspection.n_threads} thread{'s' * (inspection.n_threads > 1)}"
    notes = [
        f"  from the first token to a full context, by measurements just now with {threads};",
        "  pyllama2 bench runs the model itself",
    ]
    if in_cache:
        cache = size(inspection.cpu_cache_bytes or 0)
        notes.append(f"  weights that fit in the processor's cache ({cache}) are read faster than memory")
    return table(rows, "<" + ">" * (len(inspection.kv_bytes) + 2)) + notes


def _way(need: MemoryPlan) -> str:
    return f"{need.quant} (the file)" if need.as_stored else need.quant


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def size(n_bytes: int) -> str:
    """Format a number of bytes with a decimal unit: 910,976 becomes 0.91 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= 0.1 * factor:
            return f"{n_bytes / factor:,.2f} {unit}"
    return f"{n_bytes} B"


def table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Align cells in columns, two spaces apart.

    Args:
        rows: the cells, equally many in each row.
        align: "<" (left) or ">" (right) for each column.

    Returns:
        One line for each row, without spaces at its end.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]


def tokens_report(text: str, ids: list[int], tokenizer: Tokenizer, colour: bool) -> str:
    """Show how a text is tokenized: all pieces in a row, then one line for each token.

    Args:
        text: the text.
        ids: its token ids, BOS included.
        tokenizer: the one that made them.
        colour: give neighbouring pieces different colours; otherwise "|" separates them.
    """
    special = set(tokenizer.special_tokens.values())
    pieces = [shown(tokenizer.piece(token_id)) for token_id in ids]
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
        for i, (token_id, piece) in enumerate(zip(ids, pieces, strict=True)):
            text_cell = f"{piece}  (special)" if token_id in special else f"'{piece}'"
            rows.append((str(i), str(token_id), tokenizer.token_bytes(token_id).hex(" "), text_cell))
        lines += ["", *table(rows, ">><<")]
    return "\n".join(lines)
