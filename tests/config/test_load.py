"""Recipes: they load as written, and an invalid one is reported in one line."""

import pytest
import yaml

from blip3o.config.load import build_recipe, dump, load_recipe
from blip3o.config.objectives import stage_names
from blip3o.config.pipeline import load_pipeline
from blip3o.config.recipe_files import shipped
from blip3o.errors import ConfigError
from tests.model.variants import VARIANTS, variant
from tests.recipes import recipe, tree


def write(tmp_path, values, name="r.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_dumped_recipe_reads_back_equal():
    original = recipe()
    assert build_recipe(yaml.safe_load(dump(original))) == original


def test_how_members_are_named_is_dumped_only_where_it_is_not_the_rule():
    """A run that was there before these keys keeps its identity."""
    plain = {"name": "s", "shards": "s/*.tar"}
    dumped = build_recipe(tree(data={"sources": [plain]})).model_dump(mode="json")["data"]["sources"][0]
    assert set(dumped) == {"name", "shards", "weight", "task", "select", "columns"}
    named = {**plain, "key": "last_dot", "members": {"image": "JPG"}}
    read = build_recipe(yaml.safe_load(dump(build_recipe(tree(data={"sources": [named]}))))).data.sources[0]
    assert (read.key, read.members.image, read.members.caption) == ("last_dot", "jpg", None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"key": "last"}, "key"),
        ({"members": {"image": ".jpg"}}, "members.image"),
        ({"members": {"image": "a/b"}}, "members.image"),
        ({"members": {"image": ""}}, "members.image"),
        ({"members": {"image": "jpg", "caption": "JPG"}}, "name each extension once"),
        ({"members": {"picture": "jpg"}}, "picture"),
        ({"key": "last_dot", "members": {"image": "input.jpg"}}, "with key: last_dot no extension has a dot"),
    ],
)
def test_names_of_members_that_can_be_none_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_recipe(tree(data={"sources": [{"name": "s", "shards": "s/*.tar", **keys}]}))


def test_a_pipeline_where_one_stage_is_wanted_is_refused_by_naming_its_stages():
    with pytest.raises(
        ConfigError, match=r"debug.yaml is a pipeline: name .* \(debug:encoder, debug:understand, debug:g"
    ):
        load_recipe("debug")


def test_a_held_out_source_is_not_called_as_one_that_is_trained_on():
    held = [{"name": "scenes", "shards": "scenes/heldout-*.tar"}]
    with pytest.raises(ConfigError, match="scenes is a name in data.sources and in evaluate.sources"):
        recipe(evaluate={"sources": held})


def test_overrides_win_and_are_typed(tmp_path):
    path = write(tmp_path, tree())
    loaded = load_recipe(
        path, ["optim.steps=9", "model.dit.layers=1", "data.template.system=Hello", "optim.betas=[0.5, 0.6]"]
    )
    assert (loaded.optim.steps, loaded.model.dit.layers, loaded.data.template.system) == (9, 1, "Hello")
    assert loaded.optim.betas == (0.5, 0.6)


