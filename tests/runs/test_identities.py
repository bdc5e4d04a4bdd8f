"""What differs between a run and a submission under its name is named: keys, data and weights."""

import pytest

from blip3o.runs.identities import MOST, changes, read_identity, write_identity
from blip3o.train.checkpoint.state import deciding
from tests.recipes import recipe

SOURCES = [{"name": "a", "shards": "a/*.tar"}, {"name": "b", "shards": "b/*.tar", "weight": 2.0}]
DATA = ["order", "index a", "index b", "tokenizer", "features"]


def made(sections=(), data=DATA, start=("w0", "w1")):
    """A recipe, and what decides the numbers of its run: `data` and `start` are hashes."""
    given = {"data": {"sources": SOURCES}, "stage": {"start_from": ["one", "two"]}}
    for name, fields in dict(sections).items():
        given[name] = given.get(name, {}) | fields
    of_files = deciding(recipe(**given | {"stage": given["stage"] | {"start_from": []}}), data_sha256=data)
    of_files["stage"]["start_from"], of_files["start"] = given["stage"]["start_from"], list(start)
    return of_files


WEIGHED = [SOURCES[0], SOURCES[1] | {"weight": 3.0}]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sections": {"optim": {"lr": 0.002}}}, ["optim.lr: 0.001 → 0.002"]),
        ({"sections": {"data": {"sources": WEIGHED}}}, ["data.sources[1].weight: 2.0 → 3.0"]),
        ({"sections": {"run": {"seed": 3}}}, ["run.seed: 0 → 3"]),
        ({"sections": {"parallel": {"precision": "bf16"}}}, ['parallel.precision: "fp32" → "bf16"']),
        (
            {"sections": {"optim": {"lr": 0.5, "betas": [0.1, 0.2]}, "model": {"num_queries": 9}}},
            ["model.num_queries: 64 → 9", "optim.lr: 0.001 → 0.5", "optim.betas: [0.9, 0.999] → [0.1, 0.2]"],
        ),
        ({"data": ["other", "index a", "other", "tokenizer", "features"]}, ["the index of source 'b'"]),
        ({"data": ["order", "index a", "index b", "other", "features"]}, ["tokenizer.json"]),
        ({"data": ["order", "index a", "index b", "tokenizer", "other"]}, ["the stored features"]),
        ({"start": ("w0", "other")}, ["the weights of run 'two' in stage.start_from"]),
        ({"data": ["other", *DATA[1:]]}, ["the order of the samples"]),
        # The order follows from a key that has changed.
        ({"sections": {"data": {"window": 9}}, "data": ["other", *DATA[1:]]}, ["data.window: 32 → 9"]),
    ],
)
def test_what_differs_is_named(tmp_path, changed, named):
    run = recipe(run={"storage": str(tmp_path)})
    write_identity(run, "one", made())
    found = changes(run, "one", made(**changed))
    assert found.startswith("another recipe or other data (")
    assert [it.partition(": another")[0] for it in found.partition("(")[2].removesuffix(")").split("; ")] == named


def test_many_differences_are_counted(tmp_path):
    run = recipe(run={"storage": str(tmp_path)})
    write_identity(run, "one", made())
    found = changes(run, "one", made({"model": {"preset": "tiny"}}))
    assert found.count(" → ") == MOST
    assert found.endswith(" more)")


def test_nothing_is_named_that_was_not_recorded(tmp_path):
    run = recipe(run={"storage": str(tmp_path)})
    assert read_identity(run) is None
    assert changes(run, "one", made()) == "another recipe or other data"
    write_identity(run, "other", made())
    assert changes(run, "one", made({"optim": {"lr": 0.5}})) == "another recipe or other data"
