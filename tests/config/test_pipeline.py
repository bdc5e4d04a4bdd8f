"""Pipelines: numbering through all stages, overrides for all stages or one, and rejection of incompatible stages."""

import pytest
import yaml

from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.errors import ConfigError
from tests.recipes import recipe, tree


@pytest.fixture
def file(tmp_path):
    """A pipeline file of two stages."""
    stages = {name: tree(run={"name": f"run-{name}"}, stage={"name": name}) for name in ("understand", "generate")}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({"pipeline": {"name": "both", "stages": stages}}, sort_keys=False))
    return path


def test_micro_batches_are_numbered_through():
    sizes = ({"steps": 5, "micro_batches": 2}, {"steps": 3, "micro_batches": 4})
    stages = tuple(recipe(run={"name": f"s{i}"}, optim=optim) for i, optim in enumerate(sizes))
    pipeline = TrainingPipeline(name="p", stages=stages)
    assert pipeline.ends == (10, 22)
    assert [pipeline.start(0), pipeline.start(0, 5), pipeline.start(1), pipeline.start(1, 2)] == [0, 10, 10, 18]


def test_overrides_hold_for_all_stages_or_for_one(file):
    pipeline = load_pipeline(file, ["optim.steps=7", "generate:optim.lr=0.5", "run.storage=s3://bucket/runs"])
    assert [stage.optim.steps for stage in pipeline.stages] == [7, 7]
    assert [stage.optim.lr for stage in pipeline.stages] == [1e-3, 0.5]
    assert {stage.run.storage for stage in pipeline.stages} == {"s3://bucket/runs"}


def test_an_override_of_a_stage_that_is_not_there_is_named(file):
    with pytest.raises(ConfigError, match=r"has no stage 'instruct' \(stages: understand, generate\)"):
        load_pipeline(file, ["instruct:optim.steps=7"])


def test_a_recipe_is_a_pipeline_of_itself(file):
    path = file.parent / "generate.yaml"
    path.write_text(yaml.safe_dump(tree(run={"name": "run-generate"})))
    pipeline = load_pipeline(path, ["optim.steps=7"])
    assert (pipeline.name, len(pipeline.stages), pipeline.stages[0].optim.steps) == ("run-generate", 1, 7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run": {"name": "one"}}, "run.name repeats among its stages: one, one"),
        ({"run": {"name": "two"}, "parallel": {"workers": 2}}, r"differ in parallel.workers \(one: 1, two: 2\)"),
        ({"run": {"name": "two", "storage": "/other"}}, "differ in run.storage"),
    ],
)
def test_stages_that_one_group_of_workers_cannot_train_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        TrainingPipeline(name="p", stages=(recipe(run={"name": "one"}), recipe(**changes)))


def test_two_sets_of_shards_under_one_name_are_refused():
    stages = [
        recipe(run={"name": shards}, data={"sources": [{"name": "photos", "shards": f"{shards}/*.tar"}]})
        for shards in ("old", "new")
    ]
    with pytest.raises(ConfigError, match=r"source 'photos' is old/\*.tar and new/\*.tar, .* give them two names"):
        TrainingPipeline(name="p", stages=tuple(stages))


def test_a_section_that_is_no_pipeline_is_named(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("pipeline: {name: p, stages: []}")
    with pytest.raises(ConfigError, match=r"bad.yaml: 'pipeline.stages' = \[\] is not a mapping of stages: write pipe"):
        load_pipeline(path, [])


@pytest.mark.parametrize("name", ["tiny", "tiny-full"])
def test_the_shipped_pipelines_have_the_five_stages(name):
    pipeline = load_pipeline(name)
    assert [stage.stage.name for stage in pipeline.stages] == [
        "encoder",
        "understand",
        "generate",
        "instruct",
        "decoder",
    ]
    runs = [stage.run.name for stage in pipeline.stages]
    for number, stage in enumerate(pipeline.stages):
        assert set(stage.stage.start_from) <= set(runs[:number]), "a stage starts from earlier ones"
