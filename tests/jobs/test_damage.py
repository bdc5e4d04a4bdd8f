"""Damaged samples through the jobs: listed in the ledger, excluded from training, and refused beyond the budget."""

import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import ledger_file, manifest_file, read_manifest
from blip3o.data.text.tokenizer_training import train_tokenizer
from blip3o.errors import DataError
from jobs.index import index
from jobs.training.checks import check_data
from tests.data.shard_files import header_of, png, put, sample, samples, tar
from tests.jobs import world

# Shard 0: row 3 has an unreadable picture, row 7 an empty caption. Shard 1 is truncated inside the picture of row 9.
DAMAGED = {"scenes/0/3": "undecodable image", "scenes/0/7": "empty caption", "scenes/1/9": "truncated"}


def shards():
    files = samples(12)
    files[9:12] = sample("s003", image=png()[:40])
    files[21:24] = sample("s007", caption=b" \n")
    whole = tar(samples(12))
    return [tar(files), whole[: header_of(whole, "s009.png") + 600]]


@pytest.fixture(scope="module")
def damaged(base):
    """A recipe over two damaged shards."""
    made = world.recipe(base, run={"name": "damaged"}, data={"root": f"{base}/damaged", "max_bad_share": 0.2})
    for number, data in enumerate(shards()):
        put(f"{made.data.root}/scenes", f"train-{number:05d}.tar", data)
    return made


def with_budget(made, share):
    return made.model_copy(update={"data": made.data.model_copy(update={"max_bad_share": share})})


def data_sha256(made):
    """What the data of a recipe come to, once they are checked."""
    inputs = StageInputs(made)
    check_data(inputs)
    return inputs.sha256


def manifest_of(made):
    return f"{made.data.root}/manifests/scenes"


def test_damage_is_listed_and_excluded_from_the_micro_batches(damaged):
    [summary] = index(damaged)
    assert (summary.bad_rows, summary.manifest.rows, summary.manifest.good_rows) == (3, 22, 19)
    entries = {entry.uid: entry for entry in read_ledger(ledger_file(manifest_of(damaged)))}
    assert set(entries) == set(DAMAGED)
    for uid, reason in DAMAGED.items():
        assert entries[uid].reason.startswith(reason)
        assert entries[uid].uri.endswith(f"train-0000{uid.split('/')[1]}.tar")
        assert entries[uid].stage == "index"
    train_tokenizer(damaged)
    build = build_micro_batches(StageInputs(damaged), Task.GENERATE)
    batches = range(-(-summary.manifest.good_rows // damaged.optim.micro_batch_size))
    assert [len(build(number)["input_ids"]) for number in batches] == [damaged.optim.micro_batch_size] * len(batches)
    drawn = {uid for number in batches for uid in build.uids(number)}
    every = {f"scenes/{shard}/{row}" for shard, rows in enumerate((12, 10)) for row in range(rows)}
    assert drawn == every - set(DAMAGED)


def test_damage_beyond_the_budget_leaves_no_manifest(damaged):
    index(damaged)
    assert read_manifest(manifest_of(damaged)).good_rows == 19
    tight = with_budget(damaged, 0.1)
    with pytest.raises(DataError, match=r"source 'scenes': 3 of 22 samples are damaged.*the budget is 10\.00%: see "):
        index(tight)
    assert not storage.exists(manifest_file(manifest_of(damaged)))
    assert len(read_ledger(ledger_file(manifest_of(damaged)))) == len(DAMAGED)
    with pytest.raises(DataError, match="index the source first"):
        check_data(StageInputs(tight))
    index(damaged)
    assert read_manifest(manifest_of(damaged)).good_rows == 19


def test_a_shard_that_changed_after_indexing_stops_training_until_it_is_indexed_again(damaged):
    index(damaged)
    changed = damaged.model_copy(update={"run": damaged.run.model_copy(update={"name": "changed"})})
    before = data_sha256(changed)
    put(f"{damaged.data.root}/scenes", "train-00001.tar", tar(samples(13)))
    with pytest.raises(DataError, match=r"train-00001\.tar has \d+ bytes, \d+ when it was indexed: index the source"):
        check_data(StageInputs(damaged))
    [summary] = index(damaged)
    assert (summary.scanned, summary.bad_rows) == (1, 2)
    assert data_sha256(damaged) != before
