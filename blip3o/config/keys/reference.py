"""The reference of every key of a recipe: its form, default, description, and the stages that read it.

It is read from the fields themselves, by way of their JSON schema, so it cannot differ from what a recipe accepts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from blip3o.config.objectives import PARTIAL, readers
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError, nearest

_PLAIN = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
_PLURAL = {form: f"{form}s" for form in ("section", "text", "number", "whole number")}
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
_INDEX = re.compile(r"\[\d*\]")
EVERY_STAGE = ("every stage",)

Schema = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecipeKey:
    """One key.

    - `name`: dotted; `[]` stands for the members of a list.
    - `form`: what may be written, in words.
    - `default`: as YAML, or None if the key is required. A section has none either; it `is_section`.
    - `only`: the kind of the section that has the key, e.g. `sdxl`; empty if every kind has it.
    - `stages`: the stages that read it.
    """

    name: str
    form: str
    default: str | None
    about: str
    only: str = ""
    is_section: bool = False
    stages: tuple[str, ...] = EVERY_STAGE

    @property
    def plain(self) -> str:
        """The name without the marks of lists."""
        return _INDEX.sub("", self.name)


@cache
def recipe_keys() -> tuple[RecipeKey, ...]:
    """Every key of a recipe file, each section before its keys."""
    schema = Recipe.model_json_schema()
    fields = list(_Walk(schema["$defs"]).fields(schema, ""))
    before = next(number for number, key in enumerate(fields) if key.name == "model") + 1
    return (*_FILE_KEYS, *fields[:before], _PRESET, *fields[before:])


def find_keys(name: str) -> list[RecipeKey]:
    """The key of this name, with all keys below it; or, if there is none, every key whose name ends so (`lr`).

    Raises `ConfigError` for an unknown one, with the nearest.
    """
    wanted = _INDEX.sub("", name)
    found = [key for key in recipe_keys() if f"{key.plain}.".startswith(f"{wanted}.")]
    found = found or [key for key in recipe_keys() if key.plain.endswith(f".{wanted}")]
    if not found:
        known = {key.plain for key in recipe_keys()} | {key.plain.rpartition(".")[2] for key in recipe_keys()}
        raise ConfigError(f"no key is named '{name}': {nearest(wanted, known).partition(' (known')[0]}")
    return found


_FILE_KEYS = (
    RecipeKey(
        name="extends",
        form="text",
        default="null",
        about="a file or a shipped recipe that this file is merged over; tiny-generate takes one stage of a pipeline",
    ),
    RecipeKey(
        name="pipeline.name",
        form="text",
        default=None,
        about="name of a pipeline: its stages are stored as runs <name>-<key>",
    ),
    RecipeKey(
        name="pipeline.stages",
        form="mapping of keys to sections",
        default=None,
        about="the stages in training order, by keys of your own. Each is merged over the sections at the top of the "
        "file; its key is its stage.name unless it gives one",
    ),
)
_PRESET = RecipeKey(
    name="model.preset",
    form=f"one of {', '.join(PRESETS)}",
    default="null",
    about="sizes of a complete model by name, which are required keys otherwise; other keys of the section change "
    "single values",
)


@dataclass(frozen=True)
class _Walk:
    """Walks the schema of a recipe; `definitions` are those of its sections."""

    definitions: Mapping[str, Schema]

    def fields(self, schema: Schema, place: str, only: str = "") -> Iterator[RecipeKey]:
        """The keys of a section, and those below them. A fixed `kind` is listed once for all kinds of the section."""
        for name, field in schema["properties"].items():
            if "const" not in field:
                required = name in schema.get("required", ())
                yield from self._key(field, f"{place}.{name}".removeprefix("."), only, required=required)

    def _key(self, field: Schema, name: str, only: str, *, required: bool) -> Iterator[RecipeKey]:
        sections, form = self._sections(field), self._form(field)
        is_section = form == "section"
        partial = ".".join(name.split(".")[:2])
        yield RecipeKey(
            name=name,
            form=form,
            default=None if required or is_section else _as_yaml(field.get("default")),
            about=field.get("description") or _summary(sections[0]),
            only=only,
            is_section=is_section,
            stages=readers(partial) if partial in PARTIAL else EVERY_STAGE,
        )
        place = f"{name}[]" if "items" in field else name
        if len(sections) > 1:
            kinds = [_kind(section) for section in sections]
            about = "; ".join(f"{kind}: {_summary(it)}" for kind, it in zip(kinds, sections, strict=True))
            given = next((it["properties"]["kind"].get("default") for it in sections), None)
            form = f"one of {', '.join(kinds)}"
            yield RecipeKey(name=f"{place}.kind", form=form, default=given, about=about, only=only)
        for section in sections:
            kind = _kind(section) if len(sections) > 1 else ""
            yield from self.fields(section, place, ", ".join(filter(None, (only, kind))))

    def _sections(self, field: Schema) -> list[Schema]:
        """The sections that a field may hold, or the members of its list."""
        choices = [field, *field.get("anyOf", ()), *field.get("oneOf", ()), field.get("items", {})]
        return [self.definitions[it["$ref"].rpartition("/")[2]] for it in choices if "$ref" in it]

    def _form(self, field: Schema) -> str:
        """What may be written, in words."""
        if "$ref" in field or "oneOf" in field:
            return "section"
        if "enum" in field:
            return f"one of {', '.join(map(_as_yaml, field['enum']))}"
        if "anyOf" in field:
            return ", or ".join(dict.fromkeys(self._form(choice) for choice in field["anyOf"]))
        if field["type"] == "array":
            return self._list_form(field)
        if field["type"] == "object":
            return f"mapping of names to {self._form(field['additionalProperties'])}"
        bounds = [f"{word} {field[bound]}" for bound, word in _BOUNDS.items() if bound in field]
        return ", ".join([_PLAIN[field["type"]], *bounds])

    def _list_form(self, field: Schema) -> str:
        if "prefixItems" in field:
            return f"[{', '.join(map(self._form, field['prefixItems']))}]"
        least = f", at least {field['minItems']}" if "minItems" in field else ""
        member = self._form(field["items"])
        return f"list of {_PLURAL.get(member, member)}{least}"


def _kind(section: Schema) -> str:
    kind = section["properties"]["kind"]
    return str(kind.get("const", kind.get("default")))


def _summary(section: Schema) -> str:
    """The first paragraph of a section's docstring, in the form of a description."""
    text = " ".join(section["description"].split("\n\n")[0].split()).rstrip(".")
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _as_yaml(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
