"""Metrics of replicas add up, and a histogram's buckets hold what was observed."""

from hypothesis import given
from hypothesis import strategies as st

from serve.metrics import METRICS, Recorder

STEP = "blip3o_denoise_step_seconds"


@given(st.lists(st.lists(st.floats(0, 200)), min_size=1, max_size=3))
def test_replicas_add_up(replicas):
    recorders = [Recorder() for _ in replicas]
    for recorder, values in zip(recorders, replicas, strict=True):
        for value in values:
            recorder.observe(STEP, value)
            recorder.add("blip3o_cache_hits_total", "condition")
    first, *others = [recorder.snapshot({("blip3o_requests_waiting", "chat"): 2.0}) for recorder in recorders]
    total = sum(others, first)
    values = [value for values in replicas for value in values]
    assert total.value("blip3o_requests_waiting", "chat") == 2 * len(replicas)
    assert total.value("blip3o_cache_hits_total", "condition") == len(values)
    if values:
        histogram = total.samples[STEP, ""]
        below = [sum(value <= bound for value in values) for bound in histogram.bounds]
        assert [sum(histogram.counts[: i + 1]) for i in range(len(below))] == below
        assert histogram.count == len(values)


def test_histograms_have_ascending_bounds_and_names_say_the_unit():
    for name, spec in METRICS.items():
        assert list(spec.bounds) == sorted(set(spec.bounds))
        assert bool(spec.bounds) == (spec.kind == "histogram")
        assert name.endswith("_total") == (spec.kind == "counter")
