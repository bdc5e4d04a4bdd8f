"""`/openapi.json` and `/docs`: the API described from its forms."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from blip3o import __version__
from serve.http.forms import fields
from serve.http.forms.base import Body
from serve.http.forms.chat import ChatBody
from serve.http.forms.images import EditsForm, ImagesBody, VariationsForm
from serve.http.forms.responses import ResponsesBody
from serve.http.routes.examples import REPLIES, REQUESTS
from serve.http.routes.reference import IDLE, reference_page

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
_KEYWORDS = {"ge": "minimum", "le": "maximum"}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
}


def add_docs(open_to_all: APIRouter) -> None:
    """Adds both routes."""
    spec = describe_api()
    page = reference_page(spec)

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
    contents: Json = {_JSON: _with_example(REPLIES, path)} | ({_EVENTS: {}} if has_stream else {})
    schema = {"schema": {"$ref": _REF.format(model=form.__name__)}}
    body = {"required": True, "content": {kind: schema | _with_example(REQUESTS, path)}}
    return {**_operation(text, contents), "requestBody": body}


def _with_example(examples: Json, path: str) -> Json:
    return {"example": examples[path]} if path in examples else {}


def _operation(text: str, contents: Json) -> Json:
    error = {_JSON: {"schema": {"$ref": _REF.format(model="Error")}}}
    errors = {status: {"description": why, "content": error} for status, why in _ERRORS.items()}
    return {"summary": text, "responses": {"200": {"description": "the reply", "content": contents}, **errors}}


def _schema(form: type[Body], *, is_form: bool) -> Json:
    schema = _standard(form.model_json_schema(ref_template=_REF))
    for name, rule in form.neutral.items():
        schema["properties"].setdefault(name, _neutral(rule))
    if is_form:
        file = {"type": "string", "contentMediaType": "application/octet-stream"}
        shapes: Json = {"image": {"type": "array", "items": file, "minItems": 1}, "mask": file}
        for name in shapes.keys() & schema["properties"].keys():
            schema["properties"][name] = shapes[name] | {"description": form.model_fields[name].description}
    return schema


def _standard(schema: Any) -> Any:  # noqa: ANN401 - any part of a schema
    """The schema with the keywords of JSON Schema, where pydantic leaves its own inside a union."""
    if isinstance(schema, list):
        return [_standard(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {_KEYWORDS.get(name, name): _standard(value) for name, value in schema.items()}


def _neutral(rule: fields.Rule) -> Json:
    if isinstance(rule, fields.Ignored):
        return {IDLE: True, "description": f"no effect: {rule.why}"}
    if isinstance(rule, fields.Refused):
        return {IDLE: True, "type": "null", "description": f"not offered: {rule.why}"}
    return {IDLE: True, "enum": [*rule.values, None], "description": "no effect; only these values are accepted"}


def _error_schema() -> Json:
    text = {"type": ["string", "null"]}
    inner = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}
