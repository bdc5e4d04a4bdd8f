"""The guard: what it calls a spike, what it remembers, and whom it blames."""

import math

import pytest

from blip3o.config.resilience import GuardConfig
from blip3o.train.loss_guard import Guard

RULES = GuardConfig(spike=3.0, window=4)


def test_without_a_rule_for_spikes_only_numbers_that_are_none_are_faults():
    guard = Guard(GuardConfig())
    assert guard.fault(1.0) is guard.fault(1e30) is None
    assert guard.fault(math.nan) == "the loss is nan"
    assert guard.fault(-math.inf) == "the loss is -inf"


def test_a_spike_is_judged_by_the_median_of_a_whole_window():
    guard = Guard(RULES)
    for loss in (1.0, 50.0, 2.0):
        assert guard.fault(loss) is None  # the window is not full
    assert guard.limit == math.inf
    assert guard.fault(2.0) is None
    assert guard.limit == 6.0
    assert guard.fault(6.0) is None
    assert "the loss 13 is a spike" in guard.fault(13.0)
    assert guard.recent == [50.0, 2.0, 2.0, 6.0]  # what was refused is not remembered


def test_a_guard_that_goes_on_judges_as_the_one_before():
    first = Guard(RULES)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        first.fault(loss)
    second = Guard(RULES, first.recent)
    assert second.limit == first.limit == 10.5


@pytest.mark.parametrize(
    ("losses", "guilty"),
    [
        ({8: 1.0, 9: math.nan, 10: math.inf, 11: 2.0}, [9, 10]),
        ({8: 1.0, 9: 7.0}, [9]),
        ({9: 1.0, 8: 2.0}, [8, 9]),  # the gradient alone is bad: nobody can be told apart
    ],
)
def test_micro_batches_with_a_bad_loss_are_blamed_and_all_if_there_is_none(losses, guilty):
    guard = Guard(RULES, [2.0] * 4)
    assert guard.guilty(losses) == guilty
