"""Where a run resumes: each rule takes precedence over those below it."""

import json

import pytest
import torch

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline
from blip3o.errors import CheckpointError
from blip3o.runs.checkpoints import checkpoint_name, shards_uri
from blip3o.runs.paths import final_uri, snapshot_uri
from blip3o.runs.results import write_final
from blip3o.train.checkpoint.resume import next_micro_batch, resume_point
from blip3o.train.checkpoint.store import reject
from tests import recipes

FIT, STEPS, MICRO_BATCHES = "joined", 12, 2


def made(tmp_path, name="one", **stage):
    return recipes.recipe(
        run={"storage": str(tmp_path), "name": name},
        optim={"steps": STEPS, "micro_batches": MICRO_BATCHES},
        stage={"name": "generate", **stage},
    )


def commit(recipe, *steps):
    results = [{"checkpoint_dir_name": checkpoint_name(recipe.run.name, step)} for step in steps]
    snapshot = json.dumps({"checkpoint_results": results}).encode()
    storage.write_bytes(snapshot_uri(recipe.run.storage, FIT), snapshot)
    for step in steps:
        storage.write_bytes(f"{shards_uri(recipe, step)}/state/a.pt", b"weights")


def finish(recipe):
    write_final(final_uri(recipe.run.storage, recipe.run.name), {"a": torch.ones(1)}, {"run": recipe.run.name})


def test_finished_comes_before_checkpoint_before_start_from_before_seed(tmp_path):
    recipe, other = made(tmp_path), made(tmp_path, start_from=["world-encoder"])
    assert (resume_point(recipe, FIT).source, resume_point(recipe, FIT).step) == ("seed", 0)
    assert (resume_point(other, FIT).source, resume_point(other, FIT).step) == ("start_from", 0)
    commit(other, 3, 6)
    assert (resume_point(other, FIT).source, resume_point(other, FIT).step) == ("checkpoint", 6)
    reject(other, FIT, 6, "a.pt is missing")
    assert (resume_point(other, FIT).source, resume_point(other, FIT).step) == ("checkpoint", 3)
    finish(other)
    point = resume_point(other, FIT)
    assert (point.source, point.step, point.finished) == ("finished", STEPS, True)
    assert point.result["run"] == "one"


def test_a_run_with_only_rejected_checkpoints_does_not_start_again(tmp_path):
    """Starting from initial weights would silently discard its steps."""
    recipe = made(tmp_path, start_from=["world-encoder"])
    commit(recipe, 3)
    with pytest.raises(CheckpointError, match="no checkpoint left that is whole"):
        reject(recipe, FIT, 3, "a.pt is missing")
    with pytest.raises(CheckpointError, match="no checkpoint left that is whole"):
        resume_point(recipe, FIT)


def test_the_stream_begins_with_the_first_stage_that_has_not_finished(tmp_path):
    one, two = made(tmp_path, "one"), made(tmp_path, "two")
    pipeline = TrainingPipeline(name=FIT, stages=(one, two))
    assert next_micro_batch(pipeline) == 0
    finish(one)
    assert next_micro_batch(pipeline) == STEPS * MICRO_BATCHES
    commit(two, 3)
    assert next_micro_batch(pipeline) == (STEPS + 3) * MICRO_BATCHES
    finish(two)
    assert next_micro_batch(pipeline) == 2 * STEPS * MICRO_BATCHES
