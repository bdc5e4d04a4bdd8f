"""From a shipped recipe alone to a finished run, in plain folders: what is missing is told at once, with commands.

The recipe's places are relative, and Ray's workers run in another folder than the command.
"""

import re
import shlex
from pathlib import Path

import pytest

from blip3o import storage
from blip3o.config.load import build_recipe, load_recipe
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.errors import ConfigError, DataError
from blip3o.runs.paths import final_uri, recipe_uri
from blip3o.runs.recipes import write_recipe
from blip3o.runs.results import read_description, write_final
from blip3o.train.preflight.missing import find_missing
from jobs import cli
from tests import recipes

SMALL = ("--set", "optim.steps=3", "--set", "parallel.workers=1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(capsys, *argv):
    """The error of a command, and the commands that it names, each as its words."""
    assert cli.main(argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    return error, [shlex.split(command) for command in re.findall("`(.*?)`", error)]


def test_the_commands_that_an_error_names_lead_to_a_finished_run(ray_cluster, here, capsys):
    error, commands = refused(capsys, "train", "debug:encoder", *SMALL)
    said = "no shards in data/scenes; no index of scenes, scenes-heldout in data/manifests; no tokenizer in data/token"
    assert error.startswith(f"error: not ready to train: {said}izer.json. In this order")
    build, *prepared = commands
    assert build == ["blip3o", "data", "build", "scenes", "--out", "data/scenes"]
    assert prepared == [["blip3o", verb, "debug:encoder", *SMALL] for verb in ("index", "tokenizer")]
    assert "(--prepare runs index, tokenizer)" in error
    assert refused(capsys, "train", "debug:encoder", *SMALL, "--prepare")[0] == error
    assert cli.main([*build[1:], "--train", "24", "--heldout", "8"]) == 0
    assert cli.main(["train", "debug:encoder", *SMALL, "--prepare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(it) for it in lines if it.startswith("preparing")] == [["preparing:", *it] for it in prepared]
    assert cli.main(["runs"]) == 0
    assert re.match("debug-encoder +encoder +finished +3/3 ", capsys.readouterr().out)
    assert sorted(path.name for path in here.iterdir()) == ["data", "runs"]
    assert read_description(final_uri(f"{here}/runs", "debug-encoder"))
    assert not (Path(__file__).parents[3] / "runs" / "debug-encoder").exists()
    # All is there: a stage later, only a run is missing, and the tokenizer that was made is kept.
    error, commands = refused(capsys, "train", "debug:generate", "--set", "optim.lr=0.1", "--set", "data.root=data")
    assert commands == [["blip3o", "train", "debug:understand", "--set", "data.root=data"]]


def test_places_are_full_paths_whoever_makes_a_recipe(here, monkeypatch):
    made = load_recipe("debug:encoder", ["data.root=s3://bucket/data"])
    assert (made.run.storage, made.data.root) == (f"{here}/runs", "s3://bucket/data")
    stages = load_pipeline("tiny").stages
    assert {(it.run.storage, it.data.root) for it in stages} == {(f"{here}/runs", f"{here}/data")}
    monkeypatch.chdir("/")
    assert build_recipe(made.model_dump(mode="json")) == made
    with pytest.raises(ConfigError, match="^recipe: an empty path names no file"):
        load_recipe("debug:encoder", ["run.storage=''"])


def test_a_submitted_job_takes_no_relative_place(here, monkeypatch):
    """Its current folder is a copy, and gone when it ends."""
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    with pytest.raises(ConfigError, match="'data' is a relative path, and a submitted job .* give an s3:// URI, or"):
        load_recipe("debug:encoder", ["run.storage=/data/runs"])
    assert load_recipe("debug:encoder", ["run.storage=/data/runs", "data.root=s3://b/data"])


def pipeline(here, **sections):
    places = {"run": {"name": "mine", "storage": f"{here}/runs"}, "data": {"root": f"{here}/data"}}
    values = {name: places.get(name, {}) | sections.get(name, {}) for name in {*places, *sections}}
    return TrainingPipeline.of(recipes.recipe(**values))


def found(here, **sections):
    return [(item.what, item.verb or item.fix) for item in find_missing(pipeline(here, **sections), {})]


def test_pictures_of_ones_own_are_imported_and_a_wrong_pattern_is_no_missing_set(here):
    data = {"sources": [{"name": "mine", "shards": "photos/train-*.tar"}]}
    importing = "`blip3o data import PICTURES --out data/photos`"
    assert found(here, data=data)[0] == ("no shards in data/photos", importing)
    storage.write_bytes(f"{here}/data/photos/part-0.tar", b"")
    with pytest.raises(DataError, match=r"^no file matches .*/train-\*.tar \(1 files lie in .*: check the pattern"):
        find_missing(pipeline(here, data=data), {})


def test_the_tokenizer_is_that_of_the_runs_to_start_from(here):
    """A new one would give their weights other words, so it is offered only where they have none yet."""
    stage = {"name": "generate", "start_from": ["released", "demo"]}
    copied = [fix for what, fix in found(here, stage=stage) if what.startswith("no tokenizer")]
    assert copied == ["a copy of the tokenizer.json that released, demo came with"]
    adopted = [fix for what, fix in found(here, stage=stage) if what.startswith("no finished run 'released'")]
    assert adopted[0].startswith("`blip3o adopt RECIPE --name released ")
    other = recipes.recipe(run={"name": "demo", "storage": f"{here}/runs"}, data={"root": "s3://blip3o/data"})
    write_recipe(other)
    write_final(final_uri(f"{here}/runs", "demo"), {}, {})
    assert storage.exists(recipe_uri(f"{here}/runs", "demo"))
    named = [fix for what, fix in found(here, stage=stage) if what.startswith("no tokenizer")]
    assert named == ["--set data.tokenizer=s3://blip3o/data/tokenizer.json, that of run 'demo'"]


def test_features_come_last_and_held_out_data_only_where_they_are_read(here):
    heldout = {"sources": [{"name": "scenes-heldout", "shards": "scenes/heldout-*.tar"}]}
    verbs = [fix for _, fix in found(here, data={"features": "cache"}, evaluate=heldout)][1:]
    assert verbs == ["index", "tokenizer", "encode"]
    storage.write_bytes(f"{here}/data/manifests/scenes/manifest.parquet", b"")
    storage.write_bytes(f"{here}/data/tokenizer.json", b"{}")
    assert found(here, evaluate=heldout) == []
    with pytest.raises(DataError, match="heldout"):
        storage.write_bytes(f"{here}/data/scenes/train-0.tar", b"")
        find_missing(pipeline(here, evaluate=heldout | {"every": 2}), {})
