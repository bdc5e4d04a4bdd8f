"""What a load test asks is decided by its seed; what it reports is counted by hand here."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from blip3o.errors import ConfigError
from jobs.loadtest.client import Outcome
from jobs.loadtest.drive import Phase, run
from jobs.loadtest.options import LoadOptions, workload
from jobs.loadtest.plots import Axis, cumulative, scatter
from jobs.loadtest.report import as_text
from jobs.loadtest.scrape import parse, stages
from jobs.loadtest.session import Session
from jobs.loadtest.summary import Objectives, distribution, summary
from jobs.loadtest.workload import Call, Workload, parse_work, scenes

WORKS = ("image,n=4,steps=50,share=1", "image,partials=2,guidance=1.5,share=2", "chat,tokens=8,share=7")


def outcome(due=0.0, sent=0.0, done=1.0, first=None, error=""):
    return Outcome(label="image", due=due, sent=sent, done=done, first=first, images=1, tokens=0, error=error)


def test_the_same_seed_asks_the_same_and_shares_are_kept():
    def calls(seed):
        workload = Workload(works=[parse_work(text) for text in WORKS], prompts=scenes(5), seed=seed, model="m")
        return list(itertools.islice(workload.calls("load", rate=4.0), 2000))

    drawn = calls(1)
    assert drawn == calls(1) != calls(2)
    count = {label: sum(call.work.label == label for call in drawn) for label in {call.work.label for call in drawn}}
    assert count == {
        "image n=4 steps=50": pytest.approx(200, abs=60),
        "image guidance=1.5 partials=2": pytest.approx(400, abs=80),
        "chat tokens=8": pytest.approx(1400, abs=90),
    }
    gaps = [after.due - before.due for before, after in itertools.pairwise(drawn)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 4, rel=0.1)
    deviation = (sum((gap - 1 / 4) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(1 / 4, rel=0.15)  # as exponential gaps have, and even ones have not
    seeds = [range(call.body["seed"], call.body["seed"] + 10) for call in drawn if "seed" in call.body]
    assert all(before.stop <= after.start for before, after in itertools.pairwise(seeds))  # no image is made twice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video", "'kind' = 'video'"),
        ("image,n=11", "'n' = 11"),
        ("image,steps", "'steps' is not NAME=VALUE"),
        ("image,step=3", r"step.*\(names: share, n, steps"),
        ("chat,share=0", "'share' = 0"),
    ],
)
def test_a_kind_of_request_that_is_none_is_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_work(text)


def test_more_prompts_than_there_are_are_refused():
    assert len(set(scenes(3584))) == 3584
    with pytest.raises(ConfigError, match="there are 1 to 3584"):
        scenes(3585)


def test_quantiles_are_values_that_occurred():
    assert distribution([4.0, 1.0, 3.0, 2.0]) == {"mean": 2.5, "p50": 2.0, "p95": 4.0, "p99": 4.0, "max": 4.0}
    assert distribution([float(n) for n in range(1, 101)])["p95"] == 95.0
    assert distribution([]) is None


def test_latency_counts_from_when_a_request_was_due_and_a_failure_is_never_in_time():
    outcomes = [
        outcome(due=0, sent=3, done=4, first=3.5),  # waited for a free client
        outcome(due=1, sent=1, done=2, first=1.25),
        outcome(due=1, sent=1, done=1.1, error="429 queue_full"),
    ]
    found = summary(outcomes, 4.0, Objectives(latency_s=2.0))
    assert (found["requests"], found["failed"], found["errors"]) == (3, 1, {"429 queue_full": 1})
    assert (found["latency_s"]["p50"], found["latency_s"]["max"]) == (1.0, 4.0)
    assert (found["first_s"]["p50"], found["first_s"]["max"]) == (0.25, 3.5)
    assert found["client_wait_s"]["max"] == 3.0
    assert (found["requests_per_s"], found["slo"], found["in_time_per_s"]) == (0.5, 0.3333, 0.25)
    assert summary(outcomes, 4.0, Objectives(first_s=1.0))["slo"] == 0.3333
    assert summary(outcomes, 4.0, Objectives())["slo"] == 0.6667


class Gate:
    """A client whose requests are answered once `needed` of them are there."""

    def __init__(self, needed):
        self._barrier = asyncio.Barrier(needed)

    async def ask(self, call, start):
        await self._barrier.wait()
        return outcome(due=call.due or 0.0)


@pytest.mark.parametrize("due", [None, 0.0])
def test_a_loop_keeps_as_many_requests_in_flight_as_it_may_and_no_more(due):
    work = parse_work("image")
    phase = Phase("load")
    calls = [Call(work=work, body={}, due=due)] * 12

    async def drive():
        await run(phase, Gate(3), calls, clients=3, seconds=None)  # never ends with fewer than 3 at a time

    asyncio.run(drive())
    assert (len(phase.outcomes), phase.sent, phase.most_at_once, phase.at_once) == (12, 12, 3, 0)


WHO = 'model="m",application="",replica='
METRICS = f"""# HELP blip3o_stage_seconds One pass of a stage.
blip3o_stage_seconds_bucket{{{WHO}"a",stage="decode",le="0.005"}} 3
blip3o_stage_seconds_sum{{{WHO}"a",stage="decode"}} 0.5
blip3o_stage_seconds_count{{{WHO}"a",stage="decode"}} 4
blip3o_stage_seconds_sum{{{WHO}"b",stage="decode"}} 1.5
blip3o_stage_seconds_count{{{WHO}"b",stage="decode"}} 6
blip3o_batch_rows_sum{{{WHO}"a"}} 30
blip3o_batch_rows_count{{{WHO}"a"}} 10
blip3o_queue_seconds_sum{{{WHO}"a",kind="generate"}} 2
blip3o_queue_seconds_count{{{WHO}"a",kind="generate"}} 8
blip3o_cache_hits_total{{{WHO}"a",kind="condition"}} 5
blip3o_cache_misses_total{{{WHO}"a",kind="condition"}} 2
"""
BEFORE = f"""blip3o_stage_seconds_sum{{{WHO}"b",stage="decode"}} 1
blip3o_stage_seconds_count{{{WHO}"b",stage="decode"}} 5
"""
GONE = f'blip3o_stage_seconds_count{{{WHO}"c",stage="decode"}} 100\n'


def test_stages_are_what_the_server_did_in_between():
    expected = {
        "passes": {"decode": {"passes": 5, "seconds": 1.0, "mean_s": 0.2}},
        "rows_mean": 3.0,
        "queue_mean_s": 0.25,
        "cache": {"condition": {"hits": 5, "misses": 2}},
    }
    assert stages(parse(BEFORE), parse(METRICS)) == {**expected, "complete": True}
    assert stages(parse(BEFORE + GONE), parse(METRICS)) == {**expected, "complete": False}


@pytest.mark.parametrize(("most", "ticks"), [(0.93, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (7, [0, 2, 4, 6, 8]), (0, [0])])
def test_axes_have_round_numbers(most, ticks):
    assert Axis(name="", most=most).ticks == pytest.approx(ticks)


def test_plots_have_every_point():
    dots = scatter({"a": [(0, 1), (1, 2)], "b": [(2, 4)]}, "x", "y < 4", marks=[(1, 1)])
    assert dots.count("<circle") == 3 and dots.count("#c8453b") == 1 and "y &lt; 4" in dots
    assert '<circle cx="508.0" cy="12.0"' in dots  # the largest values are at the right and at the top
    assert cumulative({"a": [0.5, 1.0, 2.0], "b": []}, "seconds", mark=1.5).count("<path") == 4


def test_a_server_that_has_gone_does_not_take_the_figures_with_it(caplog):
    options = LoadOptions()
    session = Session(url="http://127.0.0.1:1", key=None, options=options, workload=workload(options), _before={})
    labels = ["image n=4 steps=50 guidance=1.5", "image n=4 steps=50 guidance=2"]
    session.load.outcomes += [replace(outcome(), label=label) for label in labels]
    result = session.result(interrupted=False)
    assert result["load"]["requests"] == 2 and result["stages"] is None
    assert "http://127.0.0.1:1/metrics cannot be read" in caplog.text
    lines = as_text({"url": session.url, **result}).splitlines()
    assert max(map(len, lines)) <= 80 and set(labels) <= set(lines)  # in whole, or they would look the same
