"""Recipe files as nested values: found by name, merged over what they extend, and split into stages.

A file is a recipe of one stage, or a pipeline: the sections that all stages share, with the stages in `pipeline`, each
merged over them:

    run: {storage: runs}
    data: {root: data, …}
    pipeline:
      name: tiny
      stages:
        encoder:
          optim: {steps: 130, …}
        generate:
          stage: {start_from: [encoder]}

The key of a stage is its `stage.name`, and `<pipeline>-<key>` is its `run.name`, unless the file gives others. In
`stage.start_from` and `evaluate.grid_from`, the key of a stage stands for its run. `extends: OTHER` merges a file over
another one, or over one stage of a pipeline.

Nothing is validated here except the structure of the files; `blip3o.config.load` makes recipes of the values.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from blip3o.config.recipe import Recipe
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError, closest, nearest, one_line

Tree = dict[str, Any]

# The shipped recipes: data files of the package `jobs`, installed next to this one.
SHIPPED = Path(__file__).parents[2] / "jobs" / "recipes"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # without the dots and colons of overrides
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # as run.name, of which it is the prefix
_RUNS = (("stage", "start_from"), ("evaluate", "grid_from"))  # fields that name runs
_FORM = "write pipeline: {name: NAME, stages: {KEY: {optim: …}, …}}"


class Place(NamedTuple):
    """A file, and the key of one of its stages if only that stage is meant."""

    file: Path
    stage: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageTrees:
    """Stages as nested values by key, with derived names filled in.

    `pipeline` is the pipeline's name if all its stages are meant, or None for one stage or a recipe of one stage.
    """

    file: Path
    pipeline: str | None
    trees: dict[str, Tree]


def shipped() -> dict[str, Path]:
    """The files of the shipped recipes, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem)}


def find(reference: str, folder: Path | None = None) -> Place:
    """The file that a reference names: a path, relative to `folder`, or a shipped recipe.

    `REFERENCE:STAGE` is one stage of a pipeline, and so is the run name of a shipped pipeline's stage (tiny-generate).
    A file wins over a shipped recipe of the same name. Raises `ConfigError` if there is neither.
    """
    folder = folder or Path()
    file = _file(reference, folder)
    if file is not None:
        return Place(file)
    before, colon, stage = reference.rpartition(":")
    file = _file(before, folder) if colon else None
    if file is not None:
        return Place(file, stage)
    if os.path.exists(folder / reference):  # a pipe, or a folder, which fails as it is read
        return Place(folder / reference)
    if "/" in reference:
        raise ConfigError(f"recipe {reference} does not exist: give a file, or the name of a shipped recipe")
    runs = _shipped_runs()
    if reference in runs:
        return runs[reference]
    raise ConfigError(
        f"recipe '{reference}' is neither a file nor a shipped recipe (shipped: {', '.join(shipped())})"
        + _hint(reference, [*shipped(), *runs])
    )


def _file(name: str, folder: Path) -> Path | None:
    paths = (folder / name, SHIPPED / f"{name.removesuffix('.yaml')}.yaml")
    # Not Path.is_file, which raises for a name that is too long.
    return next((path for path in paths if os.path.isfile(path)), None)


def _shipped_runs() -> dict[str, Place]:
    """The stages of the shipped pipelines, by the names of their runs."""
    runs: dict[str, Place] = {}
    for file in shipped().values():
        found = _stages(read_tree(file), Place(file))
        if found.pipeline is not None:
            runs |= {tree["run"]["name"]: Place(file, key) for key, tree in found.trees.items()}
    return runs


def trained_runs(reference: str) -> dict[str, str]:
    """References to the stages that train each known run: of the file that `reference` selects from, and shipped ones.

    Raises `ConfigError` as `find`.
    """
    file = find(reference).file
    found = _stages(read_tree(file), Place(file))
    own = {} if found.pipeline is None else {tree["run"]["name"]: Place(file, key) for key, tree in found.trees.items()}
    names = {path: name for name, path in shipped().items()}
    return {run: f"{names.get(it.file, it.file)}:{it.stage}" for run, it in (_shipped_runs() | own).items()}


