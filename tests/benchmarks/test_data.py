"""What the measurements of the data engine share: equal work, and a table that is replaced in its page."""

import importlib
import json

import numpy as np

from benchmarks.data import _table
from benchmarks.data._ways import WAYS, encode, stack
from benchmarks.data._world import BATCH, SOURCE, Job, fill
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.manifest import read_manifest
from blip3o.types import SampleRef


def test_a_way_that_reads_by_itself_makes_the_same_arrays(tmp_path):
    root = str(tmp_path / "data")
    assert fill(root, shards=2, per_shard=4, sides=(48, 36)) > 0
    job = Job(root=root, size=16, cores=1, folder=str(tmp_path))
    batch = job.builder()(0)
    assert {name: array.shape for name, array in batch.items()} == {
        "encoder_pixels": (BATCH, 16, 16, 3),
        "input_ids": (BATCH, 128),
        "draw_key": (BATCH,),
    }
    reader = ShardReader([read_manifest(f"{root}/manifests/{SOURCE}")])
    raw = reader.fetch([SampleRef(source=0, shard=1, row=2, pass_index=0)])[0]
    theirs = stack([encode(job.encoder(), raw.key, raw.image, raw.caption)])
    found = [row for row in range(BATCH) if (batch["input_ids"][row] == theirs["input_ids"][0]).all()]
    assert found and np.array_equal(batch["encoder_pixels"][found[0]], theirs["encoder_pixels"][0])
    assert list(WAYS)[0] == "ours"


def test_what_measures_imports_without_the_extra():
    assert callable(importlib.import_module("benchmarks.data._child").measure)


def test_a_table_is_replaced_in_its_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Data\n\nbefore\n")
    options = _table.parser("x").parse_args(["--page", str(page), "--results", str(tmp_path)])
    result = {"ratio": 2.0, "ours": 1, "other": 2, "unit": "s", "n": 1}
    for value in (1, 2):
        _table.finish("one", result, [["what", "s"], ["ours", value]], options, verdict="Slower.")
        _table.finish("two", result, [["what"], [value]], options, verdict="Level.")
    text = page.read_text()
    assert text.startswith("# Data\n\nbefore\n")
    assert text.count("| ours |") == text.count("<!-- measured: one -->") == 1
    assert "| what | s |\n| --- | --- |\n| ours | 2 |\n\nSlower. 2" in text
    assert text.index("<!-- end: one -->") < text.index("<!-- measured: two -->")
    kept = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert kept["name"] == "data_two" and (tmp_path / f"data_two-{kept['date'][:10]}.json").exists()


def test_a_verdict_names_every_case_in_which_ours_is_behind():
    assert _table.behind({"a": 1.0, "b": 2.0}, "another") == "Ours is ahead of another, or level, in every case."
    found = _table.behind({"a": 0.9, "b": 2.0, "c": 0.994}, "another")
    assert found == "Ours is slower than another in 2 of 3 cases: a (0.90); c (0.99)."
