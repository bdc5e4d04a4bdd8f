"""The simulated fleet keeps books that a formula knows where one does; the planner's parts run at a small size."""

import json
from dataclasses import replace

import pytest

from benchmarks.scale import fleet, planner
from benchmarks.scale.fleet import Fleet, curve, recommended, simulate, usable_workers
from blip3o.budget.training import young

pytest.importorskip("simpy", reason="simpy simulates the fleet: pip install -e '.[dev]'")
CALM = Fleet(
    nodes=20,
    micro_batches=160,
    spread=0.0,
    slow_by=1.0,
    throttled_by=1.0,
    node_mtbf_hours=1e9,
    restart=60.0,
    hours=48.0,
)


def test_an_undisturbed_fleet_only_pays_for_its_checkpoints():
    free = simulate(replace(CALM, checkpoint_gb=0.0), 0)
    assert free.goodput == pytest.approx(1.0, rel=0.001)  # the last minute is not counted
    found = simulate(replace(CALM, checkpoint_every=600.0, checkpoint_gb=60.0, upload_gb_s=1.0), 0)
    assert found.goodput == pytest.approx(600 / 660, rel=0.01)
    waiting = simulate(replace(CALM, checkpoint_every=600.0, checkpoint_gb=60.0, upload_gb_s=0.06), 0)
    assert waiting.goodput == pytest.approx(600 / (1000 + 60), rel=0.02)  # for the upload before


def test_stragglers_and_throttling_slow_every_step():
    slow = simulate(replace(CALM, spread=0.02, checkpoint_gb=0.0), 0)
    # The largest of 160 normal values is 2.6 deviations above their mean.
    assert slow.goodput == pytest.approx(1 / 1.053, rel=0.01)
    always = replace(CALM, throttled_every_hours=1e-6, throttled_for=1e9, throttled_by=1.5, checkpoint_gb=0.0)
    assert simulate(always, 0).goodput == pytest.approx(1 / 1.5, rel=0.01)


FAILING = replace(
    CALM, node_mtbf_hours=40.0, notice_share=0.0, replaced_after=1.0, checkpoint_gb=60.0, upload_gb_s=10.0
)


def test_the_best_interval_is_that_of_young():
    assert young(FAILING.stall, FAILING.between_losses) == pytest.approx(930, rel=0.01)
    found = curve(FAILING, intervals=(120.0, 900.0, 7200.0), seeds=(0, 1))
    assert found[1] > max(found[0], found[2])
    best = recommended(FAILING, found, (120.0, 900.0, 7200.0))
    assert (best["simulated"], best["young"]) == (900.0, round(young(60.0, 7200.0)))


def test_an_announced_interruption_loses_no_steps():
    announced, sudden = (simulate(replace(FAILING, notice_share=share), 0) for share in (1.0, 0.0))
    assert announced.failures == pytest.approx(sudden.failures, abs=0)  # the same interruptions
    assert announced.lost == 0 < sudden.lost
    assert announced.goodput > sudden.goodput
    assert simulate(FAILING, 0) == sudden


def test_an_elastic_run_does_not_wait_for_a_new_node():
    slow = replace(FAILING, replaced_after=3600.0, micro_batches=5040)
    fixed, elastic = (simulate(replace(slow, elastic=elastic), 0).goodput for elastic in (False, True))
    assert elastic > fixed
    assert [usable_workers(slow, nodes) for nodes in (20, 19, 18)] == [144, 144, 144]
    assert usable_workers(CALM, 19) == 80  # 152 workers do not divide 160 micro-batches


def test_a_node_that_is_back_trains_from_the_next_checkpoint_on():
    """Until then an elastic run has half of the workers here."""
    slow = replace(FAILING, elastic=True, notice_share=1.0, replaced_after=600.0, checkpoint_gb=0.0)
    never, often = (simulate(replace(slow, checkpoint_every=each), 0).goodput for each in (1e9, 600.0))
    assert never < 0.7 < 0.85 < often


def test_the_planner_is_measured_in_every_direction(tmp_path, capsys):
    sizes = ["--samples", "20000", "--shards", "20", "--workers", "16"]
    planner.main([*sizes, "--results", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["parts"]
    assert set(found) == {"full", "a tenth of the samples", "a tenth of the shards", "a tenth of the workers"}
    assert {"read the manifest", "order of the rows", "numbers of a pass"} <= set(found["full"])


def test_the_curves_are_printed_and_drawn(tmp_path, capsys):
    fleet.main(["--hours", "0.5", "--plot", str(tmp_path / "curves.png"), "--results", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["curves"]) == 8
    assert found["parts"]["no interruptions"] >= found["parts"]["everything"]
    assert (tmp_path / "curves.png").stat().st_size > 0
