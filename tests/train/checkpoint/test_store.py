"""Which checkpoints count, are kept, and serve as fallback. Without Ray: its snapshot is written by hand."""

import json
import re

import pytest

from blip3o import storage
from blip3o.errors import CheckpointError, StorageError
from blip3o.runs.checkpoints import checkpoint_name, committed_steps, shards_uri
from blip3o.runs.paths import SNAPSHOT, validation_uri
from blip3o.train.checkpoint.store import clear_rejection, committed_step, prune, reject, steps_to_keep
from tests import recipes

FIT = "joined"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"last": 2, "every": None, "best": None}, {9, 12}),
        ({"last": 1, "every": 6, "best": None}, {6, 12}),
        ({"last": 1, "every": None, "best": 3}, {3, 12}),
        ({"last": 1, "every": None, "best": 4}, {12}),
    ],
)
def test_the_newest_the_multiples_and_the_best_are_kept(rules, expected):
    assert steps_to_keep([3, 6, 9, 12], **rules) == expected


@pytest.fixture
def made(tmp_path):
    """A run with checkpoints after 3, 6, 9 and 12 steps, and files of one that was never committed after 7 and 15."""
    recipe = recipes.recipe(run={"storage": str(tmp_path)}, checkpoint={"keep": 1, "best": "validation/flow"})
    names = [checkpoint_name(recipe.run.name, step) for step in (3, 6, 9, 12)] + [checkpoint_name("another", 99)]
    results = [{"checkpoint_dir_name": name} for name in names]
    snapshot = json.dumps({"checkpoint_results": results})
    storage.write_bytes(f"{tmp_path}/{FIT}/{SNAPSHOT}", snapshot.encode())
    for step in (3, 6, 7, 9, 12, 15):
        storage.write_bytes(f"{shards_uri(recipe, step)}/state/a.pt", b"weights")
    return recipe


def steps_with_files(made):
    root = f"{made.run.storage}/{made.run.name}/shards"
    return sorted(int(file.uri.split("-step-")[1][:8]) for file in storage.list_files(root))


def test_the_newest_committed_checkpoint_of_the_stage_counts(made):
    assert committed_steps(made, FIT) == [3, 6, 9, 12]
    assert committed_step(made, FIT) == 12
    assert committed_step(made) == 0


def validated(made, figures):
    for step, figure in figures.items():
        place = validation_uri(made.run.storage, made.run.name, step)
        storage.write_bytes(place, json.dumps({"validation/flow": figure}).encode())


def test_pruning_keeps_the_checkpoints_of_the_rules_and_uploads_in_progress(made):
    validated(made, {3: 0.5, 6: 0.2, 9: 0.3})
    prune(made, FIT)
    assert steps_with_files(made) == [6, 12, 15]


def test_a_rejected_checkpoint_is_not_counted_among_those_that_are_kept(made):
    reject(made, FIT, 12, "a.pt is missing")
    prune(made, FIT)
    assert steps_with_files(made) == [9, 12, 15]  # that after 12 steps may be on its way again
    reject(made, FIT, 6, "b.pt is missing")
    clear_rejection(made, 12)
    prune(made, FIT)
    assert steps_with_files(made) == [12, 15]


def test_a_store_that_refuses_to_delete_does_not_end_the_run(made, caplog, monkeypatch):
    def refuse(uri):
        raise StorageError(f"{uri}: access denied")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "delete", refuse)
        prune(made, FIT)
    assert re.search(r"old checkpoints of run 'test' are not deleted: .+: access denied", caplog.text)
    assert steps_with_files(made) == [3, 6, 7, 9, 12, 15]
    prune(made, FIT)
    assert steps_with_files(made) == [12, 15]


@pytest.mark.parametrize(("figures", "left"), [({}, [9, 12, 15]), ({3: 0.5, 6: 0.6}, [3, 9, 12, 15])])
def test_a_checkpoint_that_waits_for_its_validation_is_not_pruned(made, figures, left):
    """At most two: validations that are slower than training do not fill the store."""
    evaluate = {"every": 3, "sources": [{"name": "held", "shards": "held/*.tar"}]}
    checkpoint = made.checkpoint.model_dump() | {"every": 3}
    waiting = recipes.recipe(run=made.run.model_dump(), checkpoint=checkpoint, evaluate=evaluate)
    validated(waiting, figures)
    for step in (3, 6, 9):
        storage.write_bytes(f"{shards_uri(waiting, step)}/state/a.pt", b"weights")
    prune(waiting, FIT)
    assert steps_with_files(waiting) == left


def test_a_run_falls_back_past_damaged_and_pruned_checkpoints_until_none_is_left(made, caplog):
    storage.delete(shards_uri(made, 9))
    reject(made, FIT, 12, "a.pt is missing")
    assert committed_step(made, FIT) == 6
    assert "checkpoint after step 12 of run 'test' is damaged: a.pt is missing" in caplog.text
    assert "run 'test' falls back to its checkpoint after step 6" in caplog.text
    clear_rejection(made, 12)
    assert committed_step(made, FIT) == 12
    reject(made, FIT, 12, "again")
    reject(made, FIT, 6, "too")
    with pytest.raises(CheckpointError, match=r"no checkpoint left that is whole \(4 are damaged or pruned, see "):
        reject(made, FIT, 3, "as well")


def test_a_snapshot_in_another_format_is_an_error(made):
    storage.write_bytes(f"{made.run.storage}/{FIT}/{SNAPSHOT}", b'{"results": []}')
    with pytest.raises(CheckpointError, match="is not a snapshot as Ray 2.60 writes it"):
        committed_step(made, FIT)
