"""docs/serving-reference.md, made from the code: `python -m tests.serve.http.field_table` renews it."""

from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from serve.config.options import ReplicaConfig, ServeConfig
from serve.http.config import HttpConfig
from serve.http.forms import fields
from serve.http.forms.chat import ChatBody, StreamOptions
from serve.http.forms.images import EditsForm, ImagesBody, VariationsForm
from serve.http.forms.messages import ImagePart, ImageUrl, InputImage, InputMessage, Message, TextPart
from serve.http.forms.responses import ImageTool, ResponsesBody

FORMS = {
    "`POST /v1/images/generations`": ImagesBody,
    "`POST /v1/images/edits`, in addition to those of generations": EditsForm,
    "`POST /v1/images/variations`, in addition to those of generations": VariationsForm,
    "`POST /v1/chat/completions`": ChatBody,
    "`stream_options` of a chat completion": StreamOptions,
    "A message of a chat completion": Message,
    "A part `image_url` of a message": ImagePart,
    "`image_url` in it": ImageUrl,
    "`POST /v1/responses`": ResponsesBody,
    "An item of `input`": InputMessage,
    "A part `input_image` of an item": InputImage,
    "The tool `image_generation` of a response": ImageTool,
    "A part with text, of a message or an item": TextPart,
}
HEAD = "| field | treatment | meaning |\n|---|---|---|\n"


DOCS = Path(__file__).parents[3] / "docs" / "serving-reference.md"
PAGE = """\
# Options and fields

This page is generated from the code. [Serving](serving.md) and the [HTTP API](http-api.md) say what they are for.

## Options

Options of `blip3o serve` and `blip3o deploy`. In Python and in a Serve config, their names have underscores.

### Model and replicas

{replicas}
Some defaults of `blip3o serve` differ: `--num-cpus` is 0.5, `--ingress-replicas` and `--coordinator-replicas` are 1.
With `blip3o deploy`, options that you omit keep their value on the cluster.

### HTTP API

In a Serve config, they are fields of `http`.

{http}
## Fields of requests

- **honoured**: the field has its effect.
- **mapped**: the field sets another one.
- **ignored**: the field is accepted, and changes nothing. "Ignored at" lists the only values for which this holds.
- **refused**: a request with the field fails with 400 and this code, unless its value is `null`.

{fields}"""
_UNKNOWN = "refused: `unknown_parameter`"


def rows(form):
    """Name, treatment and meaning of each field of a form; of the multipart forms, what differs from generations."""
    own, common = list(_rows(form)), list(_rows(ImagesBody))
    if form not in (EditsForm, VariationsForm):
        return own
    missing = [(name, _UNKNOWN, "this route has none") for name, *_ in common if name not in [row[0] for row in own]]
    return [row for row in own if row not in common] + missing


def _rows(form):
    for name, field in form.model_fields.items():
        mapped = (field.json_schema_extra or {}).get("mapped_to")
        needed = "required" if field.is_required() else ""
        meaning = "; ".join(part for part in (field.description, _values(field), _bounds(field), needed) if part)
        yield name, f"mapped to `{mapped}`" if mapped else "honoured", meaning
    for name, rule in form.neutral.items():
        if isinstance(rule, fields.Ignored):
            yield name, "ignored", rule.why
        elif isinstance(rule, fields.Refused):
            yield name, _UNKNOWN, rule.why
        else:
            when = "ignored at temperature 0, else" if name in fields.DRAWING else "ignored"
            yield (
                name,
                f"{when} at " + " or ".join(f"`{value}`" for value in str(rule).split(" or ")),
                f"else {_UNKNOWN}",
            )


def _values(field):
    """The values of a choice."""
    inner = [field.annotation, *get_args(field.annotation)]
    choices = [get_args(each) for each in inner if get_origin(each) is Literal]
    return " or ".join(f"`{value}`" for value in choices[0]) if choices and len(choices[0]) > 1 else ""


def _bounds(field):
    found = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("ge", "le", "max_length")
        if getattr(item, name, None) is not None
    }
    if "ge" in found and "le" in found:
        return f"{found['ge']} to {found['le']}"
    if "ge" in found:
        return f"{found['ge']} or more" if found["ge"] > -(2**53) else ""
    unit = "characters" if field.annotation is str else "items"
    return f"at most {found['max_length']} {unit}" if "max_length" in found else ""


def table(form):
    """The table of a form, in Markdown."""
    return HEAD + "".join(f"| `{name}` | {how} | {what} |\n" for name, how, what in rows(form))


def tables():
    """All tables of fields, each under its heading."""
    return "\n".join(f"### {title}\n\n{table(form)}" for title, form in FORMS.items())


def options(fields, without=()):
    """The table of a config's fields, as options."""
    lines = [
        f"| `--{name.replace('_', '-')}` | {_default(field)} | {field.description} |\n"
        for name, field in fields.items()
        if name not in without
    ]
    return "| option | default | what it decides |\n|---|---|---|\n" + "".join(lines)


def _default(field):
    if field.is_required():
        return "required"
    is_empty = field.default in ("", (), None) or isinstance(field.default, BaseModel)
    return "" if is_empty else f"`{field.default}`"


def page():
    """The whole page."""
    first = {**ReplicaConfig.model_fields, **ServeConfig.model_fields}
    replicas = options(first, without=("bundle_sha256", "http"))
    return PAGE.format(replicas=replicas, http=options(HttpConfig.model_fields), fields=tables())


if __name__ == "__main__":
    DOCS.write_text(page(), encoding="utf-8")
