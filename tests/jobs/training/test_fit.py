"""The resources and labels that a fit requests from Ray, and its summary, as plain values."""

import io
import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from rich.console import Console

from blip3o import log, settings
from blip3o.config.pipeline import TrainingPipeline
from blip3o.data.stream import data_config
from blip3o.errors import ConfigError
from blip3o.train.result import summarize
from jobs.training.plan import FitPlan
from jobs.training.progress import TrackedRun, View, figures
from jobs.training.resources import requested_resources, scaling_config, usable_workers
from jobs.training.stream import stream_encoders
from tests import recipes
from tests.jobs import world


def test_workers_are_placed_by_their_labels_and_reserve_what_the_recipe_says(monkeypatch):
    timeout = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.setenv(timeout, "")
    monkeypatch.delenv(timeout)
    scaling_config(recipes.recipe(parallel={"workers": {"min": 1, "max": 2}}).parallel, max_workers=2)
    assert settings.get(timeout) is None
    labels = {"ray-subcluster": "training"}
    asked = {"workers": 2, "cpus_per_worker": 3.0}
    placed = scaling_config(recipes.recipe(parallel=asked | {"worker_labels": labels}).parallel, max_workers=2)
    assert (placed.num_workers, placed.use_gpu, placed.label_selector) == (2, False, labels)
    assert settings.get(timeout) == "600"  # nodes may have to be started first
    assert placed.resources_per_worker == {"CPU": 3.0, "GPU": 0}
    assert scaling_config(recipes.recipe(parallel=asked).parallel, max_workers=2).label_selector is None


def test_a_range_of_workers_uses_numbers_that_divide_a_step():
    asked = {"workers": {"min": 2, "max": 12}}
    stages = [recipes.recipe(run={"name": f"m{m}"}, optim={"micro_batches": m}, parallel=asked) for m in (12, 24)]
    pipeline = TrainingPipeline(name="p", stages=tuple(stages))
    assert scaling_config(stages[0].parallel, max_workers=12).num_workers == (2, 12)
    assert [usable_workers(pipeline, count) for count in (12, 11, 6, 5, 3, 2)] == [12, 6, 6, 4, 3, 2]
    assert scaling_config(stages[0].parallel, max_workers=2).num_workers == 2
    with pytest.raises(ConfigError, match="micro_batches 12 is not a multiple of parallel.workers 5"):
        recipes.recipe(optim={"micro_batches": 12}, parallel={"workers": {"min": 5, "max": 12}})
    with pytest.raises(ConfigError, match="min 3 is above max 2: swap them"):
        recipes.recipe(parallel={"workers": {"min": 3, "max": 2}})


def test_workers_that_read_by_themselves_ask_for_no_actors():
    asked = {"workers": 2, "data_actors": 3, "cpus_per_data_actor": 4.0}
    found = [
        requested_resources(TrainingPipeline.of(recipes.recipe(data={"reader": reader}, parallel=asked)))
        for reader in ("ray", "local")
    ]
    assert found == [(14, 0), (2, 0)]
    with pytest.raises(ConfigError, match=r"features stream needs actors that encode, and data\.reader is local"):
        recipes.recipe(data={"reader": "local", "features": "stream"})


DECODE, ENCODE = {"kind": "decode"}, {"kind": "encode"}


def plan(features="stream", **parallel):
    made = recipes.recipe(data={"features": features}, stage={"name": "generate"}, parallel=parallel)
    return FitPlan(name="p", recipes=(made.model_dump(mode="json"),), data_sha256=([],), features=(None,))


@pytest.mark.parametrize(("encoding", "both"), [(ENCODE, None), ({}, None), (DECODE, DECODE)])
def test_encoders_of_the_stream_have_labels_of_their_own(encoding, both):
    """What the whole data set asks for, no operator of it can drop: so that is no more than all of them want."""
    encoders = stream_encoders(plan(data_labels=DECODE, encoder_labels=encoding))
    assert encoders.labels == encoding
    assert data_config(DECODE, encoders)._user_execution_options.label_selector == both


MAKES_A_MICRO_BATCH = """
import json, sys
from jobs.training.plan import FitPlan
from jobs.training.stream import staged_micro_batches
plan = FitPlan(**json.load(sys.stdin))
made = staged_micro_batches(plan)(0)
print(len(made["input_ids"]), "torch" in sys.modules)
"""


def test_actors_that_build_micro_batches_do_not_load_pytorch(base):
    """PyTorch would cost a second at each start, and memory in every process that decodes."""
    made = world.recipe(base)
    plan = FitPlan(name="p", recipes=(made.model_dump(mode="json"),), data_sha256=([],), features=(None,))
    command = [sys.executable, "-c", MAKES_A_MICRO_BATCH]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(made.optim.micro_batch_size), "False"], done.stderr


def test_without_encoders_the_whole_stream_has_the_labels_of_decoding():
    assert stream_encoders(plan("online", data_labels=DECODE, encoder_labels=ENCODE)) is None
    assert data_config(DECODE)._user_execution_options.label_selector == DECODE


