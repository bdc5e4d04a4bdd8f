"""Trackers: files that are replaced by equal ones, and services that store values by step."""

import io
import json
import sys

import pytest
from PIL import Image

from blip3o import settings, storage
from blip3o.errors import ConfigError
from blip3o.runs.paths import metrics_folder, tensorboard_folder
from blip3o.runs.rows import reproducible, with_rates
from blip3o.train.metrics.trackers import (
    JsonLines,
    MlflowTracker,
    TensorBoard,
    WandbTracker,
    open_trackers,
    require_trackers,
)
from tests.recipes import recipe
from tests.train.events import read_events, read_scalars

ROWS = [{"step": step, "loss": 1 / (step + 1), "lr": 0.5} for step in range(5)]


def row(**columns):
    return {"step": 0, "loss": 1.0, "samples": 8, "seconds": 2.0, "data_wait": 0.5, "memory_bytes": 1, **columns}


def test_rates_are_per_second_and_shares_of_the_peak():
    work = {"tokens": 600, "flops/dit": 30_000, "flops/prompt": 10_000}
    made = with_rates(row(**work), peak_flops=100_000.0)
    assert (made["samples_per_second"], made["tokens_per_second"]) == (4, 300)
    assert made["mfu/dit"] == pytest.approx(0.15)
    assert made["mfu"] == pytest.approx(0.2)
    assert "mfu" not in with_rates(row(**work), peak_flops=None)
    assert "tokens_per_second" not in with_rates(row(), peak_flops=1.0)


def test_padding_is_a_share_of_the_operations_and_is_not_part_of_mfu():
    work = {"flops/dit": 30_000, "flops/prompt": 10_000, "useful_flops/prompt": 6_000}
    made = with_rates(row(**work), peak_flops=100_000.0)
    assert made["padding"] == pytest.approx(4_000 / 40_000)
    assert (made["mfu/dit"], made["mfu/prompt"], made["mfu"]) == pytest.approx((0.15, 0.03, 0.18))
    assert with_rates(row(**work), peak_flops=None)["padding"] == made["padding"] == reproducible(made)["padding"]
    assert "padding" not in with_rates(row(**{"flops/dit": 1}), peak_flops=1.0)  # a stage that reads no text


def test_timing_columns_are_not_reproducible():
    made = with_rates(row(**{"loss/flow": 1.0, "tokens": 600, "flops/dit": 5}), peak_flops=1.0)
    kept = {"step": 0, "loss": 1.0, "samples": 8, "loss/flow": 1.0, "tokens": 600, "flops/dit": 5}
    assert reproducible(made | {"checkpoint_stall": 3.0}) == kept


def test_json_lines_of_an_interval_are_replaced_by_the_same(tmp_path):
    sink = JsonLines(str(tmp_path))
    for group in (ROWS[:2], ROWS[2:], ROWS[2:]):
        sink.write(group)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["step-00000002.jsonl", "step-00000005.jsonl"]
    assert [json.loads(line) for file in files for line in file.read_text().splitlines()] == ROWS


def test_tensorboard_has_each_step_once_if_groups_are_sent_again(tmp_path):
    sink = TensorBoard(str(tmp_path))
    for group in (ROWS[:2], ROWS[2:], ROWS[2:]):
        sink.write(group)
    found = list(read_scalars(str(tmp_path)))
    assert [(step, tag) for step, tag, _ in found] == [(it["step"], tag) for it in ROWS for tag in ("loss", "lr")]
    losses = [value for _, tag, value in found if tag == "loss"]
    assert losses == pytest.approx([it["loss"] for it in ROWS], rel=1e-6)  # TensorBoard keeps fp32


def test_tensorboard_shows_an_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(buffer, "PNG")
    TensorBoard(str(tmp_path), name="validation").write_image(7, "grid", buffer.getvalue(), size=(6, 4))
    [event] = read_events(str(tmp_path))
    [value] = event.summary.value
    assert (event.step, value.tag) == (7, "grid")
    shown = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert shown.size == (value.image.width, value.image.height) == (6, 4)


def test_a_recipe_has_json_lines_and_the_trackers_that_it_names(tmp_path):
    made = recipe(run={"storage": str(tmp_path)})
    for sink in open_trackers(made):
        sink.write(ROWS)
        sink.close()
    for folder in (metrics_folder, tensorboard_folder):
        assert len(storage.list_files(folder(str(tmp_path), made.run.name))) == 1
    assert len(list(open_trackers(recipe(log={"trackers": []})))) == 1


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # as if nothing were installed
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        ConfigError, match=r"log.trackers names wandb, which is not installed: pip install 'blip3o\[wandb"
    ):
        require_trackers(recipe(log={"trackers": ["wandb"]}))


def test_mlflow_stores_the_values_of_a_run_by_step(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is enough for a test
    made = recipe(log={"trackers": ["mlflow"]})
    for _ in range(2):  # the second is a resumed run
        sink = MlflowTracker(made)
        sink.write(ROWS)
        sink.close()
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("blip3o").experiment_id])
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {it["step"]: it["loss"] for it in ROWS}


def test_mlflow_without_a_server_is_refused(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set: give the server's address"):
        MlflowTracker(recipe(log={"trackers": ["mlflow"]}))


def test_wandb_takes_rows_without_a_network(tmp_path):
    wandb = pytest.importorskip("wandb")
    settings.override({"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)})
    sink = WandbTracker(recipe(log={"trackers": ["wandb"]}))
    sink.write(ROWS)
    sink.close()
    wandb.teardown()  # else its service would live as long as this process
    [file] = tmp_path.rglob("*.wandb")
    assert file.stat().st_size > 0
