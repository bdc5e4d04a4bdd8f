"""A run killed at any point equals an undisturbed one: every metric and every weight, bit for bit. On real Ray."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from blip3o import settings, storage
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import ledger_file
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.reports.run import render_run
from blip3o.runs.checkpoints import checkpoint_name, committed_steps, lists_uri, present_steps, shards_uri
from blip3o.runs.paths import SNAPSHOT, events_folder, final_uri, tensorboard_folder
from blip3o.runs.results import DESCRIPTION, read_description, read_final, write_final
from blip3o.runs.rows import reproducible, rows_of
from blip3o.storage.s3_connection import connection
from blip3o.train.checkpoint.store import committed_step
from cluster.policies import S3_ACTIONS
from cluster.ports import LOOPBACK, free_ports
from jobs.cli import app
from jobs.commands.runs import read_run
from jobs.training.run import train, train_pipeline
from jobs.training.validate import validate_weights
from tests.cluster.s3_actions import Noted
from tests.faults import FaultProxy
from tests.jobs import world
from tests.train.events import read_scalars

PATIENCE_S = 240
POLL_S = 0.02
WORKER = "RayTrainWorker"
LABEL = "ray-subcluster"


@pytest.fixture(scope="module")
def quiet(base):
    """An undisturbed run with validations, and its return value; the other runs have no validations."""
    made = world.recipe(base, evaluate=world.VALIDATED, checkpoint={"keep": 3})
    return made, train(made)


def figures(made: Recipe) -> list[dict]:
    """Every row of a run's metrics, without timing columns."""
    return [reproducible(row) for row in rows_of(made)]


def damage_newest(made: Recipe, fit_name: str) -> tuple[int, str]:
    """Truncates a file of the newest checkpoint by one byte; returns the step and the file."""
    step = committed_step(made, fit_name)
    file = storage.list_files(shards_uri(made, step), suffix="optim_states.pt")[-1].uri
    storage.write_bytes(file, storage.read_bytes(file)[:-1])
    return step, file


def wait_until(check):
    """The first true value of `check()`; fails after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := check():
            return value
        threading.Event().wait(POLL_S)
    raise AssertionError(f"nothing in {PATIENCE_S} s: {check}")


def trainers() -> list[psutil.Process]:
    """The training workers of this process's Ray."""
    return [child for child in psutil.Process().children(recursive=True) if WORKER in " ".join(child.cmdline())]


