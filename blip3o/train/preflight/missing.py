"""What a pipeline reads and nobody has made yet, all of it at once, with the command that makes each thing.

`blip3o train` asks before it starts anything, so that a user who begins with a recipe meets one list, not one error
after the other. `jobs.commands.prepare` shows the list, and runs what can be run from the recipe alone.
"""

import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.config.shards import SourceConfig
from blip3o.data.shards.locations import source_locations, tokenizer_uri
from blip3o.data.shards.manifest import manifest_file
from blip3o.data.text.tokenizer_files import read_tokenizer_json
from blip3o.errors import DataError
from blip3o.runs.paths import recipe_uri
from blip3o.runs.recipes import read_recipe
from blip3o.runs.results import is_finished
from blip3o.storage.patterns import find_shards

Verb = Literal["index", "tokenizer", "encode"]
BUILT = ("scenes", "emoji", "curated")  # sets of `blip3o data build`; the shipped recipes find each in its folder


@dataclass(frozen=True, kw_only=True)
class Missing:
    """`what` is missing, as a clause. `verb` makes it from the same recipe; without one, `fix` says what does."""

    what: str
    verb: Verb | None = None
    fix: str = ""


def find_missing(pipeline: TrainingPipeline, trained_by: Mapping[str, str]) -> list[Missing]:
    """What is missing, in the order in which it can be made; empty if nothing is.

    `trained_by` has what trains each known run. Whether stored features are complete is not looked at: they
    are listed if something is missing that they are made from. Raises `StorageError` if a store refuses.
    """
    found = [*_sources(pipeline), *_tokenizers(pipeline, trained_by), *_runs(pipeline, trained_by)]
    cached = [it.run.name for it in pipeline.stages if it.data.features == "cache"]
    if found and cached:
        found.append(Missing(what=f"features of {', '.join(cached)} are made from these", verb="encode"))
    return found


def _sources(pipeline: TrainingPipeline) -> Iterator[Missing]:
    """Shards, and the index of sources. To index a recipe is to index all of its sources, held-out ones too."""
    every = [it for recipe in pipeline.stages for it in source_locations(recipe.data, _named(recipe))]
    read = {it.manifest for recipe in pipeline.stages for it in source_locations(recipe.data, _read(recipe))}
    unindexed = {
        manifest: location
        for manifest, location in {it.manifest: it for it in every}.items()
        if not storage.exists(manifest_file(manifest))
    }
    if read.isdisjoint(unindexed):
        return
    folders: dict[str, str] = {}
    for location in unindexed.values():
        folders.setdefault(posixpath.dirname(location.shards), location.shards)
    for folder, shards in folders.items():
        yield from _shards(pipeline, folder, shards)
    names = ", ".join(location.name for location in unindexed.values())
    yield Missing(what=f"no index of {names} in {_near(pipeline.stages[0].data.root)}/manifests", verb="index")


def _near(uri: str) -> str:
    """A URI as a user writes it: what lies below the current folder, by its place there."""
    return uri.removeprefix(f"{storage.normalize('.')}/")


def _named(recipe: Recipe) -> tuple[SourceConfig, ...]:
    return (*recipe.data.sources, *recipe.evaluate.sources)


def _read(recipe: Recipe) -> tuple[SourceConfig, ...]:
    """The sources that training reads."""
    return recipe.data.sources if recipe.evaluate.every is None else _named(recipe)


def _shards(pipeline: TrainingPipeline, folder: str, shards: str) -> Iterator[Missing]:
    """Shards that nobody has written. Raises the `DataError` of a pattern that leaves out all that is there."""
    try:
        find_shards(shards)
    except DataError:
        if storage.list_files(folder):
            raise
        yield Missing(what=f"no shards in {_near(folder)}", fix=f"`{shlex.join(_writer(pipeline, folder))}`")


def _writer(pipeline: TrainingPipeline, folder: str) -> list[str]:
    """The command that writes shards into a folder."""
    parent, name = posixpath.split(folder)
    if name not in BUILT or parent not in {recipe.data.root for recipe in pipeline.stages}:
        return ["blip3o", "data", "import", "PICTURES", "--out", _near(folder)]
    command = ["blip3o", "data", "build", name, "--out", _near(folder)]
    if name != "curated":
        return command
    read = [it.shards for recipe in pipeline.stages for it in source_locations(recipe.data)]
    others = dict.fromkeys(uri for shards in read if (uri := posixpath.dirname(shards)) != folder)
    return [*command, *(word for uri in others for word in ("--from", _near(uri)))]


def _tokenizers(pipeline: TrainingPipeline, trained_by: Mapping[str, str]) -> Iterator[Missing]:
    for uri, recipe in {tokenizer_uri(recipe.data): recipe for recipe in reversed(pipeline.stages)}.items():
        try:
            read_tokenizer_json(uri)
        except storage.MissingFileError:
            runs = _outside(pipeline)
            finished = [run for run in runs if is_finished(recipe.run.storage, run)]
            if not finished and all(run in trained_by for run in runs):
                yield Missing(what=f"no tokenizer in {_near(uri)}", verb="tokenizer")
            else:
                yield Missing(what=f"no tokenizer in {_near(uri)}", fix=_tokenizer_of(recipe, finished or runs))


def _tokenizer_of(recipe: Recipe, runs: Sequence[str]) -> str:
    """Where the tokenizer is that runs were trained with: a new one would give their weights other words."""
    for run in runs:
        if storage.exists(recipe_uri(recipe.run.storage, run)):
            data = read_recipe(recipe.run.storage, run)["data"]
            return f"--set data.tokenizer={storage.within(data['root'], data['tokenizer'])}, that of run '{run}'"
    return f"a copy of the tokenizer.json that {', '.join(runs)} came with"


def _outside(pipeline: TrainingPipeline) -> list[str]:
    """The runs that stages start from and the pipeline does not train, in the order of their first mention."""
    own = {recipe.run.name for recipe in pipeline.stages}
    return list(dict.fromkeys(run for it in pipeline.stages for run in it.stage.start_from if run not in own))


def _runs(pipeline: TrainingPipeline, trained_by: Mapping[str, str]) -> Iterator[Missing]:
    uri = pipeline.stages[0].run.storage
    for run in _outside(pipeline):
        if not is_finished(uri, run):
            adopted = f"`blip3o adopt RECIPE --name {run} --bundle BUNDLE`, or training a run of that name"
            yield Missing(what=f"no finished run '{run}' in {_near(uri)}", fix=trained_by.get(run, adopted))
