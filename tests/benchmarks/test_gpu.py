"""The proof on one GPU, at nano size on the CPU: its verbs run, what must be equal is, and a failure stays alone."""

import json
import subprocess

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as benches
from benchmarks.gpu import parity, predictions, prompts, resume, step
from benchmarks.gpu.bench import Bench, Options
from benchmarks.gpu.models import MAX_TOKENS, MEAN_TOKENS, stage_recipe
from benchmarks.gpu.variants import VARIANTS
from blip3o import device as devices
from tests.test_style import ROOT

CPU = ["--device", "cpu", "--size", "nano"]


@pytest.fixture(autouse=True)
def local_rank(monkeypatch):
    """The engine's process group sets it for good otherwise."""
    monkeypatch.setenv("LOCAL_RANK", "0")


def result(folder, verb, *parts, code=0):
    """Runs parts of a verb; returns its report."""
    only = [word for part in parts for word in ("--only", part)]
    assert gpu.main([verb, *CPU, "--same-process", "--out", str(folder), *only]) == code
    [file] = folder.iterdir()
    return json.loads(file.read_text())


def values(report):
    return {row["what"]: row["value"] for row in report["rows"]}


def test_parity_holds_between_the_cpu_and_itself(tmp_path, capsys):
    report = result(tmp_path, "parity", "noise", "backbone", "dit", "loss", "slots", "sana")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert report["complete"] and not report["errors"]
    judged = [row for row in report["rows"] if "holds" in row]
    assert len(judged) >= 20 and all(row["holds"] for row in judged)
    # The same arithmetic on the same device: exactly equal in fp32, and rounded in bf16.
    found = values(report)
    assert found["DiT, fp32"] == 0 < found["DiT, bf16"]


def test_a_difference_is_found(tmp_path, monkeypatch):
    """Noise that depends on the device, as if it were drawn there."""
    real, calls = parity.flow_draws, []

    def drawn(keys, **options):
        calls.append(keys)
        return real(keys + len(calls), **options)

    monkeypatch.setattr(parity, "flow_draws", drawn)
    report = result(tmp_path, "parity", "noise", code=1)
    assert [row["holds"] for row in report["rows"]][:2] == [False, False]


def test_a_step_reports_its_speed_and_its_kernels(tmp_path):
    report = result(tmp_path, "step", "8b-16", "upstream")
    found = values(report)
    assert found["images/s"] > 0 and found["kernels of a step"] > 0
    assert found["ours over the plain step"] == pytest.approx(found["ours, images/s"] / found["plain, images/s"])
    assert not [row for row in report["rows"] if "predicted" in row]  # those are for released sizes on a GPU


def test_a_resumed_engine_has_the_bits_of_one_that_was_not(tmp_path):
    report = result(tmp_path, "resume", "engine")
    assert {row["holds"] for row in report["rows"] if "holds" in row} == {True}
    losses = report["details"]["engine/default: losses"]
    assert losses["whole"][resume.SAVED :] == losses["resumed"]


def test_sampling_equals_diffusers_loop_and_features_their_stored_form(tmp_path):
    (tmp_path / "draw").mkdir()
    (tmp_path / "encode").mkdir()
    drawn = result(tmp_path / "draw", "draw", "diffusers", "engine")
    assert values(drawn)["step-batched over one at a time"] > 0
    assert {row["holds"] for row in drawn["rows"] if "holds" in row} == {True}
    encoded = values(result(tmp_path / "encode", "encode", "loss", "shards"))
    assert encoded["to the bit (1: equal)"] == 1
    assert encoded["threads: 8"] > 0


def test_a_part_that_fails_is_recorded_and_loses_nothing_of_the_others(tmp_path, monkeypatch):
    def fail(bench):
        bench.row("before", 1.0, "s")
        raise RuntimeError("out of memory")

    monkeypatch.setitem(parity.PARTS, "encoder", fail)
    report = result(tmp_path, "parity", "encoder", "noise", code=1)
    assert "out of memory" in report["errors"]["encoder"]
    assert values(report)["before"] == 1 and values(report)["draws of a loss: noise"] == 1


def test_results_are_kept_after_every_part(tmp_path):
    """A call may be cut off at its limit."""
    bench = Bench(Options(verb="parity", device="cpu", size="nano", out=tmp_path))
    kept = []

    def second(_):
        [file] = tmp_path.iterdir()
        kept.append(json.loads(file.read_text()))

    bench.run({"first": lambda bench: bench.row("speed", 2.0, "x"), "second": second})
    assert (kept[0]["complete"], values(kept[0])) == (False, {"speed": 2.0})


