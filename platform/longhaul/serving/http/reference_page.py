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
    contents = "".join(
        f'<li><a href="#{_anchor(path, verb)}"><code>{verb.upper()} {escape(path)}</code></a> {escape(one.get("summary", ""))}'
        for path, verb, one in routes
    )
    parts = [_operation(path, verb, operation, schemas) for path, verb, operation in routes]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><pre>{escape(info.get('description', ''))}</pre>"
        f'<p>Machine-readable: <a href="openapi.json">openapi.json</a></p><ul>{contents}</ul>{"".join(parts)}</body></html>'
    )


def _operation(path: str, verb: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{p['in']}{', required' if p.get('required') else ''}</td>"
        f"<td>{escape(p.get('description', ''))}{_such_as(p.get('schema', {}))}</td></tr>"
        for p in operation.get("parameters", [])
    )
    body = operation.get("requestBody")
    if body:
        kinds = "<br>".join(f"<code>{escape(kind)}</code>" for kind in body["content"])
        rows += f"<tr><td>body</td><td>{kinds}</td><td>{escape(body.get('description', ''))}{_bodies(body)}</td></tr>"
    answers = "".join(_answer(status, response, schemas) for status, response in operation["responses"].items())
    return (
        f'<h2 id="{_anchor(path, verb)}"><code><span class="verb">{verb.upper()}</span>{escape(path)}</code></h2>'
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


def _anchor(path: str, verb: str) -> str:
    return verb + "".join(letter if letter.isalnum() else "-" for letter in path)


def _such_as(schema: dict[str, Any]) -> str:
    """A parameter's example, if it has one."""
    found = next((e for one in (schema, *schema.get("anyOf", ())) for e in one.get("examples", ())), None)
    return "" if found is None else f" Such as <code>{escape(str(found))}</code>."


def _bodies(body: dict[str, Any]) -> str:
    examples = [one for content in body["content"].values() for one in content.get("examples", {}).values()]
    return "".join(f"<br>{escape(one['summary'])}: <code>{escape(json.dumps(one['value']))}</code>" for one in examples)


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A value of that schema, from the examples of its fields."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rsplit("/", 1)[-1]], schemas)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], schemas)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if schema.get("type") == "object" and "properties" in schema:
        return {name: _example(field, schemas) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_example(schema.get("items", {}), schemas)]
    return {"object": {}, "string": "...", "number": 0.0, "integer": 0, "boolean": True}.get(schema.get("type", ""))
