"""/docs: the interface as a page, made from the OpenAPI description. It needs no script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color-scheme: light dark }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .2rem .6rem }
tr { border-bottom: 1px solid #8884 } h2 { margin-top: 2.5rem; border-bottom: 2px solid #8888 }
"""


def description_page(openapi: dict[str, Any]) -> str:
    """The HTML of the page.

    Args:
        openapi: the OpenAPI description.
    """
    info = openapi["info"]
    schemas = openapi["components"]["schemas"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(info["title"])}</title><link rel="stylesheet" href="docs.css"></head><body>',
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f'<p>{escape(info["summary"])} The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation, schemas)
    return "\n".join([*parts, "</body></html>"])


def style_sheet() -> str:
    """The page's CSS, which its security policy wants in a file of its own."""
    return _STYLE


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        yield from _table("Body", _resolved(body, schemas), schemas)
    good = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    if good and good.get("$ref"):
        yield from _table("Answer", _resolved(good, schemas), schemas)
    statuses = [status for status in operation["responses"] if status not in ("200", "422")]
    if statuses:
        yield f"<p>Errors: {', '.join(statuses)}.</p>"


def _table(title: str, schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", [])
    yield f"<h3>{title}</h3><table><tr><th>Field<th>Type<th>Meaning</tr>"
    for name, field in schema.get("properties", {}).items():
        if field.get("description") in ("Not supported.", "Taken and ignored."):
            continue
        star = " (required)" if name in required and title == "Body" else ""
        meaning = escape(field.get("description") or _resolved(field, schemas).get("description", ""))
        yield f"<tr><td><code>{escape(name)}</code>{star}<td>{escape(_type(field, schemas))}<td>{meaning}</tr>"
    yield "</table>"
    for words in ("Not supported.", "Taken and ignored."):
        names = [name for name, field in schema.get("properties", {}).items() if field.get("description") == words]
        if names:
            listed = ", ".join(f"<code>{escape(name)}</code>" for name in names)
            yield f"<p>{words.removesuffix('.')}: {listed}.</p>"


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schemas[name] if name else schema
    return found


def _type(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The type of a field in words: "string or list of integer"."""
    if "anyOf" in schema:
        words = [_type(one, schemas) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "$ref" in schema:
        return str(_resolved(schema, schemas).get("type", "object"))
    if "enum" in schema or "const" in schema:
        return " | ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    low, high = (schema.get(name) for name in ("minimum", "maximum"))
    bounds = f" {low:g} to {high:g}" if low is not None and high is not None and high < 1e6 else ""
    return f"{schema.get('type', 'anything')}{bounds}"
