"""Indexing in one process: resumed shard by shard, kept within the budget, and verified by reading all again."""

import pytest

from blip3o import storage
from blip3o.data.shards.indexing import index_source, verify_source
from blip3o.data.shards.manifest import manifest_file
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import DataError
from tests.data.shard_files import put, sample, samples, tar


class Scanner:
    """Scans in this process, in reverse order, and counts."""

    def __init__(self):
        self.numbers = []

    def __call__(self, tasks, then):
        for task in reversed(tasks):
            self.numbers.append(task.number)
            yield then(task, task.scan())


def indexed(folder, scanner, *, budget=0.05):
    lines = []
    summary = index_source(
        name="src",
        shards_uri=f"{folder}/*.tar",
        manifest_uri=f"{folder}/manifest",
        max_bad_share=budget,
        options=ScanOptions(),
        scan_all=scanner,
        report=lines.append,
    )
    return summary, lines


def verified(folder, options=None):
    return verify_source(
        name="src", manifest_uri=f"{folder}/manifest", options=options or ScanOptions(), scan_all=Scanner()
    )


def test_only_new_and_changed_shards_are_scanned_and_the_order_of_scans_changes_nothing(tmp_path):
    put(tmp_path, "0.tar", tar(samples(2)))
    put(tmp_path, "1.tar", tar(samples(3, "u")))
    scanner = Scanner()
    first, lines = indexed(tmp_path, scanner)
    assert [shard.rows for shard in first.manifest.shards] == [2, 3]
    assert lines[0].startswith("src: 15 of 15 members became 5 samples; ")
    put(tmp_path, "1.tar", tar(samples(4, "v")))
    put(tmp_path, "2.tar", tar(samples(1, "w")))
    again, _ = indexed(tmp_path, scanner)
    assert (again.scanned, scanner.numbers) == (2, [1, 0, 2, 1])
    assert verified(tmp_path) == 7


def test_beyond_the_budget_the_older_manifest_is_deleted(tmp_path):
    put(tmp_path, "0.tar", tar(samples(3)))
    indexed(tmp_path, Scanner())
    put(tmp_path, "0.tar", tar([*samples(3), *sample("bad", caption=b"")]))
    with pytest.raises(DataError, match=r"1 of 4 samples are damaged.* the budget is 5\.00%"):
        indexed(tmp_path, Scanner())
    assert not storage.exists(manifest_file(f"{tmp_path}/manifest"))
    summary, _ = indexed(tmp_path, Scanner(), budget=0.25)
    assert (summary.scanned, summary.bad_rows, summary.bad_share) == (0, 1, 0.25)


def test_other_options_than_those_of_the_index_are_refused(tmp_path):
    put(tmp_path, "0.tar", tar(samples(2)))
    indexed(tmp_path, Scanner())
    with pytest.raises(DataError, match="was indexed with other limits, columns or members"):
        verified(tmp_path, ScanOptions(key="last_dot"))
