"""The whole recipe by one command: every step at its turn, and none that is done already."""

import json
import re

from blip3o import storage
from blip3o.data.sets.curated import build_curated
from blip3o.data.sets.scenes import build_scenes
from jobs.all.command import main
from jobs.demo import QUICK

STEPS = ["index", "tokenizer", "encode", "train", "export", "evaluate"]


def told(text):
    """What became of each step, in order: `done`, or why it was skipped."""
    found = re.findall(r"^(\w+): (?:(done) in|skipped \((.*)\)$)", text, re.MULTILINE)
    return {step: done or reason for step, done, reason in found}


def test_a_recipe_goes_from_shards_to_scores_and_does_only_what_is_missing(s3, ray_cluster, capsys):
    root = f"{s3}/whole"
    overrides = [f"data.root={root}/data", f"run.storage={root}/runs", *QUICK.overrides, "data.reader=local"]
    words = ["tiny", *(word for item in overrides for word in ("--set", item))]
    assert main(words) == 1
    assert "no shards in" in capsys.readouterr().err
    build_scenes(f"{root}/data/scenes", train=200, heldout=60)
    build_curated(f"{root}/data/curated", sets=[f"{root}/data/scenes"], samples=64)
    assert main(words) == 0
    first = told(capsys.readouterr().out)
    assert list(first) == STEPS
    assert {step for step in first if first[step] != "done"} == {"encode"}
    scores = storage.read_bytes(f"{root}/runs/tiny/evaluation/evaluation.json")
    assert json.loads(scores)["provenance"]["bundle"] == f"{root}/runs/tiny/bundle"

    assert main(words) == 0
    again = told(capsys.readouterr().out)
    assert list(again) == STEPS
    assert again["index"] == "every source has its index" and again["train"] == "every stage has finished"
    assert {step for step in again if again[step] == "done"} == {"export"}  # which finds the same bundle there

    # Other questions are other scores; a bundle that is lost is made again, of the same bytes.
    for file in storage.list_files(f"{root}/runs/tiny/bundle"):
        storage.delete(file.uri)
    assert main([*words, "--set", "evaluate.questions=12"]) == 0
    third = told(capsys.readouterr().out)
    assert {step for step in third if third[step] == "done"} == {"export", "evaluate"}
    found = json.loads(storage.read_bytes(f"{root}/runs/tiny/evaluation/evaluation.json"))
    assert found["provenance"]["sha256 of bundle.json"] == json.loads(scores)["provenance"]["sha256 of bundle.json"]
