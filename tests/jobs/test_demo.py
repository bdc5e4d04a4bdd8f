"""The demo's sizes: each is a shipped pipeline whose data its sets provide."""

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.demo import FULL, QUICK, STAGES, USUAL, Demo


@pytest.mark.parametrize("scale", [QUICK, USUAL, FULL], ids=["quick", "usual", "full"])
def test_every_size_reads_only_sets_that_it_makes(tmp_path, scale):
    demo = Demo(out=tmp_path, scale=scale, emoji=scale.emoji)
    made = {"scenes", "curated"} | ({"emoji"} if scale.emoji else set())
    stages = demo.pipeline().stages
    assert tuple(stage.stage.name for stage in stages) == STAGES
    for stage in stages:
        sources = [*stage.data.sources, *stage.evaluate.sources]
        assert {source.shards.partition("/")[0] for source in sources} <= made
    indexed = {source.name for recipe in demo.first_of_each_source() for source in recipe.data.sources}
    assert indexed == {source.name for stage in stages for source in stage.data.sources}


def names(sources):
    return [source.name for source in sources]


def test_without_emoji_every_other_source_stays(tmp_path):
    with_emoji, without = (Demo(out=tmp_path, scale=USUAL, emoji=emoji).pipeline().stages for emoji in (True, False))
    for one, other in zip(with_emoji, without, strict=True):
        assert names(other.data.sources) == [name for name in names(one.data.sources) if name != "emoji"]
        assert names(other.evaluate.sources) == ["scenes-heldout"]
    full = {stage.stage.name: stage for stage in Demo(out=tmp_path, scale=FULL, emoji=False).pipeline().stages}
    assert names(full["understand"].data.sources) == ["scenes", "singles"]


def test_two_sizes_at_once_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--quick", "--full", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 2 and "give one of them" in result.output
    assert not (tmp_path / "demo").exists()
