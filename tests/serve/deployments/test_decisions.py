"""What is decided without Ray: replicas by rows and work, the turns of bundles, whether an engine is stuck."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from jobs.deployment.watch import Watch
from serve.deployments.autoscaling import ROWS, WORK, RowsAndWork
from serve.deployments.progress import Progress, StuckError
from serve.routing import RoutingTable, Target, Turns


def _wanted(*, rows=(), work=(), requests=0.0, queued=0.0, target_rows=4, target_wait_s=20, **more):
    context = SimpleNamespace(
        aggregated_metrics={ROWS: dict(enumerate(rows)), WORK: dict(enumerate(work))} if rows else None,
        total_num_requests=requests,
        total_queued_requests=queued,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: target_rows),
    )
    replicas, state = RowsAndWork(target_wait_s, **more)(context)
    assert state == {}
    return replicas


@pytest.mark.parametrize(
    ("load", "replicas"),
    [
        ({"rows": [0.0], "work": [0.0]}, 0),
        ({"rows": [4.0], "work": [1.0], "requests": 4}, 1),
        ({"rows": [10.0], "work": [1.0], "requests": 1}, 2.5),  # one request of ten images
        ({"rows": [2.0, 2.0], "work": [90.0, 30.0], "requests": 2}, 6),  # few rows of many steps
        ({"rows": [4.0, 4.0], "work": [1.0, 1.0], "requests": 12, "queued": 4}, 3),  # those in front of the replicas
        ({"requests": 8}, 2),  # before the first report
        ({"requests": 8, "spare_replicas": 1}, 3),
    ],
)
def test_replicas_follow_rows_and_work_not_requests(load, replicas):
    assert _wanted(**load) == replicas


def test_a_replica_that_the_autoscaler_removes_is_not_lost():
    watch = Watch()
    assert not watch.look({"a", "b"}, 2)
    assert not watch.look({"a", "b", "c"}, 3)
    assert not watch.look({"a", "b", "c"}, 2)  # it says so before it does
    assert not watch.look({"a", "c"}, 2)
    assert watch.look({"a", "d"}, 2) == {"b", "c"}  # one more than that: replaced, since Serve wants as many


def test_turns_keep_to_the_shares_in_any_stretch():
    targets = (Target(application="old", share=0.9), Target(application="new", share=0.1))
    turns = Turns()
    chosen = [turns.next(targets) for _ in range(100)]
    for start in range(0, 100, 10):
        assert chosen[start : start + 10].count("new") == 1
    assert {turns.next((Target(application="new"),)) for _ in range(3)} == {"new"}
    nothing = (Target(application="old"), Target(application="new", share=0.0))
    assert {Turns().next(nothing) for _ in range(3)} == {"old"}


@pytest.mark.parametrize(
    "models", [{}, {"m": []}, {"m": [{"application": "a", "share": 0.5}]}, {"m": [{"application": "a", "share": 2.0}]}]
)
def test_a_table_that_loses_requests_is_refused(models):
    with pytest.raises(ValidationError):
        RoutingTable.model_validate({"models": models})


def test_work_that_stands_still_is_noticed_and_idleness_is_not():
    times = iter([0.0, 100.0, 200.0, 205.0, 214.0, 216.0, 217.0])
    progress = Progress(10, lambda: next(times))
    progress.check({}, has_work=False)
    progress.check({"steps": 1}, has_work=False)
    progress.check({"steps": 2}, has_work=True)
    progress.check({"steps": 2, "rejected": 5, "cancelled": 1}, has_work=True)  # nothing of it is done
    with pytest.raises(StuckError, match="no step for 11 s"):
        progress.check({"steps": 2, "rejected": 9, "late": 3}, has_work=True)
    progress.check({"steps": 3, "rejected": 9}, has_work=True)
