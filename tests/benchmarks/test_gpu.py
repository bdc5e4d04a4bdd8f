"""The proof on one GPU, at nano size on the CPU: its verbs run, what must be equal is, and a failure stays alone."""

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from benchmarks import _measure
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bench as benches
from benchmarks.gpu import parity, predictions, prompts, resume, serving, step
from benchmarks.gpu.bench import Bench, Options
from benchmarks.gpu.models import MAX_TOKENS, MEAN_TOKENS, stage_recipe
from benchmarks.gpu.variants import VARIANTS
from blip3o import device as devices
from blip3o import settings
from blip3o.model.describe import META
from blip3o.train.objectives import build_stage_module
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
    assert found["images/s"] > 0 and found["kernels of a micro-batch and its step"] > 0
    assert found["ours over the plain step"] == pytest.approx(found["ours, images/s"] / found["plain, images/s"])
    assert not [row for row in report["rows"] if "predicted" in row]  # those are for released sizes on a GPU


def test_the_plain_step_is_ours_in_bf16(tmp_path):
    """On the module's device, in its dtype, over as many queries: to the rounding of bf16, the loss is ours."""
    bench = Bench(Options(verb="step", device="cpu", size="nano", out=tmp_path))
    recipe = stage_recipe(bench, "8b", overrides={"optim.micro_batch_size": 2, "data.features": "online"})
    module = step.stage_module(bench, recipe)
    plain = step.UpstreamStep(module, recipe)
    assert {parameter.dtype for parameter in [*plain.text.parameters(), *plain.head.parameters()]} == {torch.bfloat16}
    batch = step._batch(bench, recipe, 17)
    with torch.no_grad():
        ours = module(batch)["flow"] / module.counts(batch)["flow"]
        loss, states, _ = plain.loss(batch, step.Clock())
    assert states.shape[1] == recipe.model.num_queries
    assert loss.item() == pytest.approx(ours.item(), rel=1e-2)


def test_the_plain_step_is_built_where_the_module_is(tmp_path):
    bench = Bench(Options(verb="step", device="cpu", size="nano", out=tmp_path))
    recipe = stage_recipe(bench, "8b", overrides={"data.features": "online"})
    with META:
        module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    plain = step.UpstreamStep(module, recipe)
    assert {parameter.device for parameter in [*plain.text.parameters(), *plain.head.parameters()]} == {META}


WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()", resume.WORKER]


@pytest.mark.parametrize("saved", [True, False])
def test_a_worker_is_killed_only_after_a_checkpoint(tmp_path, monkeypatch, saved):
    """Killed before one, the run would begin at step 0, and prove nothing."""
    monkeypatch.setattr(resume, "PATIENCE_S", 0)
    bench = Bench(Options(verb="resume", device="cpu", size="nano", out=tmp_path))
    recipe = resume._recipe(bench, str(tmp_path), "killed")
    if saved:
        monkeypatch.setattr(resume, "committed_steps", lambda _: [3])
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE) as worker:
        killer = resume.Killer(recipe)
        killer.run()
        worker.communicate()
    assert (killer.time > 0) is saved
    assert (worker.returncode == -signal.SIGKILL) is saved


def test_a_child_is_ended_when_the_time_is_up(tmp_path):
    bench = Bench(Options(verb="resume", device="cpu", size="nano", out=tmp_path, seconds=0))
    with pytest.raises(subprocess.TimeoutExpired):  # one second at least, less than its imports take
        resume._train(bench, str(tmp_path), 0, resume.STEPS, {})


class Failing(BaseHTTPRequestHandler):
    """Answers 500, or nothing: it closes the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.answers:
            self.send_error(500)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("answers", "status"), [(True, "500"), (False, "RemoteDisconnected")])
def test_a_request_that_fails_is_counted_and_never_timed(tmp_path, answers, status):
    bench = Bench(Options(verb="draw", device="cpu", size="nano", out=tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        server.answers = answers
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert serving._ask(bench, url, 0) == status
        with pytest.raises(RuntimeError, match=status):
            serving._timed(bench, url, 0)
        server.shutdown()


def test_a_resumed_engine_has_the_bits_of_one_that_was_not(tmp_path, monkeypatch):
    """cuBLAS reads its setting at the first product, so it is there before a module is."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    build, found = resume.stage_module, []

    def built(*arguments):
        found.append(settings.get("CUBLAS_WORKSPACE_CONFIG"))
        return build(*arguments)

    monkeypatch.setattr(resume, "stage_module", built)
    report = result(tmp_path, "resume", "engine")
    assert found == [None] * 3 + [":4096:8"] * 3  # three runs by default, three that are deterministic
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
    assert bench.run({"noise": parity.noise}) == 1
    assert (bench.skipped, bench.rows) == (["noise"], [])


