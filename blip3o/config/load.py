"""Recipes from YAML and dotted overrides, with errors that name the nearest known key.

A recipe file may say `extends: other.yaml` (a sibling file, merged below it) and `model: {preset: NAME, …}`, which
takes a size from `blip3o.config.presets.models` and lets single fields be set beside it. An override, `--set
a.b=value`, has its value read as YAML.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import Recipe
from blip3o.config.yaml_reader import dump_yaml, load_yaml
from blip3o.errors import ConfigError, one_line

Tree = dict[str, Any]


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides.

    Raises `ConfigError` for a missing or malformed file, a pipeline, an unknown key (with the nearest known one), or
    values that do not fit together.
    """
    tree = read_tree(path)
    if "pipeline" in tree:
        raise ConfigError(f"{path} is a pipeline: name the recipe of one of its stages ({_stage_names(tree)})")
    for item in overrides:
        _apply(tree, item)
    return build_recipe(tree)


def _stage_names(tree: Tree) -> str:
    pipeline = tree["pipeline"]
    stages = pipeline.get("stages") if isinstance(pipeline, dict) else None
    return ", ".join(str(name).removesuffix(".yaml") for name in stages) if isinstance(stages, list) else "none named"


def build_recipe(tree: Tree) -> Recipe:
    """Validates a recipe given as nested dictionaries. Raises `ConfigError`."""
    tree = {**tree, "model": _expand_model(tree.get("model"))}
    _refuse_unknown(tree, Recipe, "")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("recipe: " + "; ".join(explain(item) for item in error.errors())) from error


def preset_model(name: str) -> ModelConfig:
    """The model that a preset names. Raises `ConfigError` for an unknown one."""
    return ModelConfig.model_validate(_expand_model({"preset": name}))


def dump(recipe: BaseModel) -> str:
    """A config as YAML that `build_recipe` reads back to an equal one."""
    return dump_yaml(recipe.model_dump(mode="json"))


def read_tree(path: Path) -> Tree:
    """A YAML file as nested values, merged over the file that it `extends`. Raises `ConfigError`."""
    return _read_tree(path, ())


def _read_tree(path: Path, above: tuple[Path, ...]) -> Tree:
    """`above`: the files that extend this one, directly or through others."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"recipe {path} does not exist: give a file, or the name of a shipped recipe") from error
    except (OSError, ValueError) as error:  # a folder, no permission, or a path that no file can have
        raise ConfigError(f"recipe {path} cannot be read ({one_line(error)}): give a YAML file") from error
    tree = load_yaml(data, f"recipe {path}")
    if tree is None:
        raise ConfigError(f"recipe {path} is empty: give it sections, or extends: OTHER.yaml")
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} holds {type(tree).__name__}, not a mapping of sections")
    base = tree.pop("extends", None)
    if not base:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"recipe {path}: extends = {base!r} is not the name of a file")
    below, chain = path.parent / base, (*above, path)
    if below.resolve() in [file.resolve() for file in chain]:
        raise ConfigError(f"recipe {path} extends {base}, which extends it in turn: break the circle")
    return _merge(_read_tree(below, chain), tree)


def _merge(base: Tree, top: Tree) -> Tree:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another kind has other fields: it replaces what it stands above, whole.
        same = both and value.get("kind") in (None, merged[key].get("kind"))
        merged[key] = _merge(merged[key], value) if same else value
    return merged


def _apply(tree: Tree, item: str) -> None:
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override '{item}' is not key=value, e.g. --set optim.steps=100")
    value = load_yaml(text, f"override '{item}'")
    *parents, leaf = dotted.split(".")
    node = tree
    for key in parents:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{item}': '{key}' is a value, not a section")
        node = child
    node[leaf] = value


def _expand_model(section: Any) -> Any:  # noqa: ANN401 - whatever the YAML held; pydantic judges it
    if not isinstance(section, dict) or "preset" not in section:
        return section
    name = section["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset '{name}' is unknown: {_nearest(str(name), list(PRESETS))}")
    return _merge(PRESETS[name], {key: value for key, value in section.items() if key != "preset"})


def _refuse_unknown(tree: Any, model: type[BaseModel], prefix: str) -> None:  # noqa: ANN401 - as above
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            name = one_line(key, limit=SHOWN)
            raise ConfigError(f"unknown key '{prefix}{name}': {_nearest(name, list(model.model_fields))}")
        section = _section(field.annotation, value)
        if section is not None:
            _refuse_unknown(value, section, f"{prefix}{key}.")


def _section(annotation: Any, value: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a field's type; as above
    """The config class that a field's value is of; of several, the one of the value's `kind`."""
    members = [get_args(m)[0] if get_origin(m) is Annotated else m for m in get_args(annotation) or (annotation,)]
    classes = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    if len(classes) < 2 or not isinstance(value, dict):
        return classes[0] if classes else None
    kinds = {get_args(c.model_fields["kind"].annotation)[0]: c for c in classes}
    return kinds.get(str(value.get("kind", next(iter(kinds)))))


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listing = ", ".join(sorted(known))
    return f"did you mean '{close[0]}'? (known: {listing})" if close else f"known are {listing}"


# What to write where a value is of the wrong type, by pydantic's name of the error.
_FORMS = {
    "bool_type": ": write true or false",
    "int_type": ": write a whole number, as 200, without quotes",
    "float_type": ": write a number, as 1.0e-4, without quotes",
    "string_type": ": put it in quotes",
}
SHOWN = 100


def explain(item: Any) -> str:  # noqa: ANN401 - pydantic's error dictionary
    """One of pydantic's errors as a clause that names the key and the value."""
    where = ".".join(str(part) for part in item["loc"] if not _is_member(part))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"'{where}' is missing"
    if item["type"] == "value_error":
        return message
    value = one_line(repr(item["input"]), limit=SHOWN)
    return f"'{where}' = {value}: {message[0].lower()}{message[1:]}{_FORMS.get(item['type'], '')}"


def _is_member(part: str | int) -> bool:
    """Whether a part of an error's place names a member of a union, which is no key of the recipe."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))
