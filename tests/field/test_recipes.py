"""Recipes as people write them, given to `jobs.train --dry-run`: read as YAML 1.2, or refused by key and place."""

import copy
import random

import pytest

import cluster.validate
import jobs.train
from blip3o.config.cluster import parse_cluster
from blip3o.config.load import build_recipe, load_recipe
from blip3o.config.pipeline import load_pipeline
from blip3o.errors import ConfigError
from jobs import serve
from tests.model.variants import VARIANTS, variant
from tests.recipes import tree

RECIPE = """\
run: {name: field, storage: runs}
data:
  root: data
  tokenizer: tokenizer.json
  sources: [{name: src, shards: "shards/*.tar"}]
  template: {system: "", instruction: "The image shows {caption}."}
  max_length: 96
model: {preset: nano}
stage: {name: encoder}
optim: {steps: 200, lr: 1.0e-3, micro_batch_size: 4, micro_batches: 1}
parallel: {workers: 1, device: cpu, precision: fp32, cpus_per_worker: 1, data_actors: 1, cpus_per_data_actor: 0.5}
checkpoint: {every: 2}
"""


@pytest.fixture
def dry_run(tmp_path, capsys):
    """What the dry run of a recipe prints (`out`), and the one line that refuses it (`err`), if it does."""

    def run(text, *options):
        path = tmp_path / "field.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = jobs.train.main([str(path), "--dry-run", *options])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == len(errors)
        assert "Traceback" not in err
        return out, "".join(errors)

    return run


def changed(old, new):
    assert old in RECIPE
    return RECIPE.replace(old, new)


LEFT_OVER = "# left over from a merge\noptim: {steps: 20, lr: 1.0e-4, micro_batch_size: 4, micro_batches: 1}\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (RECIPE + LEFT_OVER, "field.yaml, line 14, column 1: 'optim' is given twice, first in line 10, column 1"),
        (changed("steps: 200,", "steps: 200, lr: 1,"), "line 10, column 28: 'lr' is given twice, first in line 10"),
        (changed("{name: src,", "{name: src, name: dup,"), "line 5, column 25: 'name' is given twice"),
        (
            changed("  max_length: 96", "  max_length: 96\n  'max_length': 64"),
            "line 8, column 3: 'max_length' is given",
        ),
        (changed("lr: 1.0e-3", "lr: .inf"), "'optim.lr' = inf: input should be a finite number"),
        (changed("lr: 1.0e-3", "lr: 1e400"), "'optim.lr' = inf: input should be a finite number"),
        (changed("lr: 1.0e-3", "lr: .nan"), "'optim.lr' = nan"),
        (
            changed("lr: 1.0e-3", "lr: 1.0e-3, max_grad_norm: .inf"),
            "'optim.max_grad_norm' = inf: input should be a finite number",
        ),
        (changed("lr: 1.0e-3", "lr: yes"), "'optim.lr' = 'yes': input should be a valid number"),
        (changed("steps: 200", "steps: 1:30"), "'optim.steps' = '1:30': input should be a valid integer"),
        (changed("steps: 200", "steps: 1_000"), "'optim.steps' = '1_000': input should be a valid integer"),
        (
            changed("steps: 200", 'steps: "200"'),
            "'optim.steps' = '200': input should be a valid integer: write a whole number without quotes, e.g. 200",
        ),
        (changed("steps: 200", "steps: true"), "'optim.steps' = True: input should be a valid integer"),
        (changed("steps: 200", "steps: 1.5"), "'optim.steps' = 1.5: input should be a valid integer"),
        (
            changed("precision: fp32", "deterministic: yes"),
            "'parallel.deterministic' = 'yes': input should be a valid boolean: write true or false",
        ),
        (changed("name: field", "name: 2024"), "'run.name' = 2024: input should be a valid string: put it in quotes"),
        (changed("steps: 200", "steps: !!python/name:os.system x"), "line 10, column 16: the tag !!python/name:os"),
        (changed("  root: data", "\troot: data"), "that cannot start any token (write spaces, not tabs)"),
        (RECIPE + "---\n" + RECIPE, "line 13, column 1: a second document begins"),
        (RECIPE.encode().replace(b"field", b"\xff"), "line 1 holds bytes that are not UTF-8"),
        ("", "is empty"),
        ("- a\n- b", "holds list, not a mapping"),
        ("extends: [a.yaml]", "extends = ['a.yaml'] is not the name of a file"),
        ("extends: field.yaml", "extends it in turn: break the cycle"),
        ("extends: .", "cannot be read"),
        (
            "pipeline: {name: p, stages: [a.yaml]}",
            "'pipeline.stages' = ['a.yaml'] is not a mapping of stages: write pipeline: {name: NAME, stages: {KEY: {",
        ),
        ("pipeline: {name: p, stages: {}}", "'pipeline.stages' = {} is not a mapping of stages"),
        ("pipeline: {name: p, stages: {encoder: }}", "'pipeline.stages.encoder' = None: give the stage's sections, or"),
        ("pipeline: {name: p, stages: {a.b: {}}}", "'pipeline.stages' has the key 'a.b': use letters, digits"),
        ("pipeline: {name: a/b, stages: {encoder: {}}}", "'pipeline.name' = 'a/b': give a name of letters"),
        ("pipeline: {nam: p, stages: {encoder: {}}}", "unknown key 'pipeline.nam': did you mean 'name'"),
        ("optm: {}\npipeline: {name: p, stages: {encoder: {}}}", "unknown key 'optm': did you mean 'optim'"),
        (
            "pipeline: {name: p, stages: {encoder: {optm: {}}}}",
            "unknown key 'pipeline.stages.encoder.optm': did you mean 'optim'",
        ),
        ("extends: tinny", "field.yaml extends tinny: recipe 'tinny' is neither a file nor a shipped recipe"),
        ("extends: tiny:generat", "tiny.yaml has no stage 'generat': did you mean 'generate'"),
        ("extends: qwen3-siglip2-joint:a", "qwen3-siglip2-joint.yaml is not a pipeline and has no stages: leave out"),
        ("model: {preset: [a]}", "model.preset '['a']' is unknown"),
    ],
)
def test_a_recipe_that_is_not_read_as_written_is_refused_by_key_and_place(dry_run, text, fault):
    out, error = dry_run(text)
    assert not out
    assert fault in error


