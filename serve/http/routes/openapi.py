"""`/openapi.json` and `/docs`: the API described from its forms, in one page that loads nothing from elsewhere."""

import html
import json
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from blip3o import __version__
from serve.http.forms import fields
from serve.http.forms.base import Body
from serve.http.forms.chat import ChatBody
from serve.http.forms.images import EditsForm, ImagesBody, VariationsForm
from serve.http.forms.responses import ResponsesBody

Json = dict[str, Any]

_JSON, _EVENTS, _FORM = "application/json", "text/event-stream", "multipart/form-data"
_ERRORS = {
    "400": "a field is missing, unknown or invalid, or the model cannot do this",
    "401": "there is no API key that is known here",
    "404": "the model does not exist",
    "408": "the body arrived too slowly",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "the queue is full, or a limit of the API key is reached: see retry-after",
    "500": "a bug in the server",
    "503": "the model is starting, stopping or lost, or the time was over",
}
_POSTS: dict[str, tuple[type[Body], str, str]] = {
    "/v1/images/generations": (ImagesBody, _JSON, "Generates images from a prompt."),
    "/v1/images/edits": (EditsForm, _FORM, "Edits images as a prompt says, if the model can."),
    "/v1/images/variations": (VariationsForm, _FORM, "Generates variations of an image, if the model can."),
    "/v1/chat/completions": (ChatBody, _JSON, "Answers a conversation with text, with images, or with both."),
    "/v1/responses": (ResponsesBody, _JSON, "Answers a conversation, or draws its last message."),
}
_GETS = {
    "/v1/models": (_JSON, "The models."),
    "/health": (_JSON, "200 while this process answers."),
    "/ready": (_JSON, "200 if a model can answer."),
    "/metrics": ("text/plain", "Prometheus metrics."),
    "/openapi.json": (_JSON, "This description."),
    "/docs": ("text/html", "This description, for people."),
}
_REF = "/".join(("#", "components", "schemas", "{model}"))
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}
:root{color-scheme:light dark}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;vertical-align:top}
code{font:14px ui-monospace,monospace}"""
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
}


def add_docs(open_to_all: APIRouter) -> None:
    """Adds both routes."""
    spec = describe_api()
    page = _page(spec)

    async def openapi() -> Response:
        return JSONResponse(spec)

    async def docs() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    open_to_all.add_api_route("/openapi.json", openapi, methods=["GET", "HEAD"])
    open_to_all.add_api_route("/docs", docs, methods=["GET", "HEAD"])


def describe_api() -> Json:
    """The API as an OpenAPI 3.1 document."""
    schemas: Json = {"Error": _error_schema()}
    paths: Json = {path: {"post": _post(path, schemas)} for path in _POSTS}
    paths |= {path: {"get": _operation(text, {kind: {}})} for path, (kind, text) in _GETS.items()}
    model_id = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model_id}"] = {"get": {**_operation("A model by name.", {_JSON: {}}), "parameters": [model_id]}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "blip3o", "version": __version__, "description": "OpenAI's API, of one or several models."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _post(path: str, schemas: Json) -> Json:
    form, kind, text = _POSTS[path]
    schema = _schema(form, is_form=kind == _FORM)
    schemas |= schema.pop("$defs", {})
    schemas[form.__name__] = schema
    has_stream = "stream" in form.model_fields
    contents: Json = {_JSON: {}} | ({_EVENTS: {}} if has_stream else {})
    body = {"required": True, "content": {kind: {"schema": {"$ref": _REF.format(model=form.__name__)}}}}
    return {**_operation(text, contents), "requestBody": body}


def _operation(text: str, contents: Json) -> Json:
    error = {_JSON: {"schema": {"$ref": _REF.format(model="Error")}}}
    errors = {status: {"description": why, "content": error} for status, why in _ERRORS.items()}
    return {"summary": text, "responses": {"200": {"description": "the reply", "content": contents}, **errors}}


def _schema(form: type[Body], *, is_form: bool) -> Json:
    schema = form.model_json_schema(ref_template=_REF)
    for name, rule in form.neutral.items():
        schema["properties"].setdefault(name, _neutral(rule))
    if is_form:
        file = {"type": "string", "contentMediaType": "application/octet-stream"}
        schema["properties"] |= {"image": {"type": "array", "items": file, "minItems": 1}}
        schema["properties"] |= {"mask": file} if "mask" in schema["properties"] else {}
    return schema


def _neutral(rule: fields.Rule) -> Json:
    if isinstance(rule, fields.Ignored):
        return {"description": f"no effect: {rule.why}"}
    if isinstance(rule, fields.Refused):
        return {"type": "null", "description": f"not offered: {rule.why}"}
    return {"enum": [*rule.values, None], "description": "no effect at these values, which are the only ones"}


def _error_schema() -> Json:
    text = {"type": ["string", "null"]}
    inner = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}


def _page(spec: Json) -> str:
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>blip3o API</title><style>{_STYLE}</style>"]
    parts += ["<h1>blip3o API</h1><p>As a document for programs: <a href=openapi.json>openapi.json</a>.</p>"]
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {path}</code></h2><p>{html.escape(operation['summary'])}</p>")
            parts.extend(_field_rows(operation, spec["components"]["schemas"]))
    return "".join(parts)


def _field_rows(operation: Json, schemas: Json) -> Iterator[str]:
    contents = operation.get("requestBody", {}).get("content", {})
    for content in contents.values():
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        yield "<table><tr><th>field<th>default<th>meaning"
        for name, prop in schema["properties"].items():
            default = html.escape(json.dumps(prop["default"])) if "default" in prop else ""
            needed = " (required)" if name in schema.get("required", ()) else ""
            text = html.escape(prop.get("description", "")) + needed
            yield f"<tr><td><code>{name}</code><td><code>{default}</code><td>{text}"
        yield "</table>"