def test_a_stream_over_two_subclusters_is_refused():
    """Ray Data would count no node of the second one, and its actors would wait forever."""
    labels = {"ray-subcluster": "preprocess"}
    with pytest.raises(ConfigError, match="data_labels has preprocess, parallel.encoder_labels None: give both"):
        plan(data_labels=labels)
    assert plan(data_labels=labels, encoder_labels=labels | ENCODE)
    assert plan("online", data_labels=labels)


def test_stages_with_different_labels_are_refused_as_a_pipeline():
    stages = [recipes.recipe(run={"name": kind}, parallel={"data_labels": {"kind": kind}}) for kind in ("a", "b")]
    with pytest.raises(ConfigError, match="the stages differ in parallel.data_labels"):
        TrainingPipeline(name="p", stages=tuple(stages))


def test_a_summary_reports_how_long_steps_wait_for_data():
    made = recipes.recipe(optim={"steps": 100})
    rows = [
        {"step": n, "loss": 1.0 - n / 100, "seconds": 0.5, "data_wait": 0.001 * n, "checkpoint_stall": 0.25}
        for n in range(100)
    ]
    summary = summarize(made, rows, workers=2)
    assert summary.data_wait_fraction == pytest.approx(4.95 / 50)
    assert (summary.data_wait_p50, summary.data_wait_p95) == pytest.approx((0.0495, 0.09405))
    assert summary.checkpoint_stall == 25
    assert (summary.first_loss, summary.last_loss) == pytest.approx((0.955, 0.055))
    assert (summary.mfu, summary.padding) == (None, None)


def test_a_summary_weighs_mfu_by_time_and_padding_by_operations():
    steps = [(1.0, 0.4, 0.1, 100), (3.0, 0.2, 0.3, 300)]
    times = {"loss": 1.0, "data_wait": 0.0, "checkpoint_stall": 0.0}
    rows = [
        {**times, "seconds": seconds, "mfu": mfu, "padding": padding, "flops/dit": flops}
        for seconds, mfu, padding, flops in steps
    ]
    summary = summarize(recipes.recipe(), rows, workers=1)
    assert (summary.mfu, summary.padding) == pytest.approx((1.0 / 4, 100 / 400))


RUN = TrackedRun(run="tiny-generate", steps=280, samples=32)
STEP = {"run": "tiny-generate", "step": 40, "loss": 0.8123, "speed": 52.4}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "loss 0.8123  52/s  0:02:27 left"),
        ({"mfu": 0.4567}, "loss 0.8123  MFU 45.7%  52/s  0:02:27 left"),
        ({"speed": 0.0123}, "loss 0.8123  0.012/s  7 days, 5:26:30 left"),
    ],
)
def test_a_step_shows_loss_speed_and_time_left(more, said):
    assert figures(STEP | more, RUN) == said


def test_off_a_terminal_every_event_is_a_line_of_at_most_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with log.session():
        log.configure()
        view = View([RUN])
        with view.live:
            for event in ({"phase": "loading weights"}, STEP | {"due": True}, STEP | {"step": 280, "due": True}):
                view.show({"run": RUN.run, **event})
            view.show({"run": "another", "phase": "loading weights"})
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line[9:] for line in lines] == [
        "tiny-generate: loading weights (0 s)",
        "tiny-generate: step 40/280  loss 0.8123  52/s  0:02:27 left",
        "tiny-generate: step 280/280  loss 0.8123  52/s  0:00:00 left",
    ]
    assert max(map(len, lines)) <= 80 and "\x1b" not in said.err and not said.out
    assert view.stepped


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, [1, 61, 100, 160, 200, 260]), ("15", [1, *range(16, 100, 15), *range(100, 200, 15), *range(200, 270, 15)])],
)
def test_off_a_terminal_a_run_of_few_due_steps_has_a_line_a_minute_all_the_same(caplog, monkeypatch, seconds, shown):
    """Steps of a second, of which each hundredth is due; the time of a line runs from the line before it."""
    if seconds:
        monkeypatch.setenv("BLIP3O_LOG_SECONDS", seconds)
    now = [0.0]
    view = View([RUN], clock=lambda: now[0])
    with caplog.at_level("INFO", "jobs.training.progress"):
        for step in range(1, 270):
            now[0] = float(step)
            view.show(STEP | {"step": step, "due": step == 1 or step % 100 == 0})
    found = [int(line.split("step ")[1].split("/")[0]) for line in caplog.messages]
    assert found == shown


def test_on_a_terminal_of_80_columns_the_bar_gives_way_to_the_figures(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(log, "console", lambda: console)
    view = View([TrackedRun(run="blip3o-4b-generate", steps=20000, samples=32)])
    view.show({"run": "blip3o-4b-generate", "step": 12345, "loss": 2.3456, "speed": 5234.2, "mfu": 0.4567})
    console.print(view.live.get_renderable())
    [line] = console.file.getvalue().splitlines()
    assert len(line) == 80 and " 12345/20000 loss 2.3456  MFU 45.7%  5234/s  0:00:47 left" in line
