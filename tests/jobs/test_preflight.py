"""Checks before the first step: every shipped recipe passes, and each fault is reported with its fix."""

import os
import re
import time

import pytest

from blip3o.config.cluster import ClusterConfig, parse_cluster
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe_files import shipped
from blip3o.errors import ConfigError
from blip3o.train.preflight.checks import memory_checks, recipe_checks, require, store_checks
from blip3o.train.preflight.memory import GIB, Parameters, count_parameters, estimate_memory
from blip3o.train.preflight.start import start_memory
from blip3o.weights.safetensors_stream import AHEAD, RANGE_BYTES
from jobs import preflight, train
from jobs.training.preflight import dry_run_checks, require_static_checks
from jobs.training.resources import require_validation
from tests import recipes
from tests.jobs import world

CLUSTER = "4x8xH100"


def states(checks):
    return {check.name: check.state for check in checks}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_pipeline_passes_a_dry_run_on_a_pretended_cluster(name, tmp_path, capsys):
    below = ["--set", f"run.storage={tmp_path}/runs", "--set", f"data.root={tmp_path}/data"]
    assert train.main([name, "--dry-run", "--cluster", CLUSTER, *below]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# ")]
    stages = [recipe.run.name for recipe in load_pipeline(name).stages]
    for stage in stages:
        assert any(line.startswith(f"# {stage}: ok        memory: ") for line in said)
    assert sum(": ok        resources: " in line for line in said) == 1
    assert not any(": wrong " in line for line in said)


def test_every_shipped_recipe_is_part_of_a_pipeline_or_passes_by_itself():
    for name in shipped():
        require([check for recipe in load_pipeline(name).stages for check in recipe_checks(recipe)])


def test_the_released_recipes_are_the_papers():
    pretrain, instruct = load_pipeline("blip3o-8b").stages
    assert (pretrain.optim.global_batch_size, instruct.optim.global_batch_size) == (512, 128)
    assert (pretrain.optim.steps, instruct.optim.steps) == (150_000, 10_000)
    assert (pretrain.optim.lr, pretrain.optim.min_lr, instruct.optim.lr, instruct.optim.min_lr) == (1e-4, 1e-5, 1e-4, 0)
    assert pretrain.optim.warmup_steps == 0.003 * pretrain.optim.steps
    assert (pretrain.optim.max_grad_norm, pretrain.parallel.precision) == (1.0, "bf16")
    assert (pretrain.model.sampler.condition_dropout, pretrain.optim.weight_decay) == (0.1, 0.0)
    counted = count_parameters(pretrain)  # 1.37 G of DiT and 64 queries; the encoder's features are stored
    assert counted.trained == pytest.approx(1.37e9, rel=0.01)
    assert counted.frozen == pytest.approx(8.29e9, rel=0.02)


@pytest.mark.parametrize("size", ["4b", "8b"])
def test_one_gpu_trains_the_batches_of_the_released_recipes(size, capsys, tmp_path):
    name, below = f"blip3o-{size}-one-gpu", ["--set", f"run.storage={tmp_path}/runs"]
    assert train.main([name, "--dry-run", "--cluster", "1x1xH200", *below]) == 0
    out = capsys.readouterr().out
    assert f"# {name}: ok        resources: 8 CPUs and 1 GPUs of 12 and 1" in out
    assert "5.1 GiB of it gradients in fp32" in out
    for alone, many in zip(load_pipeline(name).stages, load_pipeline(f"blip3o-{size}").stages, strict=True):
        assert alone.optim.global_batch_size == many.optim.global_batch_size
        same = {"micro_batch_size", "micro_batches"}
        assert alone.optim.model_dump(exclude=same) == many.optim.model_dump(exclude=same)


def validated(**parallel):
    """A run on GPUs with validations, of 8 micro-batches a step."""
    heldout = [{"name": "heldout", "shards": "heldout/*.tar"}]
    evaluate = {"every": 2, "sources": heldout, "autoscaled": parallel.pop("autoscaled", False)}
    optim = {"micro_batches": 8}
    return TrainingPipeline.of(recipes.recipe(optim=optim, evaluate=evaluate, parallel={"device": "gpu", **parallel}))


@pytest.mark.parametrize(
    ("workers", "gpus", "left"),
    [
        (8, 8, 0),
        (8, 9, None),
        ({"min": 2, "max": 8}, 8, 0),
        ({"min": 2, "max": 8}, 5, None),  # of 5 workers 4 divide a step, and the fifth GPU validates
        ({"min": 4, "max": 8}, 4, 0),
        (8, 4, None),  # not even the workers fit: the cluster must grow
    ],
)
def test_a_run_whose_validations_would_never_start_is_refused(workers, gpus, left, monkeypatch):
    """Ray Train would wait for them after the last step, forever."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    pipeline = validated(workers=workers)
    if left is None:
        require_validation(pipeline, 96, gpus)
        return
    with pytest.raises(
        ConfigError, match=rf"workers leave \d+ and {left}: it would never start.*Lower parallel.worker"
    ):
        require_validation(pipeline, 96, gpus)
    require_validation(validated(workers=workers, autoscaled=True), 96, gpus)
    cluster = ClusterConfig(nodes=1, gpus=gpus, gpu="H100", cpus=96, memory_gib=512)
    assert states(check for _, check in dry_run_checks(pipeline, cluster))["validation"] == "wrong"
    monkeypatch.delenv("RAY_ADDRESS")  # a private Ray has the GPUs of this machine and no others
    with pytest.raises(ConfigError, match="it would never start"):
        require_validation(validated(workers=workers, autoscaled=True), 96, gpus)


def test_a_cluster_too_small_is_reported_with_the_numbers(capsys):
    # ZeRO 1 keeps all gradients on each worker, which is too much for this GPU.
    assert train.main(["blip3o-8b", "--dry-run", "--cluster", "1x8xL4", "--set", "parallel.zero_stage=1"]) == 1
    error = capsys.readouterr().err
    assert "resources: 192 CPUs and 32 GPUs of 96 and 8: lower parallel.workers" in error
    assert "GiB a worker (1.3" in error
    assert "of 24.0 GiB" in error


@pytest.mark.parametrize("text", ["4x8xH1000", "no-such-file.yaml", "4x8"])
def test_a_cluster_that_cannot_be_read_is_one_line(text):
    with pytest.raises(ConfigError, match=f"cluster '{text}'"):
        parse_cluster(text)


def test_a_cluster_file_says_what_the_short_form_does(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("{nodes: 4, gpus: 8, gpu: H100, cpus: 96, memory_gib: 1024}")
    assert parse_cluster(str(file)) == parse_cluster("4x8xh100")


def test_guidance_without_dropped_conditions_is_wrong():
    made = recipes.recipe(model={"preset": "nano", "sampler": {"condition_dropout": 0.0, "guidance_scale": 3.0}})
    assert states(recipe_checks(made))["condition dropout"] == "wrong"
    with pytest.raises(ConfigError, match=r"set model.sampler.condition_dropout=0.1"):
        require_static_checks(TrainingPipeline.of(made))
    plain = recipes.recipe(model={"preset": "nano", "sampler": {"condition_dropout": 0.0, "guidance_scale": 1.0}})
    assert states(recipe_checks(plain))["condition dropout"] == "ok"


@pytest.mark.parametrize(
    ("parallel", "optim", "expected"),
    [
        ({"zero_stage": 0}, {}, 10 + 2 + 12),
        ({"zero_stage": 1}, {}, 10 + 2 + 1.5),
        ({"zero_stage": 2}, {}, 10 + 0.25 + 1.5),
        ({"zero_stage": 3}, {}, 1.25 + 0.25 + 1.5),
        ({"zero_stage": 1, "gradient_accumulation_dtype": "fp32"}, {}, 10 + 4 + 1.5),
        ({"zero_stage": 2, "gradient_accumulation_dtype": "fp32"}, {}, 10 + 0.5 + 1.5),
        ({"zero_stage": 1}, {"ema_decay": 0.999}, 10 + 2 + 2),
        ({"zero_stage": 2, "offload": "optimizer"}, {}, 10 + 0.25),
        ({"zero_stage": 3, "offload": "parameters"}, {}, 0.25),
    ],
)
def test_memory_by_zero_stage(parallel, optim, expected):
    made = recipes.recipe(optim={"micro_batches": 8} | optim, parallel={"precision": "bf16"} | parallel)
    assert estimate_memory(made, Parameters(trained=GIB, frozen=4 * GIB), workers=8).device == expected * GIB


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        ({"zero_stage": 0}, 10 + 4 + 12),  # the complete model, fp32 weights to start from, the optimizer
        ({"zero_stage": 2}, 10 + 4 + 1.5),
        ({"zero_stage": 2, "offload": "optimizer"}, 10 + 4),
        ({"zero_stage": 3}, 10 + 4),  # before parameters are partitioned; after it, 1.25 + 4 + 1.5
        ({"zero_stage": 3, "offload": "parameters"}, 10 + 4),
        ({"zero_stage": 2, "precision": "fp32"}, 20 + 1.5),
    ],
)
def test_memory_while_the_engine_is_built(parallel, expected):
    parallel = {"precision": "bf16"} | parallel
    made = recipes.recipe(optim={"micro_batches": 8, "ema_decay": 0.999}, parallel=parallel)
    assert estimate_memory(made, Parameters(trained=GIB, frozen=4 * GIB), workers=8).start == expected * GIB


def test_a_model_that_is_only_small_once_partitioned_is_wrong_at_the_start():
    made = recipes.recipe(
        parallel={"device": "gpu", "precision": "bf16", "zero_stage": 3, "workers": 8}, optim={"micro_batches": 8}
    )
    cluster = ClusterConfig(nodes=1, gpus=8, gpu="L40S", cpus=96, memory_gib=512)
    found = states(memory_checks(made, Parameters(trained=8 * GIB, frozen=0), cluster))
    assert (found["memory"], found["memory at the start"]) == ("ok", "wrong")


@pytest.mark.parametrize(("device", "weights"), [("gpu", 0), ("cpu", 2 * 5 * GIB)])
def test_a_start_needs_host_memory_for_ranges_and_one_drawn_tensor(device, weights):
    made = recipes.recipe(parallel={"device": device, "precision": "bf16"})
    need = start_memory(made, Parameters(trained=GIB, frozen=4 * GIB, largest=GIB // 2))
    assert need.others == weights
    assert need.first == weights + (AHEAD + 1) * RANGE_BYTES + (4 + 2) * GIB // 2
    counted = count_parameters(recipes.recipe())
    assert 0 < counted.largest < counted.trained


def test_memory_and_disk_are_judged_against_the_cluster():
    made = recipes.recipe(parallel={"device": "gpu", "precision": "bf16"})
    parameters = Parameters(trained=4 * GIB, frozen=0)  # 64 GiB on one worker, checkpoints of 56 GiB
    roomy = ClusterConfig(nodes=1, gpus=1, gpu="H200", cpus=8, memory_gib=64, disk_gib=200)
    judged = ("memory", "memory at the start", "disk")
    assert states(memory_checks(made, parameters, roomy)) == dict.fromkeys(judged, "ok") | {"store": "ok"}
    tight = roomy.model_copy(update={"gpu": "L40S", "disk_gib": 100.0})
    assert states(memory_checks(made, parameters, tight)) == dict.fromkeys(judged, "wrong") | {"store": "ok"}
    assert states(memory_checks(made, parameters, None))["memory"] == "not known"


def test_the_store_is_written_and_read_and_unchanged_afterwards(tmp_path):
    assert states(store_checks(str(tmp_path))) == {"storage": "ok", "clock": "ok"}
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_wrong(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert states(store_checks(f"{tmp_path}/file/runs")) == {"storage": "wrong"}


def test_a_clock_that_is_off_is_wrong(tmp_path, monkeypatch):
    true = time.time
    monkeypatch.setattr("blip3o.train.preflight.checks.time.time", lambda: true() + 3600)
    assert states(store_checks(str(tmp_path)))["clock"] == "wrong"
    assert os.listdir(tmp_path) == []


def test_a_run_that_is_ready_passes_every_check_and_its_ranks_agree(base, tmp_path, capsys):
    file = world.write_recipe(tmp_path / "recipe.yaml", base, run={"name": "ready"})
    assert preflight.main([file, "--ranks"]) == 0
    found = re.findall(r"^ready: (ok|wrong|not known) +(.+?): ", capsys.readouterr().out, re.MULTILINE)
    of_the_recipe = ["engine", "clipping", "condition dropout", "micro-batches", "schedule"]
    sizes = ["memory", "memory at the start", "disk", "store"]
    with_storage = ["start", "resources", "storage", "clock", "data", "weights", "ranks", "all-reduce"]
    assert found == [("ok", name) for name in [*of_the_recipe, *sizes, *with_storage]]


def test_a_run_that_is_not_ready_reports_what_is_missing(tmp_path, capsys):
    file = world.write_recipe(tmp_path / "recipe.yaml", str(tmp_path))
    assert preflight.main([file, "--cluster", "1x1xH100"]) == 1
    out = capsys.readouterr()
    assert f"quiet: wrong     data: {tmp_path}/data/manifests/scenes/manifest.parquet does not exist" in out.out
    assert "quiet: wrong     weights: " in out.out
    assert preflight.main([file, "--cluster", "1x1xH100", "--ranks"]) == 1
    assert "--ranks starts workers, and --cluster 1x1xH100 need not exist" in capsys.readouterr().err


def test_the_bandwidth_of_an_all_reduce_is_measured_over_real_workers(ray_cluster, tmp_path, capsys):
    file = world.write_recipe(tmp_path / "recipe.yaml", str(tmp_path))  # which has no data
    assert preflight.main([file, "--all-reduce", "2"]) == 0
    line = capsys.readouterr().out.strip()
    said = (
        r"quiet: ok +all-reduce: 16777216 bytes over 2 workers by gloo in (\S+) ms: (\S+) GB/s, (\S+) GB/s on each link"
    )
    found = re.fullmatch(said, line)
    milliseconds, speed, link = map(float, found.groups())
    assert speed == pytest.approx(16777216 / milliseconds / 1e6, rel=0.01, abs=0.01)
    assert link == speed  # 2 (n - 1) / n of two workers is one
    assert preflight.main([file, "--all-reduce", "2", "--set", "parallel.device=gpu"]) == 1
    assert re.search(r"2 workers need 2 CPUs, Ray has \d and 2 GPUs, Ray has 0: ask for fewer", capsys.readouterr().err)
    assert preflight.main([file, "--all-reduce", "2", "--cluster", "1x1xH100"]) == 1
    assert "--all-reduce starts workers" in capsys.readouterr().err
