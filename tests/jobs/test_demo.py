"""The demo as a user runs it: one command, from nothing to an answer over HTTP; then nothing of it runs any more."""

import json
import subprocess
import sys

import psutil
import pytest
from PIL import Image

from blip3o import settings
from blip3o.config.recipe import STAGES

LIMIT_S = 580
MARK = "BLIP3O_DEMO_UNDER_TEST"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that `blip3o demo --quick` leaves, how it ended, and what still runs of it."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "jobs.cli", "demo", "--quick", "--out", str(out)]
    environment = settings.child_environment({MARK: str(out)})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return out, done


@pytest.fixture(scope="module")
def summary(demo):
    return json.loads((demo[0] / "summary.json").read_text())


def test_every_stage_is_summed_up(summary):
    assert list(summary["stages"]) == list(STAGES)
    for stage in summary["stages"].values():
        assert stage["steps"] > 0 and stage["seconds"] > 0 and stage["samples_per_second"] > 0
        assert stage["first_loss"] > 0 and stage["last_loss"] > 0
        assert 0 <= stage["data_wait_fraction"] < 1
        assert (stage["workers"], stage["zero_stage"]) == (2, 1)
    assert summary["samples"]["scenes"]["train"] > 0
    assert summary["store"] == "s3://blip3o"
    assert summary["seconds_total"] > 0


def test_figures_stand_beside_chance(summary):
    understanding, generation = summary["understanding"], summary["generation"]
    assert 0 <= understanding["accuracy"] <= 1 and 0 < understanding["chance"] < 1 and understanding["n"] > 0
    assert generation["chance_r1"] == 1 / generation["n"]
    assert 0 <= generation["r1"] <= generation["r5"] <= 1 and 0 <= generation["shuffled_r1"] <= 1


def test_the_model_answered_over_http(demo, summary):
    served = summary["served"]
    assert served["ok"] is True
    assert isinstance(served["chat_reply"], str)
    picture = demo[0] / "served.png"
    assert list(Image.open(picture).size) == served["image_size"]
    assert served["image_bytes"] > 0


def test_report_and_pictures_are_there(demo):
    out, done = demo
    report = (out / "report.html").read_text()
    assert all(stage in report for stage in STAGES)
    assert Image.open(out / "grid.png").width > 100
    assert str(out / "summary.json") in done.stderr and "done in" in done.stderr


def test_nothing_of_it_runs_any_more(demo):
    # Whatever it started has its environment, children that were left to init too.
    left = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == str(demo[0])]
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive
