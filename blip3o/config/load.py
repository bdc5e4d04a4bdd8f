"""Recipes from files and dotted overrides, with errors that name the nearest known key.

`blip3o.config.recipe_files` finds and reads the files; this module validates their values. `model: {preset: NAME, …}`
takes the sizes of a preset (`blip3o.config.presets.models`); other fields of the section override single values.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from blip3o.config.keys.unread import require_readers, without_unread
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import Recipe
from blip3o.config.recipe_files import StageTrees, Tree, merge, read_stages
from blip3o.config.yaml_reader import dump_yaml
from blip3o.errors import ConfigError, closest, nearest, one_line


def load_recipe(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads one stage and applies `key=value` overrides.

    `reference` is a file, the name of a shipped recipe, or one stage of either, as `tiny:generate`. Raises
    `ConfigError` for a missing or malformed file, a whole pipeline, an unknown key (with the nearest known one), or
    incompatible values.
    """
    found = read_stages(reference, overrides)
    if found.pipeline is not None:
        stages = ", ".join(f"{reference}:{key}" for key in found.trees)
        raise ConfigError(f"{found.file} is a pipeline: name one of its stages ({stages})")
    [recipe] = build_stages(found).values()
    return recipe


def build_stages(found: StageTrees) -> dict[str, Recipe]:
    """The recipes of the stages that were read, by key.

    Raises `ConfigError`. It names the stage at fault, unless every stage of the pipeline has the same fault.
    """
    recipes: dict[str, Recipe] = {}
    faults: dict[str, ConfigError] = {}
    for key, tree in found.trees.items():
        try:
            recipes[key] = build_recipe(tree, own=found.own[key])
        except ConfigError as error:
            faults[key] = error
    if not faults:
        if found.pipeline is not None:
            require_readers(found.shared, recipes.values())
        return recipes
    key, first = next(iter(faults.items()))
    if found.pipeline is None or [str(fault) for fault in faults.values()] == [str(first)] * len(found.trees):
        raise first
    raise ConfigError(f"stage '{key}': {first}") from first


def build_recipe(tree: Tree, *, own: Tree | None = None) -> Recipe:
    """Validates a recipe given as nested dictionaries. Raises `ConfigError`.

    If it is a stage of a file, `own` is what was written for it alone, as in `StageTrees`: keys there that the stage
    does not read are refused, and others are left out.
    """
    tree = {**tree, "model": _expand_model(tree.get("model"))}
    _refuse_unknown(tree, Recipe, "")
    if own is not None:
        tree = without_unread(tree, own)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("recipe: " + "; ".join(explain(item) for item in first_faults(error))) from error


def preset_model(name: str) -> ModelConfig:
    """The model that a preset names. Raises `ConfigError` for an unknown one."""
    return ModelConfig.model_validate(_expand_model({"preset": name}))


def dump(recipe: BaseModel) -> str:
    """A config as YAML that `build_recipe` reads back to an equal one."""
    return dump_yaml(recipe.model_dump(mode="json"))


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by the dotted names that `--set` uses; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _expand_model(section: Any) -> Any:  # noqa: ANN401 - whatever the YAML held; pydantic judges it
    if not isinstance(section, dict) or "preset" not in section:
        return section
    name = section["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset '{name}' is unknown: {nearest(str(name), list(PRESETS))}")
    return merge(PRESETS[name], {key: value for key, value in section.items() if key != "preset"})


def _refuse_unknown(value: Any, annotation: Any, place: str) -> None:  # noqa: ANN401 - as above; a field's type
    """Raises `ConfigError` for a key that no config class of this type has, also inside lists and mappings."""
    if isinstance(value, list):
        inner = next((get_args(kind)[0] for kind in _members(annotation) if get_origin(kind) is tuple), None)
        for number, item in enumerate(value):
            _refuse_unknown(item, inner, f"{place}[{number}]")
    if not isinstance(value, dict):
        return
    known, prefix = _known_keys(annotation, value), f"{place}." if place else ""
    for key, item in value.items():
        if known is not None and key not in known:
            name = one_line(key, limit=SHOWN)
            raise ConfigError(f"unknown key '{prefix}{name}': {nearest(name, known)}")
        _refuse_unknown(item, _mapped(annotation) if known is None else known[key], f"{prefix}{key}")


def _known_keys(annotation: Any, value: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    """The keys that a mapping may have, with the types of their values; None if it may have any."""
    section = _section(annotation, value)
    if section is not None:
        return {name: field.annotation for name, field in section.model_fields.items()}
    mapping = _mapping(annotation)
    named = mapping is not None and get_origin(mapping[0]) is Literal
    return dict.fromkeys(get_args(mapping[0]), mapping[1]) if mapping and named else None


def _mapped(annotation: Any) -> Any:  # noqa: ANN401 - a field's type
    """The type of the values of a mapping with any keys; None if it is none."""
    mapping = _mapping(annotation)
    return mapping[1] if mapping else None


def _mapping(annotation: Any) -> tuple[Any, Any] | None:  # noqa: ANN401 - a field's type
    return next((get_args(kind) for kind in _members(annotation) if get_origin(kind) is dict), None)


def _members(annotation: Any) -> list[Any]:  # noqa: ANN401 - a field's type
    """The types that a value may have: those of a union, or the one."""
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    return [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]


def _section(annotation: Any, value: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a field's type; as above
    """The config class of a field's value; of several, the one that the value's `kind` selects."""
    classes = [kind for kind in _members(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if len(classes) < 2 or not isinstance(value, dict):
        return classes[0] if classes else None
    kinds = {get_args(c.model_fields["kind"].annotation)[0]: c for c in classes}
    return kinds.get(str(value.get("kind", next(iter(kinds)))))


# What to write where a value is of the wrong type, by pydantic's name of the error.
_FORMS = {
    "bool_type": ": write true or false",
    "int_type": ": write a whole number without quotes, e.g. 200",
    "float_type": ": write a number without quotes, e.g. 1.0e-4",
    "string_type": ": put it in quotes",
}
# What pydantic says in the words of Python, by its name of the error.
_WORDS = {"tuple_type": "input should be a list, e.g. [a, b]", "model_type": "input should be a mapping, {key: value}"}
_WORD = re.compile(r"'([^']*)'")  # a word that a message offers
SHOWN = 100


def first_faults(error: ValidationError) -> list[Any]:
    """pydantic's errors without those that only follow from others: of a list without the members that are wrong."""
    faults: list[Any] = list(error.errors())
    inner = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["loc"] not in inner or fault["type"] != "too_short"]


def explain(item: Any) -> str:  # noqa: ANN401 - pydantic's error dictionary
    """One of pydantic's errors as a clause that names the key and the value."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"] if not _is_member(part)]
    where = "".join(parts).removeprefix(".")
    message = _WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
    if item["type"] == "missing":
        return f"'{where}' is missing"
    if item["type"] == "value_error":
        return message
    value = one_line(repr(item["input"]), limit=SHOWN)
    form = _FORMS.get(item["type"], "")
    if item["type"] == "literal_error" and (guess := closest(str(item["input"]), _WORD.findall(message))):
        form = f": {guess}"
    return f"'{where}' = {value}: {message[0].lower()}{message[1:]}{form}"


def _is_member(part: str | int) -> bool:
    """Whether a part of an error's place names a member of a union, which is no key of the recipe."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))
