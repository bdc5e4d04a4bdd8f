"""Recipe files: which file a name selects, the order of merging, and overrides equal to edits of the file."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from blip3o.config.load import load_recipe
from blip3o.config.pipeline import dump_resolved, load_pipeline
from blip3o.config.recipe_files import SHIPPED, Place, find, merge, read_stages, shipped
from blip3o.errors import ConfigError
from jobs.commands.recipes import summary
from tests.data.shard_files import UNHURRIED
from tests.recipes import tree

SHARED = {section: fields for section, fields in tree().items() if section not in ("run", "stage")}
STAGES = {"understand": {}, "generate": {"stage": {"start_from": ["understand", "published"]}, "optim": {"lr": 0.5}}}


def pipeline(**changes):
    """A pipeline's file of two stages, as nested values."""
    return {"run": {"storage": "/runs"}, **SHARED, "pipeline": {"name": "two", "stages": STAGES}, **changes}


@pytest.fixture
def write(tmp_path):
    def write(values, name="two.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


def by_key(reference, overrides=()):
    stages = read_stages(reference, overrides).trees
    return dict(zip(stages, load_pipeline(reference, overrides).stages, strict=True))


def test_names_that_are_left_out_come_from_the_pipeline_and_the_keys(write):
    understand, generate = load_pipeline(write(pipeline())).stages
    assert (understand.run.name, generate.run.name) == ("two-understand", "two-generate")
    assert (understand.stage.name, generate.stage.name) == ("understand", "generate")
    assert understand.stage.start_from == ()
    assert generate.stage.start_from == ("two-understand", "published")
    assert (understand.optim.lr, generate.optim.lr) == (1e-3, 0.5)


def test_names_that_are_given_stay(write):
    stages = {"a": {"stage": {"name": "understand"}, "run": {"name": "mine"}}, "b": {"stage": {"name": "generate"}}}
    stages["b"]["stage"]["start_from"] = ["a"]
    first, last = load_pipeline(write(pipeline(pipeline={"name": "two", "stages": stages}))).stages
    assert (first.run.name, first.stage.name, last.run.name) == ("mine", "understand", "two-b")
    assert last.stage.start_from == ("mine",)


def test_a_grid_may_use_the_decoder_of_the_pipeline(write):
    stages = {"decoder": {}, "generate": {"evaluate": {"grid_from": ["decoder", "other"]}}}
    generate = load_pipeline(write(pipeline(pipeline={"name": "p", "stages": stages}))).stages[1]
    assert generate.evaluate.grid_from == ("p-decoder", "other")


@pytest.mark.parametrize("start", [["generate"], ["decoder"]], ids=["itself", "later"])
def test_a_stage_that_starts_from_one_that_is_not_trained_before_it_is_refused(write, start):
    stages = {"generate": {"stage": {"start_from": start}}, "decoder": {}}
    with pytest.raises(ConfigError, match=f"stage 'generate' starts from '{start[0]}', which is not trained before"):
        load_pipeline(write(pipeline(pipeline={"name": "p", "stages": stages})))


def test_a_key_that_is_no_stage_has_to_name_one(write):
    path = write(pipeline(pipeline={"name": "p", "stages": {"first": {}, "generate": {}}}))
    with pytest.raises(ConfigError, match=r"stage 'first': recipe: 'stage.name' = 'first': known are encoder"):
        load_pipeline(path)


def test_a_fault_of_one_stage_names_it_and_one_of_all_does_not(write):
    path = write(pipeline())
    with pytest.raises(ConfigError, match=r"^stage 'generate': unknown key 'optim.stepz': did you mean 'steps'"):
        load_pipeline(path, ["generate:optim.stepz=3"])
    with pytest.raises(ConfigError, match=r"^unknown key 'optim.stepz': did you mean 'steps'"):
        load_pipeline(path, ["optim.stepz=3"])
    with pytest.raises(ConfigError, match=r"has no stage 'generat' .*: did you mean 'generate'\?$"):
        load_pipeline(path, ["generat:optim.steps=3"])


def test_one_stage_is_named_by_its_key(write):
    path = write(pipeline())
    found = load_pipeline(f"{path}:generate", ["optim.steps=9", "generate:log.every=3"])
    assert (found.name, [stage.run.name for stage in found.stages]) == ("two-generate", ["two-generate"])
    assert (found.stages[0].optim.steps, found.stages[0].log.every) == (9, 3)
    assert load_recipe(f"{path}:generate") == load_pipeline(path).stages[1]
    with pytest.raises(ConfigError, match="has no stage 'understand' .stages: generate"):
        load_recipe(f"{path}:generate", ["understand:optim.steps=9"])
    with pytest.raises(ConfigError, match="has no stage 'generat': did you mean 'generate'"):
        load_recipe(f"{path}:generat")


def test_an_override_of_one_stage_leaves_the_runs_that_it_starts_from(write):
    found = load_recipe(f"{write(pipeline())}:generate", ["run.name=longer"])
    assert (found.run.name, found.stage.start_from) == ("longer", ("two-understand", "published"))


def test_a_pipeline_under_another_name_has_other_runs(write):
    first, last = load_pipeline(write(pipeline()), ["pipeline.name=mine"]).stages
    assert (first.run.name, last.run.name) == ("mine-understand", "mine-generate")
    assert last.stage.start_from == ("mine-understand", "published")


def test_the_names_of_shipped_runs_are_names_of_recipes():
    for name in shipped():
        for key, recipe in by_key(name).items():
            reference = recipe.run.name
            assert load_recipe(reference) == recipe
            if key:
                assert find(reference) == find(f"{name}:{key}") == Place(SHIPPED / f"{name}.yaml", key)
                assert load_recipe(f"{name}:{key}") == recipe


def test_a_file_wins_over_a_shipped_recipe(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug").mkdir()  # which is no file
    write(pipeline(), "tiny.yaml")
    assert load_pipeline("tiny.yaml").name == "two"
    assert load_pipeline("tiny").name == "tiny"
    assert load_pipeline("debug.yaml").name == load_pipeline("debug").name == "debug"


@pytest.mark.parametrize("reference", ["a/b.yaml", "no/such:stage", "x" * 5000, "x\0y"], ids=len)
def test_a_name_that_is_no_recipe_is_refused_in_one_line(reference):
    with pytest.raises(ConfigError, match="does not exist|neither a file nor a shipped recipe"):
        load_recipe(reference)


def test_a_pipeline_over_another_merges_shared_sections_and_stages_by_key(write):
    """Shared below shared, and the stages of both over that: a stage keeps what it says, whoever says it."""
    write(pipeline(optim={**SHARED["optim"], "betas": [0.1, 0.2]}), "base.yaml")
    top = {
        "extends": "base.yaml",
        "optim": {"lr": 0.25, "warmup_steps": 1},
        "pipeline": {"name": "top", "stages": {"generate": {"optim": {"steps": 9}}, "decoder": {}}},
    }
    found = by_key(write(top, "top.yaml"))
    assert list(found) == ["understand", "generate", "decoder"]
    assert {recipe.optim.betas for recipe in found.values()} == {(0.1, 0.2)}  # shared, of the base
    assert {recipe.optim.warmup_steps for recipe in found.values()} == {1}  # shared, of the top
    assert [recipe.optim.lr for recipe in found.values()] == [0.25, 0.5, 0.25]  # a stage of the base over the top
    assert [recipe.optim.steps for recipe in found.values()] == [4, 9, 4]  # a stage of the top
    assert [recipe.run.name for recipe in found.values()] == ["top-understand", "top-generate", "top-decoder"]


def test_one_stage_can_be_extended(write):
    write(pipeline())
    made = load_recipe(write({"extends": "two.yaml:generate", "optim": {"steps": 9}, "run": {"name": "on"}}, "on.yaml"))
    original = load_pipeline(write(pipeline())).stages[1]
    assert (made.run.name, made.optim.steps, made.stage) == ("on", 9, original.stage)


@pytest.mark.parametrize("base", ["tiny:generate", "tiny-generate", "tiny.yaml:generate"])
def test_a_shipped_stage_is_extended_by_name(write, base):
    made = load_recipe(write({"extends": base, "optim": {"steps": 21}}))
    assert made == load_recipe("tiny:generate", ["optim.steps=21"])


TWELVE_LINES = """\
extends: tiny-generate
run: {name: pets, storage: /runs}
data:
  root: /pets
  sources:
    - {name: pets, shards: "train-*.tar"}
stage: {start_from: [tiny-encoder, tiny-understand, tiny-generate]}
optim: {steps: 200, lr: 1.0e-3}
evaluate:
  every: 100
  sources:
    - {name: pets-heldout, shards: "heldout-*.tar"}
"""


def test_twelve_lines_over_a_shipped_stage_are_a_recipe_of_ones_own(tmp_path):
    (tmp_path / "pets.yaml").write_text(TWELVE_LINES)
    assert TWELVE_LINES.count("\n") == 12
    [made], base = load_pipeline(tmp_path / "pets.yaml").stages, load_recipe("tiny-generate")
    assert (made.run.name, made.stage.name, made.data.root) == ("pets", "generate", "/pets")
    assert [source.name for source in (*made.data.sources, *made.evaluate.sources)] == ["pets", "pets-heldout"]
    assert made.stage.start_from == ("tiny-encoder", "tiny-understand", "tiny-generate")
    assert (made.optim.steps, made.optim.warmup_steps) == (200, base.optim.warmup_steps)
    assert (made.model, made.stage.flow, made.data.template) == (base.model, base.stage.flow, base.data.template)


@pytest.mark.parametrize("base", ["two", "two.yaml", "two:generate", "tiny-generate.yaml"])
def test_names_need_no_ending(write, base, monkeypatch, tmp_path):
    """In `extends`, next to the file; on the command line, in the current folder."""
    write(pipeline())
    monkeypatch.chdir(tmp_path)
    path = write({"extends": base}, "on.yaml")
    assert load_pipeline(path) == load_pipeline(base) == load_pipeline("on") == load_pipeline(tmp_path / "on")


def test_a_file_of_ones_own_may_have_the_name_of_the_shipped_recipe_that_it_extends(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = load_recipe(write({"extends": "tiny-generate", "optim": {"steps": 21}}, "tiny-generate.yaml"))
    assert made.optim.steps == 21
    assert load_recipe("tiny-generate").optim.steps != 21  # without its ending, the shipped one


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("jobs/recipes/tiny.yaml", "does not exist: .* the shipped recipe is named 'tiny'$"),
        ("elsewhere/tiny-generate", "does not exist: .* the shipped recipe is named 'tiny-generate'$"),
        ("tow.yaml", "did you mean 'two.yaml'"),
        ("two:generat", "has no stage 'generat': did you mean 'generate'"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_the_right_one(write, base, said):
    write(pipeline())
    with pytest.raises(ConfigError, match=said):
        load_recipe(write({"extends": base}, "on.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_extended_by_name(write, name):
    assert load_pipeline(write({"extends": name})) == load_pipeline(name)
    assert load_pipeline(write({"extends": f"{name}.yaml"}, "other.yaml")) == load_pipeline(name)


def test_another_kind_replaces_the_section_below_it(write):
    shared = {**SHARED["model"], "decoder": {"kind": "pixel", "steps": 7}}
    own = {"model": {"objective": "vae_flow", "decoder": {"kind": "autoencoder", "autoencoder": {"kind": "kl"}}}}
    path = write(pipeline(model=shared, pipeline={"name": "p", "stages": {"encoder": {}, "generate": own}}))
    trees = read_stages(path).trees
    assert trees["encoder"]["model"]["decoder"] == shared["decoder"]
    assert trees["generate"]["model"]["decoder"] == own["model"]["decoder"]


@pytest.mark.parametrize("name", shipped())
def test_a_dumped_recipe_loads_to_an_equal_one(write, name, tmp_path):
    path = tmp_path / "shown.yaml"
    path.write_text(dump_resolved(name, ["log.every=3"]))
    assert load_pipeline(path) == load_pipeline(name, ["log.every=3"])
    assert list(read_stages(path).trees) == list(read_stages(name).trees)
    assert "extends" not in path.read_text()
    assert dump_resolved(path) == path.read_text()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_starts_with_a_description(name):
    assert SHIPPED.joinpath(f"{name}.yaml").read_text().startswith("# ")
    assert 20 < len(summary(shipped()[name])) < 140


LEAVES = {
    "optim.lr": st.floats(1e-6, 1, allow_nan=False),
    "optim.steps": st.integers(10, 10_000),
    "data.chunk": st.integers(1, 99),
    "model.num_queries": st.integers(1, 99),
    "data.template.system": st.text("ab :=,{}#'\"", max_size=8),
    "data.group_by_length": st.booleans(),
    "stage.trainable": st.lists(st.sampled_from(["queries", "dit.*"]), max_size=2),
}
edits = st.sampled_from(sorted(LEAVES)).flatmap(lambda key: st.tuples(st.just(key), LEAVES[key]))


def nested(dotted, value):
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


@UNHURRIED
@given(st.lists(st.tuples(st.sampled_from([None, "understand", "generate"]), edits), max_size=4))
def test_overrides_are_edits_of_the_stages_in_the_file(tmp_path_factory, changes):
    """In their order, each in the one stage that it names, or in all."""
    values = pipeline()
    stages = dict(STAGES)
    overrides = []
    for stage, (key, value) in changes:
        overrides.append(f"{stage}:" * (stage is not None) + f"{key}={yaml.safe_dump(value, default_flow_style=True)}")
        for name in stages if stage is None else [stage]:
            stages[name] = merge(stages[name], nested(key, value))
    folder = tmp_path_factory.mktemp("edits")
    for name, content in (("before", values), ("after", pipeline(pipeline={"name": "two", "stages": stages}))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert load_pipeline(folder / "before.yaml", overrides) == load_pipeline(folder / "after.yaml")


def test_aliases_of_one_mapping_are_overridden_apart(tmp_path):
    path = tmp_path / "p.yaml"
    values = pipeline(pipeline={"name": "p", "stages": {"understand": {"log": {"every": 5}}, "generate": {}}})
    values["pipeline"]["stages"]["generate"]["log"] = values["pipeline"]["stages"]["understand"]["log"]
    path.write_text(yaml.dump(values, sort_keys=False))
    assert "*id" in path.read_text()
    assert [stage.log.every for stage in load_pipeline(path, ["generate:log.every=7"]).stages] == [5, 7]
