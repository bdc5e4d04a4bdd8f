"""The page `/docs`: an OpenAPI document as plain HTML, without scripts and without anything from elsewhere."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

IDLE = "x-without-effect"  # marks a field that is only accepted, or refused

_STYLE = """:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
h2{border-top:1px solid #8886;margin-top:2.5rem;padding-top:1.5rem}
code,pre{font:14px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}h2 code,h3 code{font-size:1em}
pre{background:#8882;border-radius:6px;padding:.8rem 1rem;white-space:pre-wrap}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #8884;padding:.35rem .7rem .35rem 0;text-align:left;vertical-align:top}
td:first-child{min-width:8rem}summary{cursor:pointer;margin:.8rem 0}
@media(max-width:45rem){tr,td{display:block}th{display:none}
td{border:0;padding:.1rem 0}tr{border-bottom:1px solid #8884;padding:.4rem 0}}
b{font-weight:600}.tag{border-radius:4px;background:#8883;font-size:13px;padding:0 .4em}"""


def reference_page(spec: Json) -> str:
    """The page of an OpenAPI document: routes with their fields, examples and replies, then the objects in them."""
    schemas = spec["components"]["schemas"]
    routes = [(method, path, each) for path, operations in spec["paths"].items() for method, each in operations.items()]
    info = spec["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{info['title']} API</title><style>{_STYLE}</style><main><h1>{info['title']} API</h1>",
        f"<p>{_prose(info['description'])} Version {info['version']}. "
        "For programs: <a href=openapi.json>openapi.json</a>.</p><nav><ul>",
        *(f"<li><a href='#{_anchor(m, path)}'><code>{m.upper()} {path}</code></a>" for m, path, _ in routes),
        "</ul></nav>",
    ]
    for method, path, operation in routes:
        parts += [f"<h2 id='{_anchor(method, path)}'><code>{method.upper()} {path}</code></h2>"]
        parts += [f"<p>{_prose(operation['summary'])}</p>", *_route(operation, schemas)]
    bodies = {_body(operation)[1] for _, _, operation in routes}
    parts += ["<h2>Objects</h2>"]
    for name in sorted(schemas.keys() - bodies):
        parts += [f"<h3 id='{name}'><code>{name}</code></h3>", *_fields(schemas[name])]
    return "".join([*parts, "</main></html>"])


def _anchor(method: str, path: str) -> str:
    return re.sub(r"\W+", "-", f"{method}{path}").strip("-")


def _prose(text: str) -> str:
    """A sentence as HTML; what is in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _code(value: object) -> str:
    return f"<code>{html.escape(json.dumps(value, ensure_ascii=False), quote=False)}</code>"


def _body(operation: Json) -> tuple[Json, str]:
    """The content of a route's body, and the name of its schema; empty if it has none."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        return content, content["schema"]["$ref"].rpartition("/")[2]
    return {}, ""


def _route(operation: Json, schemas: Json) -> Iterator[str]:
    content, name = _body(operation)
    if name:
        yield from _example("Example", content)
        yield from _fields(schemas[name])
    replies = operation["responses"]
    for reply in replies["200"]["content"].values():
        yield from _example("Its reply", reply)
    rows = "".join(
        f"<tr><td><code>{status}</code><td>{_prose(each['description'])}" for status, each in replies.items()
    )
    yield f"<details><summary>Statuses</summary><table>{rows}</table></details>"


def _example(title: str, content: Json) -> Iterator[str]:
    if "example" in content:
        text = html.escape(json.dumps(content["example"], indent=2, ensure_ascii=False), quote=False)
        yield f"<p>{title}:</p><pre>{text}</pre>"


def _fields(schema: Json) -> Iterator[str]:
    """The fields of an object: those with an effect first, the required ones on top, the others folded."""
    needed = schema.get("required", ())
    fields = sorted(schema["properties"].items(), key=lambda item: item[0] not in needed)
    yield _table([(name, prop, name in needed) for name, prop in fields if IDLE not in prop])
    idle = [(name, prop, False) for name, prop in fields if IDLE in prop]
    if idle:
        yield f"<details><summary>{len(idle)} fields without effect</summary>{_table(idle)}</details>"


def _table(rows: list[tuple[str, Json, bool]]) -> str:
    lines = ["<table><tr><th>field<th>type<th>meaning"]
    for name, prop, is_needed in rows:
        tag = " <span class=tag>required</span>" if is_needed else ""
        default = prop.get("default")
        ends = [] if default in (None, "", [], {}) else [f"Default: {_code(default)}."]
        text = " ".join([_sentence(_prose(prop.get("description", ""))), *ends])
        lines.append(f"<tr><td><code>{name}</code>{tag}<td>{_type(prop)}<td>{text}")
    return "".join([*lines, "</table>"])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text and text[-1] not in ".:" else text


def _type(schema: Json) -> str:
    """The type of a value, with its bounds, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{name}'><code>{name}</code></a>"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return " ".join(_code(value) for value in schema["enum"] if value is not None)
    if "const" in schema:
        return _code(schema["const"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(each for each in kind)
    if kind == "array":
        return f"array of {_type(schema['items'])}"
    if kind == "string" and "contentMediaType" in schema:
        return "file"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", at least {low}"
    return f", at most {schema['maxLength']} characters" if "maxLength" in schema else ""