def test_a_case_beyond_the_time_is_named_with_its_part(tmp_path):
    bench = Bench(Options(verb="draw", device="cpu", size="nano", out=tmp_path))

    def part(bench):
        bench.began -= bench.options.seconds
        assert bench.left() <= 0 and bench.late("compile")

    assert bench.run({"features": part}) == 1
    assert (bench.skipped, list(bench.parts)) == (["features/compile"], ["features"])


def measured(value, name="value"):
    """A part of one row, with a detail of the same value."""

    def part(bench):
        bench.row(name, value, "s")
        bench.note(name, [value])

    return part


def again(folder, **parts):
    """A new run of these parts; returns the exit code."""
    return Bench(Options(verb="parity", device="cpu", size="nano", out=folder)).run(parts)


def test_a_second_run_replaces_the_parts_that_it_runs_and_keeps_the_others(tmp_path):
    again(tmp_path, first=measured(1.0), second=measured(2.0))
    again(tmp_path, second=measured(3.0), third=measured(4.0))
    [file] = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert [(row["part"], row["value"]) for row in report["rows"]] == [("first", 1), ("second", 3), ("third", 4)]
    assert report["details"] == {"first/value": [1], "second/value": [3], "third/value": [4]}
    assert list(report["parts"]) == ["first", "second", "third"]


def test_a_part_that_works_again_loses_its_error(tmp_path):
    def fail(_):
        raise RuntimeError("out of memory")

    assert again(tmp_path, first=fail, second=fail) == 1
    assert again(tmp_path, second=measured(1.0)) == 0  # the exit code is of this run only
    [file] = tmp_path.iterdir()
    assert list(json.loads(file.read_text())["errors"]) == ["first"]


@pytest.mark.parametrize("change", ["commit", "card"])
def test_results_of_another_commit_or_card_stay_in_a_file_of_their_own(tmp_path, monkeypatch, change):
    again(tmp_path, first=measured(1.0))
    if change == "commit":
        monkeypatch.setattr(_measure, "_commit", lambda: "another")
    else:
        monkeypatch.setattr(devices, "facts", lambda _: {"card": "another"})
    again(tmp_path, second=measured(2.0))
    again(tmp_path, third=measured(3.0))
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.iterdir(), key=lambda file: len(file.name))]
    assert [list(report["parts"]) for report in reports] == [["first"], ["second", "third"]]


def test_an_unusable_gpu_does_not_lose_the_report(tmp_path, monkeypatch):
    """After an error that no GPU recovers from, every call of it fails."""
    calls = []

    def release(_):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(devices, "release_memory", release)
    assert again(tmp_path, first=measured(1.0), second=measured(2.0)) == 1
    [file] = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert report["complete"] and [row["part"] for row in report["rows"]] == ["first"]
    assert "illegal memory access" in report["errors"]["second"]


def test_a_report_has_only_numbers_that_json_has(tmp_path):
    again(tmp_path, first=measured(float("inf")), second=measured(float("nan")))
    [file] = tmp_path.iterdir()

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads(file.read_text(), parse_constant=refuse)
    assert [row["value"] for row in report["rows"]] == [None, None]
    assert report["details"] == {"first/value": [None], "second/value": [None]}


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
    flops = predictions.generate_flops(model, [136] * 4) / 4
    assert flops == pytest.approx(3.87e12, rel=0.01)
    online = predictions.generate_flops(model, [136], online=True)
    assert online - flops == pytest.approx(9.39e12, rel=0.01)
    assert predictions.encoding_rate() == pytest.approx(53, abs=1)
    # 30 passes of both branches together: 1,800 launches of 6 us each, or 2.74 GB of weights at 4.3 TB/s.
    assert predictions.features_seconds(model, 1, eager=True) == pytest.approx(30 * 1800 * 6e-6)
    assert predictions.features_seconds(model, 1, eager=False) == pytest.approx(0.019, abs=0.001)


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