def read_stages(reference: str | Path, overrides: Sequence[str] = ()) -> StageTrees:
    """Reads the stages that a reference selects, and applies overrides.

    An override `key=value` applies to every selected stage, `STAGE:key=value` to one, and `pipeline.key=value` to the
    pipeline itself. Raises `ConfigError`.
    """
    place = find(str(reference))
    tree = read_tree(place.file)
    for item in overrides:
        if item.startswith("pipeline."):
            tree = override(tree, item)
    return _stages(tree, place, [item for item in overrides if not item.startswith("pipeline.")])


def _stages(tree: Tree, place: Place, overrides: Sequence[str] = ()) -> StageTrees:
    """The stages that `place` selects from the tree of its file."""
    if "pipeline" not in tree:
        if place.stage is not None:
            raise ConfigError(f"recipe {place.file} is not a pipeline and has no stages: leave out ':{place.stage}'")
        for item in overrides:
            tree = override(tree, item)
        return StageTrees(file=place.file, pipeline=None, trees={"": tree})
    pipeline, stages = _split(tree, place.file)
    if place.stage is not None and place.stage not in stages:
        raise ConfigError(f"pipeline {place.file} has no stage '{place.stage}': {nearest(place.stage, stages)}")
    meant = [key for key in stages if place.stage in (None, key)]
    for item in overrides:
        stage, change = _addressed(item, meant)
        stages |= {key: override(stages[key], change) for key in meant if stage in (None, key)}
    named = _with_names(pipeline, stages)
    return StageTrees(
        file=place.file,
        pipeline=None if place.stage else pipeline,
        trees={key: named[key] for key in meant},
    )


def read_tree(path: Path) -> Tree:
    """A YAML file as nested values, merged over what it `extends`. Raises `ConfigError`."""
    return _read_tree(path, ())


def _read_tree(path: Path, above: tuple[Path, ...]) -> Tree:
    """`above`: the files that extend this one, directly or through others."""
    tree = _read_mapping(path)
    base = tree.pop("extends", None)
    if not base:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"recipe {path}: extends = {base!r} is not the name of a file or of a shipped recipe")
    try:
        place = find(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"recipe {path} extends {base}: {error}") from error
    chain = (*above, path)
    if place.file.resolve() in [file.resolve() for file in chain]:
        raise ConfigError(f"recipe {path} extends {base}, which extends it in turn: break the cycle")
    below = _read_tree(place.file, chain)
    if place.stage is not None:
        [below] = _stages(below, place).trees.values()
    return merge(below, tree)


def _read_mapping(path: Path) -> Tree:
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
    return tree


