"""The loss guard: what counts as a spike, what it remembers, and which micro-batches it blames."""

import math

import pytest

from blip3o.config.resilience import GuardConfig
from blip3o.train.loss_guard import LossGuard

RULES = GuardConfig(spike=3.0, window=4)


def test_without_a_spike_rule_only_non_finite_losses_are_bad():
    guard = LossGuard(GuardConfig())
    assert guard.check(1.0) is guard.check(1e30) is None
    assert guard.check(math.nan) == "the loss is nan"
    assert guard.check(-math.inf) == "the loss is -inf"


def test_a_spike_is_relative_to_the_median_of_a_full_window():
    guard = LossGuard(RULES)
    for loss in (1.0, 50.0, 2.0):
        assert guard.check(loss) is None  # the window is not full
    assert guard.limit == math.inf
    assert guard.check(2.0) is None
    assert guard.limit == 6.0
    assert guard.check(6.0) is None
    assert "the loss 13 is a spike" in guard.check(13.0)
    assert guard.recent == [50.0, 2.0, 2.0, 6.0]  # what was refused is not remembered


def test_a_resumed_guard_decides_as_the_one_before():
    first = LossGuard(RULES)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        first.check(loss)
    second = LossGuard(RULES, first.recent)
    assert second.limit == first.limit == 10.5


@pytest.mark.parametrize(
    ("losses", "bad_micro_batches"),
    [
        ({8: 1.0, 9: math.nan, 10: math.inf, 11: 2.0}, [9, 10]),
        ({8: 1.0, 9: 7.0}, [9]),
        ({9: 1.0, 8: 2.0}, [8, 9]),  # only the gradient is bad: no micro-batch stands out
    ],
)
def test_micro_batches_with_a_bad_loss_are_blamed_and_all_if_there_is_none(losses, bad_micro_batches):
    guard = LossGuard(RULES, [2.0] * 4)
    assert guard.bad_micro_batches(losses) == bad_micro_batches