def test_extends_merges_below(tmp_path):
    write(tmp_path, tree(), "base.yaml")
    path = write(tmp_path, {"extends": "base.yaml", "optim": {"steps": 7}})
    loaded = load_recipe(path, [])
    assert loaded.optim.steps == 7
    assert loaded.optim.micro_batch_size == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.stepz=3", "unknown key 'optim.stepz': did you mean 'steps'"),
        ("stag.name=generate", "unknown key 'stag': did you mean 'stage'"),
        ("model.dit.layer=2", "unknown key 'model.dit.layer': did you mean 'layers'"),
        ("model.preset=tinny", "model.preset 'tinny' is unknown: did you mean 'tiny'"),
        ("optim.steps=0", "'optim.steps' = 0: input should be greater than 0"),
        ("optim.steps=many", "'optim.steps' = 'many': input should be a valid integer"),
        ("model.dit.heads=3", "dit: dim 32 is not a multiple of 4 x heads 3"),
        ("model.encoder.patch_size=7", "encoder: image_size 32 is not a multiple of patch_size 7"),
        ("parallel.workers=3", "optim.micro_batches 2 is not a multiple of parallel.workers 3"),
        ("optim.warmup_steps=4", "optim.warmup_steps 4 is not below optim.steps 4"),
        ("data.max_length=4", "data.max_length 4 leaves no room next to the 4 image tokens"),
        ("data.template.instruction=draw", "instruction 'draw' has no {caption}"),
        ("run.name=a/b", "'run.name' = 'a/b'"),
        (
            "model.decoder.num_inference_stepz=3",
            "unknown key 'model.decoder.num_inference_stepz': did you mean 'num_inference_steps'",
        ),
        ("model.decoder.kind=sdx", "'model.decoder'"),
        ("model.sampler.guidance=2", "unknown key 'model.sampler.guidance': did you mean 'guidance_scale'"),
        ("model.objective=vae_flow", "objective vae_flow does not go with decoder.kind pixel"),
        ("model.sampler.solver=rk4", "'model.sampler.solver' = 'rk4'"),
        ("data.sources=[{nam: a, shards: b}]", "unknown key 'data.sources[0].nam': did you mean 'name'"),
        (
            "data.sources=[{name: a, shards: b}, {name: c, shards: d, select: {min_sid: 5}}]",
            "unknown key 'data.sources[1].select.min_sid': did you mean 'min_side'",
        ),
        ("optim.groups=[{match: dit.*, lrr: 1}]", "unknown key 'optim.groups[0].lrr': did you mean 'lr'"),
        ("optim.groups=[{match: dit.*, lr: 0}]", "'optim.groups[0].lr' = 0: input should be greater than 0"),
        ("evaluate.sources=[{name: a, shards: b, wieght: 1}]", "'evaluate.sources[0].wieght': did you mean 'weight'?"),
        (
            "data.sources=[{name: a, shards: b, select: {where: {score: {mn: 5}}}}]",
            "unknown key 'data.sources[0].select.where.score.mn': did you mean 'min'?",
        ),
        ("data.sources={name: a, shards: b}", "'data.sources' = {'name': 'a', 'shards': 'b'}: input should be a list"),
        ("optim.groups=[{match: a}, 3]", "recipe: 'optim.groups[1]' = 3: input should be a mapping, {key: value}"),
        ("log.trackers=[ray, tensorbord]", "'log.trackers[1]' = 'tensorbord': input should be 'tensorboard', 'ray'"),
        ("log.trackers=[tensorbord]", ": did you mean 'tensorboard'?"),
        (
            "data.sources[0].weight=2",
            "override 'data.sources[0].weight=2': a list is replaced whole, as 'data.sources=[",
        ),
        ("steps", "override 'steps' is not key=value"),
        ("optim.steps.x=1", "'steps' is a value, not a section"),
    ],
)
def test_a_wrong_override_is_named_with_its_fix(tmp_path, override, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, tree()), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_with_a_wrong_member_is_one_fault(tmp_path):
    """Not also that the list is too short without it."""
    with pytest.raises(ConfigError, match=r"^recipe: 'data.sources\[0\].weight' = 0: input should be greater than 0$"):
        load_recipe(write(tmp_path, tree()), ["data.sources=[{name: a, shards: b, weight: 0}]"])


@pytest.mark.parametrize("overrides", ["optim.steps=3", [3]])
def test_overrides_are_a_list_of_strings(tmp_path, overrides):
    with pytest.raises(ConfigError, match="overrides are .*3.*: give a list of strings"):
        load_recipe(write(tmp_path, tree()), overrides)


def test_another_kind_of_decoder_replaces_the_presets_whole(tmp_path):
    values = tree(model=variant("sana"))
    path = write(tmp_path, values)
    assert load_recipe(path, []).model.decoder.kind == "sana"
    assert load_recipe(path, ["model.decoder.layers=5"]).model.decoder.layers == 5
    with pytest.raises(ConfigError, match="unknown key 'model.decoder.layer': did you mean 'layers'"):
        load_recipe(path, ["model.decoder.layer=5"])
    assert load_recipe(write(tmp_path, tree()), ["model.decoder.num_inference_steps=5"]).model.decoder.channels == (16,)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_model_survives_a_dump(name):
    original = recipe(model=variant(name))
    assert build_recipe(yaml.safe_load(dump(original))) == original


def test_a_missing_section_is_named(tmp_path):
    values = tree()
    del values["optim"]
    with pytest.raises(ConfigError, match="'optim' is missing"):
        load_recipe(write(tmp_path, values), [])


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="r.yaml"):
        load_recipe(path, [])


def test_an_unknown_recipe_lists_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a file nor a shipped recipe \(shipped: .*, tiny, tiny-full\)$"):
        load_recipe("no-such-recipe")
    with pytest.raises(ConfigError, match="did you mean 'tiny-generate'"):
        load_recipe("tiny-generat")
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "missing.yaml", [])


def test_an_elastic_run_does_not_wait_for_nodes_that_ray_train_does_not_count():
    places = {"worker_labels": {"ray-subcluster": "train"}}
    with pytest.raises(ConfigError, match="Ray Train counts none for an elastic run.* the nodes another label"):
        recipe(parallel=places | {"workers": {"min": 1, "max": 2}})
    recipe(parallel=places | {"workers": 2})
    recipe(parallel={"worker_labels": {"worker-group": "elastic"}, "workers": {"min": 1, "max": 2}})


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid(name):
    assert all(recipe.stage.name in stage_names() for recipe in load_pipeline(name).stages)