def merge(base: Tree, top: Tree) -> Tree:
    """`top` over `base`: mappings are merged key by key, every other value is replaced whole."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # A mapping of another kind has other fields, so it replaces the one below it whole.
        same = both and value.get("kind") in (None, merged[key].get("kind"))
        merged[key] = merge(merged[key], value) if same else value
    return merged


def override(tree: Tree, item: str) -> Tree:
    """A copy of nested values with one changed, by `a.b=value`; the value is read as YAML. Raises `ConfigError`."""
    dotted, equals, text = item.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override '{item}' is not key=value, e.g. --set optim.steps=100")
    return _set(tree, dotted.split("."), load_yaml(text, f"override '{item}'"), item)


def _set(tree: Tree, keys: Sequence[str], value: object, item: str) -> Tree:
    key, *rest = keys
    if not rest:
        return {**tree, key: value}
    child = tree.get(key, {})
    if not isinstance(child, dict):
        raise ConfigError(f"override '{item}': '{key}' is a value, not a section")
    return {**tree, key: _set(child, rest, value, item)}


def _split(tree: Tree, file: Path) -> tuple[str, dict[str, Tree]]:
    """The name and the stages of a pipeline, each merged over the shared sections."""
    shared = {key: value for key, value in tree.items() if key != "pipeline"}
    _require_known(shared, [*Recipe.model_fields, "extends", "pipeline"], f"{file}: unknown key '")
    section = tree["pipeline"]
    if not isinstance(section, dict):
        raise ConfigError(f"{file}: 'pipeline' = {_shown(section)}: {_FORM}")
    _require_known(section, ("name", "stages"), f"{file}: unknown key 'pipeline.")
    name, stages = section.get("name"), section.get("stages")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigError(
            f"{file}: 'pipeline.name' = {_shown(name)}: give a name of letters, digits and . _ -, with which the names "
            "of its runs begin"
        )
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{file}: 'pipeline.stages' = {_shown(stages)} is not a mapping of stages: {_FORM}")
    for key, own in stages.items():
        _require_stage(key, own, file)
    return name, {key: merge(shared, own) for key, own in stages.items()}


def _require_stage(key: object, own: object, file: Path) -> None:
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ConfigError(
            f"{file}: 'pipeline.stages' has the key {_shown(key)}: use letters, digits, - and _, in quotes if it is a "
            "number"
        )
    if not isinstance(own, dict):
        raise ConfigError(
            f"{file}: 'pipeline.stages.{key}' = {_shown(own)}: give the stage's sections, or {{}} if it has none"
        )
    _require_known(own, Recipe.model_fields, f"{file}: unknown key 'pipeline.stages.{key}.")


def _require_known(section: Mapping[Any, Any], known: Sequence[str] | Mapping[str, Any], fault: str) -> None:
    for key in section:
        if key not in known:
            name = _shown(key).strip("'")
            raise ConfigError(f"{fault}{name}': {nearest(name, known)}")


def _addressed(item: str, stages: Sequence[str]) -> tuple[str | None, str]:
    """(stage or None for all of them, override)."""
    stage, colon, rest = item.partition(":")
    if not colon or "=" in stage:
        return None, item
    if stage not in stages:
        raise ConfigError(
            f"override '{item}': the pipeline has no stage '{stage}' (stages: {', '.join(stages)})"
            + _hint(stage, stages)
        )
    return stage, rest


def _with_names(pipeline: str, stages: Mapping[str, Tree]) -> dict[str, Tree]:
    """The stages with default `run.name` and `stage.name`, and with stage keys replaced by the names of their runs."""
    named = {
        key: _below(_below(tree, "run", {"name": f"{pipeline}-{key}"}), "stage", {"name": key})
        for key, tree in stages.items()
    }
    runs = {key: tree["run"].get("name") for key, tree in named.items() if isinstance(tree["run"], dict)}
    for number, (key, tree) in enumerate(named.items()):
        early = {name for name in _listed(tree, "stage", "start_from") if name in list(stages)[number:]}
        if early:
            raise ConfigError(
                f"pipeline '{pipeline}': stage '{key}' starts from '{min(early)}', which is not trained before it: "
                "change their order"
            )
        for section, field in _RUNS:
            names = _listed(tree, section, field)
            if names:
                given = {field: [runs.get(name, name) for name in names]}
                tree = {**tree, section: {**tree[section], **given}}
        named[key] = tree
    return named


def _listed(tree: Tree, section: str, field: str) -> list[str]:
    """The strings in a section's list; empty if it is anything else, which validation reports."""
    fields = tree.get(section)
    names = fields.get(field) if isinstance(fields, dict) else None
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return list(names) if texts and names else []


def _below(tree: Tree, section: str, values: Tree) -> Tree:
    """Adds default `values` to a section, unless it is not a mapping, which validation reports."""
    given = tree.get(section, {})
    return {**tree, section: {**values, **given}} if isinstance(given, dict) else tree


def _hint(word: str, known: Sequence[str]) -> str:
    guess = closest(word, known)
    return f": {guess}" if guess else ""


def _shown(value: object) -> str:
    return one_line(repr(value), limit=100)
