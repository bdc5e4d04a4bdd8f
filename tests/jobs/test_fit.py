"""What a fit asks of Ray, and what it says of itself afterwards, as plain values."""

import pytest

from jobs.fit import scaling
from jobs.train_worker import summarize
from tests import recipes


def test_workers_are_placed_by_their_labels_and_reserve_what_the_recipe_says():
    labels = {"ray-subcluster": "training"}
    asked = {"workers": 2, "cpus_per_worker": 3.0}
    placed = scaling(recipes.recipe(parallel=asked | {"worker_labels": labels}).parallel)
    assert (placed.num_workers, placed.use_gpu, placed.label_selector) == (2, False, labels)
    assert placed.resources_per_worker == {"CPU": 3.0, "GPU": 0}
    assert scaling(recipes.recipe(parallel=asked).parallel).label_selector is None


def test_a_summary_tells_how_long_steps_wait_for_data():
    made = recipes.recipe(optim={"steps": 100})
    rows = [{"step": n, "loss": 1.0 - n / 100, "seconds": 0.5, "data_wait": 0.001 * n} for n in range(100)]
    summary = summarize(made, rows, workers=2)
    assert summary.data_wait_fraction == pytest.approx(4.95 / 50)
    assert (summary.data_wait_p50, summary.data_wait_p95) == pytest.approx((0.0495, 0.09405))
    assert (summary.first_loss, summary.last_loss) == pytest.approx((0.955, 0.055))
