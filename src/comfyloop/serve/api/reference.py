"""GET /docs: the routes as a page without scripts and without anything from another server."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:13px/1.4 ui-monospace,monospace}pre{overflow:auto;background:#8881;padding:.6rem}"
    "summary{cursor:pointer;padding:.2rem 0}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}"
    ":root{color-scheme:light dark}"
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
}


@router.get("/docs", include_in_schema=False)
def page(request: Request) -> HTMLResponse:
    schema = request.app.openapi()
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(schema['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>",
        f"<p>{escape(schema['info'].get('description', ''))} <a href=/openapi.json>openapi.json</a></p><h2>Routes</h2>",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(method, path, operation))
    parts.append("<h2>Bodies</h2>")
    for name, body in sorted(schema.get("components", {}).get("schemas", {}).items()):
        title = f"<summary><code>{escape(name)}</code></summary>"
        parts.append(f"<details id={escape(name)}>{title}{_table(body)}</details>")
    return HTMLResponse("\n".join(parts), headers=_HEADERS)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    title = f"<b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation.get('summary', ''))}"
    said = f"<p>{escape(operation.get('description', ''))}</p>"
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{_kind(p['schema'])}<td>{escape(p.get('description', ''))}"
        for p in operation.get("parameters", ())
    )
    sent = _content(operation.get("requestBody", {}))
    given = "".join(
        f"<tr><td>{escape(status)}<td>{_content(answer)}<td>{escape(answer.get('description', ''))}"
        for status, answer in operation.get("responses", {}).items()
    )
    body = f"<p>Body: {sent}</p>" if sent else ""
    return f"<details><summary>{title}</summary>{said}<table>{rows}</table>{body}<table>{given}</table></details>"


def _content(told: dict[str, Any]) -> str:
    kinds = (_kind(media.get("schema", {})) for media in told.get("content", {}).values())
    return ", ".join(dict.fromkeys(kind for kind in kinds if kind))


def _table(body: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name in body.get('required', ()) else '?'}<td>{_kind(value)}"
        f"<td>{escape(value.get('description', ''))}"
        for name, value in body.get("properties", {}).items()
    )
    return f"<p>{escape(body.get('description', ''))}</p><table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A type in a few words; other records as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " | ".join(_kind(one) for one in schema[several])
    if "enum" in schema or "const" in schema:
        return escape(" | ".join(map(str, schema.get("enum", (schema.get("const"),)))))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}"
    return escape(str(schema.get("type", "")))
