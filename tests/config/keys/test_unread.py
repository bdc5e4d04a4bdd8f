"""Keys that a stage does not read are refused where they were written for it, and left out where they were not."""

import ast
from pathlib import Path

import pytest
import torch
import yaml

from blip3o.config.keys.reference import recipe_keys
from blip3o.config.load import build_recipe, load_recipe
from blip3o.config.objectives import OBJECTIVES, PARTIAL, readers
from blip3o.config.pipeline import dump_resolved, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from blip3o.model.unified import initialize
from blip3o.train.objectives import build_stage_module
from tests.config.test_recipe_files import pipeline
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.model.variants import variant
from tests.recipes import tree
from tests.train.test_objectives import batch

_MODELS = {"clip_mse": "clip_mse", "vae_flow": "vae_flow kl", "sdxl": "sdxl", "sana": "sana"}  # by what selects them
ROOT = Path(__file__).parents[3]
# For each key that not every stage reads, a value that is not its default.
OTHER = {
    "data.questions": 2,
    "data.question_weights": {"color": 9.0},
    "data.independent_questions": True,
    "data.form_share": 0.5,
    "data.grey_share": 0.5,
    "data.features": "cache",
    "data.feature_dtype": "bf16",
    "stage.noise_draws": 3,
    "stage.flow": {"density": "logit_normal"},
    "stage.query_questions": ["What?"],
    "stage.feature_noise": 0.5,
    "stage.lora": {"rank": 2},
    "parallel.activation_checkpointing": True,
    "parallel.encoder_batch_size": 8,
    "evaluate.sigma_bins": 4,
    "evaluate.grid_seeds": 5,
    "evaluate.grid_from": ["decoder"],
}


def of(name, **sections):
    """The tree of an objective's stage."""
    spec = OBJECTIVES[name]
    model = variant(_MODELS.get(str(spec.selected_by), "clip_flow"))
    return tree(stage={"name": spec.stages[0]}, model=model, **sections)


def with_key(values, key, value):
    section, field = key.split(".")
    return {**values, section: {**values.get(section, {}), field: value}}


def own(key, value):
    section, field = key.split(".")
    return {section: {field: value}}


def value_of(recipe, key):
    section, field = key.split(".")
    return recipe.model_dump(mode="json")[section][field]


# The keys that every stage reads, or that the workers and actors of all stages share. A new key belongs here, or in the
# table of those that only some objectives read. (All keys of `run`, `optim`, `checkpoint`, `guard` and `log` are for
# every stage, and `model` is the same model in all of them.)
EVERY_STAGE = {
    "data": "root sources tokenizer template max_length chunk window group_by_length max_bad_share limits "
    "reader decode",
    "stage": "name start_from trainable weights",
    "parallel": "workers zero_stage offload overlap_comm reduce_bucket_size gradient_accumulation_dtype "
    "communication_dtype param_persistence_threshold precision device compile deterministic threads peak_tflops "
    "cpus_per_worker data_actors data_threads cpus_per_data_actor data_labels worker_labels encoder_labels "
    "encoder_actors cpus_per_encoder_actor gpus_per_encoder_actor",
    "evaluate": "sources questions images seed every samples grid cpus gpus autoscaled",
}


def test_every_key_is_either_for_every_stage_or_in_the_table_and_is_tried_here():
    fields = {name: it.annotation.model_fields.keys() for name, it in Recipe.model_fields.items()}
    for section, names in EVERY_STAGE.items():
        partial = {key.partition(".")[2] for key in PARTIAL if key.startswith(f"{section}.")}
        assert not partial & set(names.split())
        assert fields[section] == partial | set(names.split())
    assert {key.partition(".")[0] for key in PARTIAL} <= EVERY_STAGE.keys()
    assert PARTIAL.keys() == OTHER.keys()
    assert all(0 < sum(spec.reads(key) for spec in OBJECTIVES.values()) < len(OBJECTIVES) for key in PARTIAL)