def test_metrics_are_complete_and_plausible(quiet):
    made, result = quiet
    rows = figures(made)
    assert [row["step"] for row in rows] == list(range(made.optim.steps))
    assert all(row["loss"] == row["loss/flow"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) == len(rows)
    assert all(row["flops/dit"] > 0 and row["flops/encoder"] > 0 and row["tokens"] > 0 for row in rows)
    assert committed_step(made) == made.optim.steps
    assert present_steps(made) == {18, 21, 24}  # of eight checkpoints, the newest three
    summary = result["summary"]
    assert (summary["steps"], summary["workers"], summary["zero_stage"]) == (24, 2, 1)
    assert 0 <= summary["data_wait_fraction"] < 1
    assert {name.split(".")[0] for name in result["tensors"]} == {"queries", "dit"}


def test_no_step_reads_a_sample_that_indexing_found_damaged(quiet):
    made, _ = quiet
    [entry] = read_ledger(ledger_file(f"{made.data.root}/manifests/scenes"))
    assert (entry.uid, entry.stage, entry.reason.split()[0]) == ("scenes/2/15", "index", "truncated")
    assert read_ledger(storage.join(made.run.storage, made.run.name, "ledger")) == []


def test_checkpoints_are_validated_with_images_during_training(quiet):
    made, _ = quiet
    run = read_run(made.run.storage, made.run.name)
    assert [found["step"] for found in run.validations] == [12, 24]
    assert sorted(run.drawings) == [12, 24]
    # Those of the last checkpoint are the figures of the result's weights.
    tensors, _ = read_final(final_uri(made.run.storage, made.run.name))
    elsewhere = made.model_copy(update={"run": made.run.model_copy(update={"name": "validated-again"})})
    found = validate_weights(elsewhere, 24, tensors)
    assert found == {name: run.validations[1][name] for name in found}
    assert sum(name.startswith("validation/flow/") for name in found) == made.evaluate.sigma_bins
    [figure] = [value for step, tag, value in shown(made) if (step, tag) == (24, "validation/flow")]
    assert figure == pytest.approx(found["validation/flow"], rel=1e-6)
    assert "flow by noise level" in render_run(run)


def shown(made):
    """The events of a run in TensorBoard."""
    return list(read_scalars(tensorboard_folder(made.run.storage, made.run.name)))


def adopt(made: Recipe, other: Recipe, *, step: int) -> None:
    """Gives a run the checkpoint of another one after a step, as if it were its own newest."""
    old, new = (storage.join(it.run.storage, it.run.name) for it in (other, made))
    folders = {
        shards_uri(other, step): shards_uri(made, step),
        lists_uri(other, other.run.name, step): lists_uri(made, made.run.name, step),
    }
    for source, target in folders.items():
        for file in storage.list_files(source):
            storage.write_bytes(target + file.uri.removeprefix(source), storage.read_bytes(file.uri))
    snapshot = json.loads(storage.read_bytes(f"{old}/{SNAPSHOT}"))
    [result] = [it for it in snapshot["checkpoint_results"] if it["metrics"]["step"] == step]
    result["checkpoint_dir_name"] = checkpoint_name(made.run.name, step)
    snapshot |= {"checkpoint_results": [result], "checkpoint_report_indices": [0], "latest_checkpoint_result": result}
    storage.write_bytes(f"{new}/{SNAPSHOT}", json.dumps(snapshot).encode())


def test_one_worker_resumes_from_two_and_trains_alike(base, quiet):
    undisturbed, _ = quiet
    made = world.recipe(base, run={"name": "one-worker"}, parallel={"workers": {"min": 1, "max": 1}})
    assert made.accumulation == 2
    begin = 18
    adopt(made, undisturbed, step=begin)
    assert committed_step(made) == begin
    result = train(made)
    assert result["summary"]["workers"] == 1
    rows = figures(made)
    assert [row["step"] for row in rows] == list(range(begin, made.optim.steps))
    # The same sums, added in another order: fp32 rounds at 6e-8, and some steps of AdamW carry it on. 1e-5 leaves
    # room for about 170 such roundings; a wrong divisor would be off by a factor of two.
    for one, two in zip(rows, figures(undisturbed)[begin:], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        assert one["lr"] == two["lr"]


@pytest.fixture
def noted(s3, monkeypatch):
    """The IAM actions of all requests to the store of processes that start from here on."""
    noted = Noted()
    with FaultProxy(connection().endpoint) as proxy:
        proxy.follow(noted)
        with monkeypatch.context() as patch:
            for name, value in proxy.environment.items():
                patch.setenv(name, value)
            yield noted.actions


@pytest.fixture
def nodes(noted):
    """A cluster of a head and two labelled nodes: its address, its dashboard, and the label of each node by its id."""
    from ray.cluster_utils import Cluster

    [port] = free_ports(1)
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_host": LOOPBACK, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    kinds = {cluster.add_node(num_cpus=2, labels={LABEL: kind}).node_id: kind for kind in ("preprocess", "train")}
    yield cluster.address, f"http://{LOOPBACK}:{port}", kinds
    cluster.shutdown()


def test_a_run_on_labelled_nodes_equals_the_run_on_one_node(nodes, noted, base, tmp_path, quiet):
    """And it asks of the store exactly what the role of a node allows."""
    from ray.util.state import list_actors

    undisturbed, expected = quiet
    address, dashboard, kinds = nodes
    places = {"data_labels": {LABEL: "preprocess"}, "worker_labels": {LABEL: "train"}}
    options = {"run": {"name": "spread"}, "parallel": places}
    file = world.write_recipe(tmp_path / "recipe.yaml", base, **options)
    environment = settings.child_environment({"RAY_ADDRESS": address})
    done = subprocess.run([sys.executable, "-m", "jobs.train", file], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert noted == S3_ACTIONS
    spread = world.recipe(base, **options)
    assert figures(spread) == figures(undisturbed)
    assert train(spread)["sha256"] == expected["sha256"]
    actors = list_actors(address=dashboard, limit=1000, detail=True)
    found = {(actor.class_name, kinds.get(actor.node_id)) for actor in actors}
    assert {kind for name, kind in found if name == WORKER} == {"train"}
    assert {kind for name, kind in found if "_Maker" in name} == {"preprocess"}


PHASES = ["starting 2 workers", "loading weights", "building the engine", "waiting for the first batch"]


def test_a_run_that_its_user_stops_continues_from_that_very_step(ray_cluster, base, tmp_path, quiet):
    undisturbed, expected = quiet
    # No checkpoint is due before the end: what is committed is what the signal has saved.
    options = {"run": {"name": "stopped"}, "checkpoint": {"every": 1000}}
    stopped = world.recipe(base, **options)
    file = world.write_recipe(tmp_path / "recipe.yaml", base, **options)
    environment = settings.child_environment({"RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address})
    said = interrupt_at_step([sys.executable, "-m", "jobs.train", file], environment)
    [saved] = map(int, re.findall(r"^run 'stopped' is saved after step (\d+)$", said, re.MULTILINE))
    assert 0 < saved < stopped.optim.steps
    assert committed_step(stopped) == saved
    assert said.splitlines()[-1].startswith("to continue: ") and said.endswith(f"blip3o train {file}\n")
    lose_and_restore(stopped, saved)
    # And may continue with another reader.
    continued = world.recipe(base, **options, data={"reader": "local"})
    assert train(continued)["sha256"] == expected["sha256"]
    first_steps = [found["step"] for found in read_run(stopped.run.storage, "stopped").attempts]
    assert first_steps == [1, saved + 1]
    assert figures(stopped) == figures(undisturbed)


def test_a_run_whose_workers_read_by_themselves_survives_a_kill_and_equals_one_of_the_stream(base, quiet):
    undisturbed, expected = quiet
    made = world.recipe(base, run={"name": "local"}, data={"reader": "local"}, parallel={"data_threads": 2})
    with ThreadPoolExecutor() as pool:
        result = pool.submit(train, made)
        wait_until(lambda: committed_steps(made) or result.done())
        trainers()[-1].kill()
        assert result.result()["sha256"] == expected["sha256"]
    assert len(read_run(made.run.storage, "local").attempts) == 2
    assert figures(made) == figures(undisturbed)


def lose_and_restore(made, saved):
    """The drill of docs/backup.md: backs a run and the indexes of its data up, loses both, and copies them back."""
    runs, manifests = made.run.storage, f"{made.data.root}/manifests"
    backup = runs.replace("/jobs/", "/backup/")
    needed = "not copied, and needed (stage.start_from): world-encoder, world-understand"
    told = run_cli("runs", "--storage", runs, "--copy", made.run.name, backup)
    assert told[1:] == [f"{made.run.name} resumes after step {saved}", needed]
    run_cli("data", "copy", manifests, f"{backup}/manifests")
    before = {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(f"{runs}/{made.run.name}")}
    storage.delete(f"{runs}/{made.run.name}")
    storage.delete(manifests)
    with pytest.raises(DataError, match="manifest"):
        train(made)
    run_cli("data", "copy", f"{backup}/manifests", manifests)
    run_cli("runs", "--storage", backup, "--copy", made.run.name, runs)
    assert {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(f"{runs}/{made.run.name}")} == before


def run_cli(*words):
    """The lines that a command prints."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.exception
    return result.stdout.splitlines()


def interrupt_at_step(command, environment):
    """Runs a job and interrupts it, as a terminal does, once it shows a step; returns what it said."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as run:
        said = []
        for line in run.stderr:
            said.append(line)
            if re.search(r": step \d+/\d+  loss ", line):
                os.killpg(run.pid, signal.SIGINT)
                break
        said = "".join([*said, *run.stderr])
        assert "optim" not in run.stdout.read()  # the recipe is stored, not printed
    assert run.returncode == 130, said
    assert "Traceback" not in said and "\x1b" not in said
    found = [said.find(f"stopped: {words}") for words in PHASES]
    assert -1 not in found and found == sorted(found), said
    return said


def second(name, *, after):
    """Of a stage from the result of the run `after`: two tasks, other steps, another micro-batch, and an average."""
    return {
        "run": {"name": name},
        "stage": {"name": "joint", "start_from": ["world-encoder", "world-understand", after]},
        "optim": {"steps": 16, "micro_batch_size": 4, "ema_decay": 0.9},
    }


def write_pipeline(folder, base, name):
    """A pipeline's file: the undisturbed run's stage under another name, and one more."""
    stages = {"a": world.tree(base, run={"name": f"{name}-a"}), "b": world.tree(base, **second(f"{name}-b", after="a"))}
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"pipeline": {"name": name, "stages": stages}}))
    return file


def test_a_pipeline_with_killed_worker_and_driver_equals_its_stages_run_separately(ray_cluster, tmp_path, base, quiet):
    """A worker in its first stage, driver and workers in its second, whose newest checkpoint is damaged then."""
    undisturbed, expected = quiet
    separate = world.recipe(base, **second("alone-b", after=undisturbed.run.name))
    apart = [expected, train(separate)]
    file = write_pipeline(tmp_path, base, "joined")
    pipeline = load_pipeline(file, [])
    first, last = pipeline.stages
    command = [sys.executable, "-m", "jobs.train", str(file)]
    environment = settings.child_environment({"RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address})
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        wait_until(lambda: committed_steps(first, "joined") or driver.poll() is not None)
        trainers()[-1].kill()
        assert read_description(final_uri(first.run.storage, first.run.name)) is None, "it had ended before"
        # Two checkpoints are there: the newer one is going to be damaged.
        wait_until(lambda: len(committed_steps(last, "joined")) >= 2 or driver.poll() is not None)
        # The trainers go with the driver, as on a machine that loses power: otherwise a nano run may finish by itself.
        family = trainers()
        for process in (driver, *family):
            process.kill()
        driver.wait()
    assert len(family) == first.parallel.workers, (tmp_path / "log").read_text()[-3000:]
    assert set(committed_steps(last, "joined")[-2:]) <= present_steps(last)  # wherever the kill was
    step, damaged = damage_newest(last, "joined")
    assert 6 <= step < last.optim.steps
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^(?:already )?finished: [\w-]+", done.stdout, re.MULTILINE) == [
        "already finished: joined-a", "finished: joined-b"
    ]  # fmt: skip
    assert re.search(f"step {step} of run 'joined-b' is damaged: {damaged} has \\d+ bytes, \\d+ were", done.stderr)
    assert f"falls back to its checkpoint after step {step - 3}" in done.stderr
    assert [present_steps(stage) for stage in pipeline.stages] == [{21, 24}, {15, 16}]
    joined = train_pipeline(pipeline)
    for kind in ("sha256", "average_sha256"):
        assert [result.get(kind) for result in joined] == [result.get(kind) for result in apart]
    assert {row["loss/text"] > 0 < row["loss/flow"] for row in figures(separate)} == {True}
    assert len({apart[1]["sha256"], apart[1]["average_sha256"]}) == 2
    for one, other in zip((undisturbed, separate), pipeline.stages, strict=True):
        events = storage.list_files(events_folder(other.run.storage, other.run.name))
        assert not [file.uri for file in events if "-memory-" in file.uri]  # the workers had freed the first stage
        assert figures(one) == figures(other)
        losses = [(step, value) for step, tag, value in shown(other) if tag == "loss"]
        assert losses == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in figures(other)]


def test_a_stage_that_finished_before_an_earlier_one_is_refused(base, tmp_path):
    pipeline = load_pipeline(write_pipeline(tmp_path, base, "swapped"), [])
    last = pipeline.stages[1].run
    write_final(final_uri(last.storage, last.name), {}, {"run": last.name, "identity": "another"})
    with pytest.raises(ConfigError, match="run 'swapped-b' has finished, but 'swapped-a' before it has not"):
        train_pipeline(pipeline)


def test_a_finished_run_submitted_again_does_nothing(monkeypatch, quiet):
    made, expected = quiet
    monkeypatch.setattr("jobs.training.run.fit", lambda *_: pytest.fail("trained again"))
    assert train(made) == expected
    said: list[str] = []
    assert train_pipeline(TrainingPipeline.of(made), report=said.append) == [expected]
    uri = final_uri(made.run.storage, made.run.name)
    assert [re.fullmatch(rf"already finished: quiet, 24 steps, loss [\d.]+, \d+ s of steps, {uri}", *said)] != [None]


def test_a_finished_name_with_another_recipe_is_refused(base, quiet):
    changed = r"run 'quiet' has finished with another recipe or other data \(optim.lr: 0.\d+ → 0.002\): choose a new"
    with pytest.raises(ConfigError, match=changed):
        train(world.recipe(base, optim={"lr": 2e-3}))
    # The same before anything starts, where there is no result yet, and only checkpoints.
    description = storage.join(final_uri(quiet[0].run.storage, "quiet"), DESCRIPTION)
    kept = storage.read_bytes(description)
    storage.delete(description)
    with pytest.raises(ConfigError, match=r"has checkpoints made with .* \(optim.lr: 0.\d+ → 0.002; run.seed: "):
        train(world.recipe(base, optim={"lr": 2e-3}, run={"seed": 7}))
    storage.write_bytes(description, kept)
    # What does not decide the numbers may change.
    assert train(world.recipe(base, log={"every": 5}, parallel={"workers": 1})) == quiet[1]
