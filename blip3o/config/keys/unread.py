"""Keys that a stage does not read: refused where they were written for that stage, and left out where they were not.

Sections that several stages share hold the keys of all of them, so a stage takes from these only what it reads: the
other keys stay at their defaults. What was written for one stage alone has to have an effect in it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from blip3o.config.decoder import decoder_kind
from blip3o.config.model import ModelConfig
from blip3o.config.objectives import PARTIAL, ObjectiveSpec, objective_of, readers
from blip3o.config.recipe import Recipe
from blip3o.config.recipe_files import Tree
from blip3o.errors import ConfigError, one_line

SHOWN = 100


def objective_in(tree: Tree) -> ObjectiveSpec | None:
    """The objective of a stage that is not validated yet; None where validation will find a fault."""
    stage, model = (tree.get(section) for section in ("stage", "model"))
    if not isinstance(stage, dict) or not isinstance(model, dict):
        return None
    generated = model.get("objective", ModelConfig.model_fields["objective"].default)
    return objective_of(str(stage.get("name")), selectors=(str(generated), str(decoder_kind(model.get("decoder")))))


def without_unread(tree: Tree, own: Tree) -> Tree:
    """The stage's tree without the keys that it does not read; `own` is what was written for this stage alone.

    Raises `ConfigError` for such a key in `own`, unless it has its default.
    """
    spec = objective_in(tree)
    if spec is None:
        return tree
    for key, value in _set_keys(own):
        if not spec.reads(key):
            raise ConfigError(f"{_shown(key, value)}, stage '{tree['stage']['name']}' does not: leave it out")
    for key in PARTIAL:
        section, field = key.split(".")
        fields = tree.get(section)
        if not spec.reads(key) and isinstance(fields, dict) and field in fields:
            tree = {**tree, section: {name: value for name, value in fields.items() if name != field}}
    return tree


def require_readers(shared: Tree, recipes: Iterable[Recipe]) -> None:
    """Raises `ConfigError` for a key that was written for all stages of a pipeline and that none of them reads."""
    stages = list(recipes)
    names = ", ".join(dict.fromkeys(recipe.stage.name for recipe in stages))
    for key, value in _set_keys(shared):
        if not any(recipe.objective.reads(key) for recipe in stages):
            raise ConfigError(f"{_shown(key, value)}, none of the stages {names} does: leave it out")


def _shown(key: str, value: object) -> str:
    names = readers(key)
    who = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"'{key}' = {one_line(repr(value), limit=SHOWN)}: only {who} read it"


def _set_keys(tree: Tree) -> Iterator[tuple[str, Any]]:
    """The keys of `PARTIAL` that have another value than their default."""
    for key in PARTIAL:
        section, field = key.split(".")
        fields = tree.get(section)
        if isinstance(fields, dict) and field in fields and not _is_default(fields[field], _default(section, field)):
            yield key, fields[field]


def _default(section: str, field: str) -> Any:  # noqa: ANN401 - whatever the field holds
    """The default of a field, as YAML would hold it."""
    model = Recipe.model_fields[section].annotation
    assert model is not None
    default = model.model_fields[field].get_default(call_default_factory=True)
    dumped = getattr(default, "model_dump", None)
    if dumped is not None:
        return dumped(mode="json")
    return list(default) if isinstance(default, tuple) else default


def _is_default(value: Any, default: Any) -> bool:  # noqa: ANN401 - values of YAML
    if isinstance(value, dict) and isinstance(default, dict) and default:
        return all(key in default and _is_default(item, default[key]) for key, item in value.items())
    return bool(value == default)