def test_no_key_is_read_by_no_code():
    code = [path for folder in ("blip3o", "jobs") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in code for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    keys = [key.plain.split(".") for key in recipe_keys()]
    names = {parts[-1] for parts in keys if parts[0] in Recipe.model_fields}
    assert names - read == {"preset"}  # of which `blip3o.config.load` makes the others


@pytest.mark.parametrize("key", PARTIAL)
def test_a_key_is_for_the_stages_that_read_it_and_no_others(key):
    for name, spec in OBJECTIVES.items():
        plain = of(name, data={"features": "cache"} if key == "data.feature_dtype" and spec.stored_features else {})
        default, values = build_recipe(plain), with_key(plain, key, OTHER[key])
        if spec.reads(key):
            found = value_of(build_recipe(values, own=own(key, OTHER[key])), key)
            assert found == OTHER[key] or found.items() >= OTHER[key].items(), name
            continue
        with pytest.raises(ConfigError) as caught:
            build_recipe(values, own=own(key, OTHER[key]))
        message = str(caught.value)
        assert message.startswith(f"'{key}' = "), name
        assert f"read it, stage '{spec.stages[0]}' does not: leave it out" in message
        assert all(stage in message for stage in readers(key))
        # Inherited, it is for other stages; and at its default it says nothing.
        assert build_recipe(values, own={}) == default
        unchanged = value_of(default, key)
        assert build_recipe(with_key(plain, key, unchanged), own=own(key, unchanged)) == default


# Of each kind of objective, and the keys that its loss can read.
@pytest.mark.parametrize(
    "name", ["contrastive", "text", "clip_flow", "joint_clip_flow", "pixel_decoder", "sdxl_decoder"]
)
def test_a_stage_reads_what_the_table_says_that_it_reads(name):
    def losses(values):
        module = build_stage_module(build_recipe(values), image_token_id=IMAGE_TOKEN, pad_id=PAD)
        initialize(module.model, 0)
        randomise(module)
        with torch.no_grad():
            return module(batch(values["stage"]["name"]))

    plain = losses(of(name))
    for key in ("stage.noise_draws", "stage.flow", "stage.feature_noise"):
        changed = losses(with_key(of(name), key, OTHER[key]))
        same = all(torch.equal(plain[term], changed[term]) for term in plain)
        assert same != OBJECTIVES[name].reads(key), key


@pytest.fixture
def write(tmp_path):
    def write(values, name="r.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


STAGES = {"encoder": {}, "generate": {"stage": {"start_from": ["encoder"]}}}


def two(stages=STAGES, **shared):
    return pipeline(pipeline={"name": "p", "stages": stages}, **shared)


def test_what_stages_share_is_for_those_that_read_it(write):
    encoder, generate = load_pipeline(write(two(stage={"feature_noise": 0.3, "noise_draws": 2}))).stages
    assert (encoder.stage.feature_noise, encoder.stage.noise_draws) == (0.3, 1)
    assert (generate.stage.feature_noise, generate.stage.noise_draws) == (0.0, 2)
    with pytest.raises(ConfigError, match=r"'data.grey_share' = 0.5: only understand and joint read it, none of the"):
        load_pipeline(write(two(data={**two()["data"], "grey_share": 0.5})))


@pytest.mark.parametrize(
    ("reference", "overrides"),
    [
        ("r.yaml", ["generate:stage.feature_noise=0.3"]),
        ("r.yaml:generate", ["stage.feature_noise=0.3"]),
        ("own.yaml", []),
        ("one.yaml", []),
        ("one-more.yaml", ["stage.feature_noise=0.3"]),
    ],
)
def test_what_is_written_for_one_stage_has_to_be_read_there(write, reference, overrides, tmp_path):
    noisy = {"stage": {"feature_noise": 0.3}}
    write(two())
    write(two({"encoder": {}, "generate": noisy}), "own.yaml")
    write({"extends": "r.yaml:generate", **noisy}, "one.yaml")
    write({"extends": "r.yaml:generate"}, "one-more.yaml")
    with pytest.raises(ConfigError, match=r"'stage.feature_noise' = 0.3: only encoder and decoder \(pixel\) read it"):
        load_pipeline(str(tmp_path / reference), overrides)


def test_an_override_of_all_stages_is_for_those_that_read_it(write):
    encoder, generate = load_pipeline(write(two()), ["stage.feature_noise=0.3"]).stages
    assert (encoder.stage.feature_noise, generate.stage.feature_noise) == (0.3, 0.0)
    with pytest.raises(
        ConfigError, match="'data.questions' = 9: only understand and joint read it, none of the stages"
    ):
        load_pipeline(write(two()), ["data.questions=9"])


def test_a_stage_is_shown_with_what_it_reads_and_loads_again(write):
    path = write(two(stage={"feature_noise": 0.3, "noise_draws": 2}))
    for stage in ("encoder", "generate"):
        shown = write(yaml.safe_load(dump_resolved(f"{path}:{stage}")), "shown.yaml")
        assert load_recipe(shown) == load_recipe(f"{path}:{stage}")
