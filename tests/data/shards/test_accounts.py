"""What is lost of a source is counted by pictures, captions and shards, and refused with a reason that is true."""

import pytest

from blip3o.config.shards import MembersConfig
from blip3o.data.shards.accounts import Account, account, refusal
from blip3o.data.shards.manifest import ShardSummary, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.shards.scan_result import ScanOptions
from tests.data.shard_files import Files, parquet, png, put, rows, sample, samples, tar


@pytest.fixture
def summaries(tmp_path):
    def make(*shards: bytes, options: ScanOptions | None = None) -> list[ShardSummary]:
        made = []
        for number, data in enumerate(shards):
            file = put(tmp_path, f"{number}.tar", data)
            scan = scan_shard(file, source="src", shard=number, options=options)
            made.append(write_shard_index(str(tmp_path), file, scan))
        return made

    return make


def sums(made: list[ShardSummary]) -> Account:
    found = account(made)
    assert found is not None
    assert found.inputs == found.used + found.listed + found.skipped
    return found


def refused(made: list[ShardSummary], budget: float, options: ScanOptions | None = None) -> tuple[str, str]:
    entries = [entry for summary in made for entry in summary.damage]
    return refusal(sums(made), entries, options or ScanOptions(), budget)


def copies(count: int, prefix: str = "c") -> Files:
    """A sample, and pictures with captions that copy its name."""
    files = [(f"{prefix}.png", png()), (f"{prefix}.txt", b"said")]
    return files + [file for n in range(count) for file in ((f"{prefix}.{n}.png", png(n)), (f"{prefix}.{n}.txt", b"."))]


def test_all_of_a_source_in_one_line(summaries):
    found = sums(summaries(tar([*samples(2), ("README", b"?"), (".DS_Store", b"")]), parquet(rows(3)), tar([])))
    assert found.line("L") == (
        "9 of 11 members and rows became 5 samples; 1 are listed in L; 1 system files were skipped"
    )
    assert (len(found.barren), len(found.empty)) == (0, 1)


@pytest.mark.parametrize(
    ("shards", "share"),
    [
        ([samples(4)], 0),
        ([samples(3) + sample("bad", caption=b"")], 1 / 4),
        ([samples(9) + copies(9)], 9 / 19),
        ([samples(9) + copies(9)[2:]], 9 / 18),
        ([samples(6), [("README", b"")]], 1 / 2),
        ([samples(6), []], 0),
        ([samples(5), [], [], sample("bad", caption=b"")], 1 / 2),
        ([[*sample("a"), ("a.de.txt", b"")]], 1 / 2),
        ([[*sample("a"), ("a.npy", b"")]], 0),
    ],
)
def test_the_share_that_is_lost_is_of_pictures_captions_or_shards(summaries, shards, share):
    made = summaries(*map(tar, shards))
    found = sums(made)
    assert found.lost_share == pytest.approx(max(share, found.spare_captions / max(found.captions, 1)))
    assert not found.lost_share or refused(made, found.lost_share - 1e-9)[0]
    assert refused(made, found.lost_share) == ("", "")


def test_a_refusal_names_the_switch_that_reads_what_is_lost(summaries):
    made = summaries(tar(copies(2) + copies(2, "d")))
    lost, fix = refused(made, 0.1)
    assert lost == (
        "0 of 2 samples are damaged, 4 of 6 pictures are further ones of a key, 4 of 6 captions are further ones of a "
        "key, 0 of 1 shards have no good one"
    )
    assert fix == (
        "most often: unused members: key 'c' also has 0.png, 0.txt, 1.png, 1.txt, which no sample uses; a key ends at "
        "the first dot of a name: set key: last_dot to end it at the last, or name the members to take, as members: "
        "{image: jpg, caption: txt}, and the rest is left on purpose"
    )
    last = ScanOptions(key="last_dot")
    assert refused(summaries(tar(copies(2)), options=last), 0.0, last) == ("", "")
    pair = tar([*sample("a"), ("a.jpg", png())])
    assert "key: last_dot" not in refused(summaries(pair, options=last), 0.1, last)[1]
    named = ScanOptions(members=MembersConfig(image="png", caption="txt"))
    assert refused(summaries(tar(copies(40)), options=named), 0.0, named) == ("", "")


def test_a_refusal_says_what_costs_most(summaries):
    made = summaries(tar(samples(2) + sample("a", caption=b"") + sample("b", image=b"x") + sample("c", image=b"y")))
    lost, fix = refused(made, 0.1)
    assert lost == "3 of 5 samples are damaged, 0 of 1 shards have no good one"
    assert fix.startswith("most often: undecodable image: ")
    assert fix.endswith("; repair the shards, or raise the budget")


def test_without_a_good_sample_no_budget_is_enough(summaries):
    assert refused(summaries(tar(sample("a", caption=b""))), 1.0)[0] == (
        "1 of 1 samples are damaged, 1 of 1 shards have no good one"
    )
    assert refused(summaries(b""), 1.0)[0] == "1 of 1 shards have no good one"
    assert refused(summaries(tar([]), tar([])), 1.0)[0] == "none of its 2 shards holds anything"
