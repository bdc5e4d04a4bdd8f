"""The copy of a run has everything that its list of checkpoints vouches for, also while the run continues."""

import hashlib
import json

import pytest

from blip3o import storage
from blip3o.errors import CheckpointError, DataError
from blip3o.runs.checkpoints import checkpoint_name, lists_uri, shards_uri, write_rejection
from blip3o.runs.paths import final_uri, recipe_uri, snapshot_uri
from blip3o.runs.results import is_finished, write_final
from blip3o.train.checkpoint import backup
from blip3o.train.checkpoint.backup import copy_run
from blip3o.train.checkpoint.files import RankFiles, SavedFile, rank_list_uri
from blip3o.train.checkpoint.resume import resume_point
from tests.recipes import recipe

FIT = "both"


def made(uri, name):
    return recipe(run={"name": name, "storage": uri}, optim={"steps": 9})


def write_checkpoint(run, step):
    """The files of two ranks, and their lists in the pipeline's folder."""
    for rank in range(2):
        data = f"{run.run.name} {step} {rank}".encode()
        file = SavedFile(path=f"rank-{rank}.pt", size=len(data), sha256=hashlib.sha256(data).hexdigest())
        storage.write_bytes(storage.join(shards_uri(run, step), file.path), data)
        files = RankFiles(rank=rank, world=2, files=(file,))
        storage.write_bytes(rank_list_uri(lists_uri(run, FIT, step), rank), files.to_bytes())


def commit(uri, *checkpoints):
    results = [{"checkpoint_dir_name": checkpoint_name(*it)} for it in checkpoints]
    storage.write_bytes(snapshot_uri(uri, FIT), json.dumps({"checkpoint_results": results}).encode())


@pytest.fixture
def source(tmp_path):
    """A pipeline: `a` has finished, `b` has two checkpoints and a third that is not committed, `c` has not begun."""
    uri = str(tmp_path / "runs")
    for name, steps in {"a": [9], "b": [3, 6, 8]}.items():
        run = made(uri, name)
        storage.write_bytes(recipe_uri(uri, name), json.dumps(run.model_dump(mode="json")).encode())
        for step in steps:
            write_checkpoint(run, step)
    write_final(final_uri(uri, "a"), {}, {})
    commit(uri, ("a", 9), ("b", 3), ("b", 6))
    storage.write_bytes(recipe_uri(uri, "alone"), json.dumps(made(uri, "alone").model_dump(mode="json")).encode())
    return uri


def names(uri):
    return {file.uri.removeprefix(f"{storage.normalize(uri)}/") for file in storage.list_files(uri)}


@pytest.mark.parametrize("asked", ["b", FIT])
def test_a_stage_is_copied_with_its_pipeline_and_resumes_from_the_copy(source, tmp_path, asked):
    target = str(tmp_path / "copy")
    copied = copy_run(source, asked, target)
    assert (copied.runs, copied.resumes, copied.needed) == (("a", "b"), {"b": 6}, ())
    left = {name for name in names(source) if "b/shards/b-step-00000008" in name or name.startswith("alone/")}
    assert names(target) == names(source) - left and len(left) == 3 and copied.files == len(names(target))
    assert is_finished(target, "a") and resume_point(made(target, "b"), FIT).step == 6


def test_checkpoints_that_go_while_they_are_copied_are_replaced_by_newer_ones(source, tmp_path, monkeypatch):
    """The run commits 8 and prunes 3 and 6 once the list has been read."""
    target, below = str(tmp_path / "copy"), backup._names_below

    def slowly(uri, folder):
        found = below(uri, folder)
        if folder == "b" and storage.exists(f"{shards_uri(made(source, 'b'), 3)}/rank-0.pt"):
            commit(source, ("a", 9), ("b", 3), ("b", 6), ("b", 8))
            for step in (3, 6):
                storage.delete(shards_uri(made(source, "b"), step))
        return found

    monkeypatch.setattr(backup, "_names_below", slowly)
    assert copy_run(source, "b", target).resumes == {"b": 8}
    assert resume_point(made(target, "b"), FIT).step == 8


def test_a_copy_that_is_cut_short_is_no_run_that_could_be_resumed(source, tmp_path, monkeypatch):
    target = str(tmp_path / "copy")
    monkeypatch.setattr(backup, "_newest_whole", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy_run(source, "b", target)
    assert not storage.exists(snapshot_uri(target, FIT)) and not is_finished(target, "a")
    assert resume_point(made(target, "b"), FIT).step == 0


def test_a_damaged_or_rejected_checkpoint_does_not_count_and_the_one_before_does(source, tmp_path):
    file = f"{shards_uri(made(source, 'b'), 6)}/rank-1.pt"
    storage.write_bytes(file, b"b 6 2")
    assert copy_run(source, "b", str(tmp_path / "damaged")).resumes == {"b": 3}
    write_rejection(made(source, "b"), 3, "of the test")
    with pytest.raises(CheckpointError, match=r"run 'b' could not be copied whole: .*rank-1.pt is missing or is not"):
        copy_run(source, "b", str(tmp_path / "nothing"))


def test_a_run_that_has_not_begun_is_copied_and_one_that_is_not_there_is_named(source, tmp_path):
    assert copy_run(source, "alone", str(tmp_path / "copy")).resumes == {"alone": 0}
    with pytest.raises(DataError, match="has no run 'nobody'"):
        copy_run(source, "nobody", str(tmp_path / "copy"))


def test_weights_that_are_not_those_described_are_refused(source, tmp_path):
    storage.write_bytes(f"{final_uri(source, 'a')}/weights.safetensors", b"others")
    with pytest.raises(CheckpointError, match=r"a/final/weights.safetensors is missing or is not the file"):
        copy_run(source, "a", str(tmp_path / "copy"))