@pytest.mark.parametrize(
    ("old", "new", "printed"),
    [
        ("steps: 200", "steps: 0200", "steps: 200\n"),
        ("steps: 200", "steps: +200", "steps: 200\n"),
        ("steps: 200", "steps: 0o310", "steps: 200\n"),
        ("steps: 200", "steps: 2e2", "steps: 200\n"),
        ("lr: 1.0e-3", "lr: 1e-3", "lr: 0.001\n"),
        ("lr: 1.0e-3", "lr: 1E-5", "lr: 1.0e-05\n"),
        ("name: field", "name: 2024-01-01", "name: '2024-01-01'\n"),
        ("name: field", "name: no", "name: 'no'\n"),
    ],
)
def test_a_number_is_read_as_a_number_and_a_text_as_a_text(dry_run, old, new, printed):
    out, error = dry_run(changed(old, new))
    assert not error
    assert printed in out


def test_overrides_are_read_by_the_same_rules_and_the_last_one_wins(dry_run):
    out, error = dry_run(RECIPE, "--set", "optim.steps=5", "--set", "optim.steps=0300")
    assert not error
    assert "steps: 300\n" in out
    for item, fault in [
        ("optim.lr=.inf", "'optim.lr' = inf"),
        ("parallel.compile=on", "'parallel.compile' = 'on'"),
        ("optim={steps: 1, steps: 2}", "override 'optim={steps: 1, steps: 2}', line 1, column 12: 'steps' is given tw"),
        ("optim.betas=[0.9", "override 'optim.betas=[0.9' is not YAML: line 1, column 5: "),
    ]:
        assert fault in dry_run(RECIPE, "--set", item)[1]


def test_a_file_that_extends_another_may_give_its_keys_again(tmp_path):
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "top.yaml").write_text("extends: base.yaml\noptim: {steps: 0300}\n")
    assert load_recipe(tmp_path / "top.yaml", []).optim.steps == 300


def test_every_other_yaml_is_read_by_the_same_rules(tmp_path, capsys):
    twice = tmp_path / "twice.yaml"
    twice.write_text("{nodes: 1, gpus: 1, cpus: 8, memory_gib: 64,\n nodes: 2}")
    with pytest.raises(ConfigError, match="line 2, column 2: 'nodes' is given twice"):
        parse_cluster(str(twice))
    twice.write_text("{nodes: 1, cpus: 010, memory_gib: 64}")
    assert parse_cluster(str(twice)).cpus == 10
    twice.write_text("cluster_name: a\ncluster_name: b\n")
    with pytest.raises(ConfigError, match=r"twice.yaml, line 2, column 1: 'cluster_name' is given twice"):
        cluster.validate.validate_file(twice)
    with pytest.raises(ConfigError, match="option batch_size: 'batch_size' = 'yes'"):
        serve.start(str(tmp_path), options={"batch_size": "yes"})


ODD = [None, True, 0, -1, 1.5, float("inf"), float("nan"), 10**400, "", "x", "200", [], [[]], {}, {"kind": []}, {1: 2}]


def _places(node):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def test_a_recipe_with_any_value_anywhere_is_read_or_refused_in_one_line():
    draw = random.Random(14)
    models = [{"preset": "nano"}, *[variant(name) for name in VARIANTS]]
    for _ in range(1500):
        values = copy.deepcopy(tree(model=draw.choice(models)))
        for _ in range(draw.randint(1, 2)):
            node, key = draw.choice(list(_places(values)))
            node[key] = copy.deepcopy(draw.choice(ODD))
        try:
            build_recipe(values)
        except ConfigError as error:
            assert "\n" not in str(error)


def test_a_pipeline_with_any_section_is_refused_in_one_line(tmp_path):
    path = tmp_path / "p.yaml"
    for section in (
        "5",
        "[a]",
        "{name: 5, stages: [a]}",
        "{stages: {a: b}}",
        "{name: p, stages: [5]}",
        "~",
        "{name: p, stages: {1: {}}}",
    ):
        path.write_text(f"pipeline: {section}")
        with pytest.raises(ConfigError, match=r"p\.yaml"):
            load_pipeline(path, [])
