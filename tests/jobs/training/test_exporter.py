"""What a run reports to Prometheus: dashboard and alerts read nothing else, and docs say the same."""

import urllib.request
from collections import defaultdict
from dataclasses import replace

import pytest

from blip3o import storage
from blip3o.runs.paths import attempts_folder, ledger_uri
from blip3o.runs.quarantine import Entry, Quarantine, write_quarantine
from jobs.training.monitoring.exporter import EXPORT_SECONDS, METRICS, PREFIX, MetricsExporter
from tests.jobs.test_train import wait_until
from tests.jobs.training.test_recorder import made, record
from tests.serve.boards import Board, require_complete, require_importable, require_shown
from tests.serve.prometheus import LABEL, SAMPLE
from tests.serve.promql import readings

BOARD = Board("training-", "monitoring-training.md")
OURS = f"ray_{PREFIX}"
STEPS = 5


@pytest.fixture(scope="module")
def scrape(ray_cluster, tmp_path_factory):
    """Series of the cluster by name, each with labels and value, after five steps of a run and a job of Ray Data."""
    import ray.data

    [node] = [node for node in ray_cluster.nodes() if node["Alive"]]
    door = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    export(str(tmp_path_factory.mktemp("runs")))
    ray.data.range(8).map_batches(lambda rows: rows).materialize()

    def read():
        with urllib.request.urlopen(door, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found = defaultdict(list)
        for sample in filter(None, map(SAMPLE.fullmatch, lines)):
            found[sample[1]].append((dict(LABEL.findall(sample[2])), float(sample[3])))
        stored = {labels.get("run") for labels, _ in found[f"{OURS}checkpoint_seconds"]}
        return found if "recorded" in stored and "ray_data_num_tasks_failed" in found else None

    return wait_until(read)


def export(uri):
    """Five steps of 0.5 s, of which 0.1 s is waiting; every second is due by number, and the fifth by time."""
    recipe = made(uri)
    for attempt in range(2):
        storage.write_bytes(storage.join(attempts_folder(uri, "recorded"), f"{attempt}.json"), b"{}")
    storage.write_bytes(storage.join(ledger_uri(uri, "recorded"), "of-a-sample.json"), b"{}")
    entry = Entry(step=1, reason="quarantined", since=2, uids=("scenes/0/1",))
    write_quarantine(recipe, Quarantine().with_entry(entry))
    now = [0.0]
    exporter = MetricsExporter(recipe, peak_flops=16e9, workers=2, samples=200, clock=lambda: now[0])
    exporter.on_start(0)
    for step in range(STEPS):
        now[0] += EXPORT_SECONDS if step + 1 == STEPS else 0
        made_step = record(step)
        work = {**made_step.work, "useful_flops/dit": 3 * 10**9}
        times = {"data_wait": 0.1, "checkpoint_stall": 0.2}
        exporter.after_step(step + 1, replace(made_step, lr=0.1 * (step + 1), work=work, **times))
    exporter._exported.stored(3.5)


def test_steps_are_counted_and_the_newest_is_shown(scrape):
    shown = {
        name.removeprefix(OURS): value
        for name, series in scrape.items()
        for labels, value in series
        if labels.get("run") == "recorded"
    }
    assert METRICS.keys() <= shown.keys()
    counted = {name: shown[name] for name, spec in METRICS.items() if spec.kind == "counter"}
    assert counted == pytest.approx(
        {
            "steps_total": 5,
            "samples_total": 40,
            "tokens_total": 250,
            "step_seconds_total": 2.5,
            "data_wait_seconds_total": 0.5,
            "checkpoint_stall_seconds_total": 1.0,
        }
    )
    assert (shown["lr"], shown["loss"], shown["loss_flow"], shown["mfu"]) == (0.5, 0.5, 0.5, 0.375)
    assert (shown["flops_dit"], shown["progress"], shown["workers"]) == (4e9, 5 / 6, 2)
    assert (shown["attempts"], shown["rewinds"]) == (3, 1)
    assert (shown["left_out_samples"], shown["left_out_share"]) == (1, 1 / 200)
    assert shown["checkpoint_seconds"] == 3.5 and shown["checkpoint_timestamp_seconds"] > 1.7e9


@pytest.mark.parametrize(("title", "expression", "text"), BOARD.queries, ids=lambda value: value[:30])
def test_what_is_read_is_shown(scrape, title, expression, text):
    shown = {name: defaultdict(set) for name in scrape}
    for name, series in scrape.items():
        for labels, _ in series:
            for label, value in labels.items():
                shown[name][label].add(value)
    require_shown(shown, title, expression, text)


def test_every_metric_is_on_the_dashboard_or_in_an_alert_and_in_the_docs():
    read = {reading.name for _, expression, _ in BOARD.queries for reading in readings(expression)}
    assert {f"{OURS}{name}" for name in METRICS} <= read
    for name, spec in METRICS.items():
        row = f"| `{OURS}{name}` | {spec.kind} | {spec.help} |"
        assert row in BOARD.page, f"docs/monitoring-training.md misses the row\n{row}"


def test_the_dashboard_can_be_imported():
    require_importable(BOARD)


@pytest.mark.parametrize("rule", BOARD.alerts, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete_and_the_docs_say_what_to_do(rule):
    require_complete(rule, BOARD.page)
