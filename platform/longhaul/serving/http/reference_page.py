"""The page at /docs: the interface as one HTML page made from the OpenAPI document, without a script or a foreign address.

FastAPI's own page fetches its scripts from a public site and stays blank on a network that does not reach it.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h2{border-top:1px solid #d5dbe3;padding-top:1.2rem}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:#f4f6f9;padding:.8rem;overflow:auto;border-radius:6px}table{border-collapse:collapse;margin:.6rem 0}
td,th{border-bottom:1px solid #d5dbe3;padding:.3rem 1rem .3rem 0;text-align:left;vertical-align:top}
.verb{background:#1f5fbf;color:#fff;border-radius:4px;padding:.1rem .5rem;margin-right:.5rem}
@media(prefers-color-scheme:dark){body{color:#dfe5ee;background:#12161c}pre{background:#1b212a}
h2,td,th{border-color:#333c48}a{color:#8ab8ff}}
"""


def render(document: dict[str, Any]) -> str:
    """A self-contained HTML page for an OpenAPI 3.1 document."""
    info = document["info"]
    schemas = document.get("components", {}).get("schemas", {})
    routes = [(path, *route) for path, item in document["paths"].items() for route in item.items()]
    parts = [_operation(path, verb, operation, schemas) for path, verb, operation in routes]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><pre>{escape(info.get('description', ''))}</pre>"
        f'<p>Machine-readable: <a href="openapi.json">openapi.json</a></p>{"".join(parts)}</body></html>'
    )


def _operation(path: str, verb: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}{', required' if p.get('required') else ''}</td>"
        f"<td>{escape(p.get('description', ''))}</td></tr>"
        for p in operation.get("parameters", [])
    )
    body = operation.get("requestBody")
    if body:
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        rows += f"<tr><td>body</td><td>{kinds}</td><td>{escape(body.get('description', ''))}</td></tr>"
    answers = "".join(_answer(status, response, schemas) for status, response in operation["responses"].items())
    return (
        f'<h2><code><span class="verb">{verb.upper()}</span>{escape(path)}</code></h2>'
        f"<p>{escape(operation.get('summary', ''))}</p>"
        f"<table>{rows}</table><table>{answers}</table>"
    )


def _answer(status: str, response: dict[str, Any], schemas: dict[str, Any]) -> str:
    example = ""
    for kind, content in response.get("content", {}).items():
        if status == "200":
            example = f"<pre>{escape(json.dumps(_example(content.get('schema', {}), schemas), indent=1))}</pre>"
        else:
            example = f"<code>{escape(kind)}</code>"
    return f"<tr><td><code>{escape(status)}</code></td><td>{escape(response.get('description', ''))}</td><td>{example}</td></tr>"


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A value of that schema, from the examples of its fields."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rsplit("/", 1)[-1]], schemas)
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("type") == "object" and "properties" in schema:
        return {name: _example(field, schemas) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_example(schema.get("items", {}), schemas)]
    return {} if schema.get("type") == "object" else None
