"""Metrics: a histogram's buckets hold what was observed; each metric's name and labels say what it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.metrics import METRICS, SCOPES, Recorder

STEP = "blip3o_denoise_step_seconds"


@given(st.lists(st.floats(0, 200), min_size=1))
def test_buckets_hold_what_was_observed(values):
    recorder = Recorder()
    for value in values:
        recorder.observe(STEP, value)
        recorder.add("blip3o_cache_hits_total", "condition")
    metrics = recorder.snapshot({("blip3o_requests_waiting", "chat"): 2.0})
    assert metrics.value("blip3o_requests_waiting", "chat") == 2
    assert metrics.value("blip3o_cache_hits_total", "condition") == len(values)
    histogram = metrics.samples[STEP, ""]
    below = [sum(value <= bound for value in values) for bound in histogram.bounds]
    assert [sum(histogram.counts[: i + 1]) for i in range(len(below))] == below
    assert histogram.count == len(values) and histogram.sum == pytest.approx(sum(values))


def test_histograms_have_ascending_bounds_and_names_say_the_unit():
    for name, spec in METRICS.items():
        assert list(spec.bounds) == sorted(set(spec.bounds))
        assert bool(spec.bounds) == (spec.kind == "histogram")
        assert name.endswith("_total") == (spec.kind == "counter")
        assert spec.label not in SCOPES[spec.scope]
        assert not spec.known or (spec.kind == "counter" and ("" in spec.known) == (not spec.label))


def test_counters_are_there_before_anything_is_counted():
    """Of a series that begins at 1, Prometheus' `rate` and `increase` miss the first event."""
    metrics = Recorder().snapshot({})
    assert metrics.samples["blip3o_rejected_total", ""] == 0
    assert metrics.samples["blip3o_errors_total", "EngineError"] == 0
    assert {METRICS[name].scope for name, _ in metrics.samples} == {"replica"}