def test_parts_beyond_the_time_are_named(tmp_path):
    bench = Bench(Options(verb="parity", device="cpu", size="nano", out=tmp_path, seconds=0))
    assert bench.run({"noise": parity.noise}) == 0
    assert (bench.skipped, bench.rows) == (["noise"], [])


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["step", *CPU, "--only", "8b-17"])
    assert "step has no part 8b-17: it has 8b-16" in capsys.readouterr().err


def test_goals_and_predictions_belong_to_released_sizes_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "select", lambda kind: torch.device("cpu"))
    bench = Bench(Options(verb="step", device="gpu", size="full", out=tmp_path))
    bench.row("images/s", 90.0, "images/s", predicted=100.0, at_least=95.0)
    bench.row("seconds", 2.0, "s", at_most=3.0)
    assert [(row["met"], row["bound"], row.get("predicted")) for row in bench.rows] == [
        (False, ">= 95", 100.0),
        (True, "<= 3", None),
    ]


@pytest.fixture
def full(tmp_path):
    """Released sizes, of which nothing is built."""
    return Bench(Options(verb="step", device="cpu", size="full", out=tmp_path))


def test_every_case_is_a_recipe(full):
    for name, variant in VARIANTS.items():
        recipe = step.case_recipe(full, variant)
        assert recipe.optim.global_batch_size == 128, name
        assert recipe.optim.micro_batch_size == variant.micro_batch


def test_prompts_have_the_lengths_of_a_pretraining_set(full):
    recipe = stage_recipe(full, "8b", overrides={"optim.micro_batch_size": 64})
    batches = prompts.micro_batches(recipe, 3)
    drawn = [next(batches) for _ in range(prompts.DISTINCT)]
    assert [int(arrays["micro_batch"][0]) for arrays in drawn] == list(range(3, 3 + prompts.DISTINCT))
    tokens = [(arrays["input_ids"] != 0).sum(1) for arrays in drawn]
    for number, counted in enumerate(tokens, 3):
        assert (counted == prompts.lengths(recipe, number)).all()
    every = torch.tensor([n for counted in tokens for n in counted.tolist()], dtype=torch.float64)
    assert every.mean().item() == pytest.approx(MEAN_TOKENS, abs=5)
    assert MAX_TOKENS - 10 <= every.max() <= MAX_TOKENS


def test_predictions_follow_from_the_formulas(full):
    """By hand, of an 8B image at 136 tokens: 1.73 for the prompt, 1.69 for the queries, 0.46 for the DiT."""
    model = stage_recipe(full, "8b").model
    flops = predictions.generate_flops(model, [136] * 4, padded=False) / 4
    assert flops == pytest.approx(3.87e12, rel=0.01)
    assert predictions.generate_flops(model, [100, 200], padded=True) == predictions.generate_flops(
        model, [200, 200], padded=False
    )
    online = predictions.generate_flops(model, [136], padded=False, online=True)
    assert online - flops == pytest.approx(9.39e12, rel=0.01)
    assert predictions.encoding_rate() == pytest.approx(53, abs=1)


def test_what_a_device_is_asked_for_is_nothing_on_a_cpu():
    cpu = torch.device("cpu")
    assert devices.facts(cpu) == {}
    assert devices.release_memory(cpu) == 0
    before = torch.backends.cudnn.allow_tf32
    with devices.exact_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with devices.profiler(cpu) as profiled:
        torch.ones(64, 64) @ torch.ones(64, 64)
    assert "aten::mm" in devices.kernel_seconds(profiled, cpu)


def test_a_value_that_is_no_number_meets_no_bound():
    assert benches._bound(float("nan"), None, 1.0) == ("<= 1", False)


def test_make_runs_every_verb_and_fails_if_one_did(tmp_path):
    """With an interpreter that only writes down what it is asked, and fails at one verb."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n[ "$3" != resume ]\n')
    python.chmod(0o755)
    command = [
        "make",
        "--no-print-directory",
        "-o",
        ".venv/.installed",
        "gpu",
        f"BIN={tmp_path}",
        "GPU_ARGS=--size nano",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"-m benchmarks.gpu {verb} --size nano" for verb in gpu.VERBS]
    assert done.returncode != 0 and "failed: resume" in done.stderr
