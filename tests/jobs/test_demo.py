"""The demo's sizes: each is a shipped pipeline whose data its sets provide."""

import pytest

from blip3o.errors import ConfigError
from jobs.demo import BASE, FULL, QUICK, STAGES, USUAL, Demo, main, run_demo, verdict
from jobs.index import stages_with_new_sources


@pytest.mark.parametrize("scale", [QUICK, USUAL, FULL], ids=["quick", "usual", "full"])
def test_every_size_reads_only_sets_that_it_makes(tmp_path, scale):
    demo = Demo(out=tmp_path, scale=scale, emoji=scale.emoji)
    made = {"scenes", "curated"} | ({"emoji"} if scale.emoji else set())
    stages = demo.pipeline().stages
    assert tuple(stage.stage.name for stage in stages) == STAGES
    # In its store, wherever the shipped recipe has them: every step goes through S3.
    assert {(stage.run.storage, stage.data.root) for stage in stages} == {(f"{BASE}/runs", f"{BASE}/data")}
    for stage in stages:
        sources = [*stage.data.sources, *stage.evaluate.sources]
        assert {source.shards.partition("/")[0] for source in sources} <= made
    indexed = {source.name for recipe in stages_with_new_sources(demo.pipeline()) for source in recipe.data.sources}
    assert indexed == {source.name for stage in stages for source in stage.data.sources}


def names(sources):
    return [source.name for source in sources]


def test_without_emoji_all_other_sources_stay(tmp_path):
    with_emoji, without = (Demo(out=tmp_path, scale=USUAL, emoji=emoji).pipeline().stages for emoji in (True, False))
    for one, other in zip(with_emoji, without, strict=True):
        assert names(other.data.sources) == [name for name in names(one.data.sources) if name != "emoji"]
        assert names(other.evaluate.sources) == ["scenes-heldout"]
    full = {stage.stage.name: stage for stage in Demo(out=tmp_path, scale=FULL, emoji=False).pipeline().stages}
    assert names(full["understand"].data.sources) == ["scenes"]


def test_two_sizes_at_once_are_refused(tmp_path, capsys):
    assert main(["--quick", "--full", "--out", str(tmp_path / "demo")]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_fresh_demo_deletes_no_folder_that_is_not_a_demos(tmp_path, monkeypatch):
    monkeypatch.setattr(Demo, "run", lambda _: pytest.fail("the demo started"))
    (tmp_path / "mine").write_text("of a year")
    with pytest.raises(ConfigError, match="--fresh deletes .*, which holds no demo"):
        run_demo(tmp_path, scale=QUICK, fresh=True)
    assert (tmp_path / "mine").read_text() == "of a year"


CONTROLS = {"shuffled": 0.1, "upper_bound": 0.9}


@pytest.mark.parametrize(
    "scenes", [{"overall": 0.75, "by_parts": {"all_correct": 0.5}, **CONTROLS}, {"all_correct": 0.75, **CONTROLS}]
)
def test_the_verdict_has_the_score_of_scenes_with_the_suite_and_without(scenes):
    summary = {
        "understanding": {"accuracy": 0.9, "chance": 0.2, "before_generate": {"accuracy": 0.9}},
        "generation": {"r5": 0.5, "chance_r5": 0.04, "shuffled_r5": 0.05},
        "scenes": scenes,
    }
    assert "scenes 0.75 (shuffled 0.10, bound 0.90)" in verdict(summary)
