"""The learning rate at its characteristic points."""

import pytest

from blip3o.train.schedule import learning_rate
from tests.recipes import recipe


def test_warm_up_peak_and_end():
    optim = recipe(optim={"steps": 100, "lr": 1e-3, "min_lr": 1e-5, "warmup_steps": 10}).optim
    assert learning_rate(optim, 0) == pytest.approx(1e-4)
    assert learning_rate(optim, 9) == pytest.approx(1e-3)
    assert learning_rate(optim, 10) == pytest.approx(1e-3)
    assert learning_rate(optim, 99) == pytest.approx(1e-5)
    rates = [learning_rate(optim, step) for step in range(10, 100)]
    assert rates == sorted(rates, reverse=True)


def test_half_way_is_the_mean_of_peak_and_end():
    optim = recipe(optim={"steps": 101, "lr": 1.0, "min_lr": 0.2, "warmup_steps": 0}).optim
    assert learning_rate(optim, 50) == pytest.approx(0.6)
