"""Recovery: what the driver does after an interruption, before it starts the next fit."""

import json

import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.errors import DataError
from blip3o.runs.checkpoints import checkpoint_name, is_rejected, shards_uri
from blip3o.runs.listing import read_history
from blip3o.runs.paths import snapshot_uri
from blip3o.runs.quarantine import read_quarantine
from blip3o.runs.recipes import write_recipe
from blip3o.train.recovery import Interruption, recover
from tests.data.test_batches import recipe, root  # noqa: F401 - a fixture

FIT = "joined"
BAD = Interruption(run="bad", kind="step", step=5, message="the loss is nan at step 5", micro_batches=(7,))


@pytest.fixture
def made(root, request):  # noqa: F811
    """A run, of one name for each test, with checkpoints after 2 and 4 steps."""
    found = recipe(root)
    run = found.run.model_copy(update={"name": request.node.name.replace("test_", "")})
    found = found.model_copy(update={"run": run})
    results = [{"checkpoint_dir_name": checkpoint_name(run.name, step)} for step in (2, 4)]
    storage.write_bytes(snapshot_uri(run.storage, FIT), json.dumps({"checkpoint_results": results}).encode())
    for step in (2, 4):
        storage.write_bytes(f"{shards_uri(found, step)}/a.pt", b"weights")
    write_recipe(found)
    return found


def of(made, interruption):
    return Interruption(**vars(interruption) | {"run": made.run.name})


def events(made):
    return [(it["kind"], it["step"]) for it in read_history(made.run.storage, made.run.name).events]


def test_a_bad_step_is_repeated_without_its_samples_from_the_resume_point(made):
    inputs = StageInputs(made)
    without = build_micro_batches(inputs, Task.GENERATE)
    recover([inputs], FIT, of(made, BAD))
    [entry] = read_quarantine(made).entries
    assert entry.uids == tuple(without.uids(7))
    assert (entry.step, entry.since) == (5, 4 * made.optim.micro_batches)
    assert events(made) == [("step", 5)]


def test_a_run_is_not_rewound_more_often_than_it_may(made):
    allowed = made.model_copy(update={"guard": made.guard.model_copy(update={"max_rewinds": 1})})
    recover([StageInputs(allowed)], FIT, of(made, BAD))
    with pytest.raises(DataError, match=r"rewound 1 times, guard.max_rewinds allows 1: .*quarantine\.json"):
        recover([StageInputs(allowed)], FIT, of(made, BAD))


def test_a_damaged_checkpoint_is_rejected(made):
    recover([StageInputs(made)], FIT, Interruption(run=made.run.name, kind="checkpoint", step=4, message="a.pt"))
    assert (is_rejected(made, 4), is_rejected(made, 2)) == (True, False)
    assert events(made) == [("checkpoint", 4)]
    assert not read_quarantine(made).entries
