"""The dashboard and the alerts read metrics that a real server shows, by labels that they have; docs say the same."""

from collections import defaultdict

import pytest

from serve.metrics import METRICS
from tests.serve.boards import Board, require_complete, require_importable, require_shown
from tests.serve.client import question, raw, serving
from tests.serve.prometheus import parse
from tests.serve.promql import readings

BOARD = Board("", "monitoring.md")


@pytest.fixture(scope="module")
def shown(reference):
    """The values of each label by series' name, of a server that has made an image and a reply, and streamed both."""
    with serving(reference) as server:
        for stream in (False, True):
            asked = {"prompt": "a red circle", "num_inference_steps": 2, "stream": stream, "seed": 1}
            assert raw("POST", server.url + "/v1/images/generations", asked).status == 200
            asked = {"messages": question("What colour is it?"), "max_tokens": 2, "stream": stream}
            assert raw("POST", server.url + "/v1/chat/completions", asked).status == 200
        scrape = parse(raw("GET", server.url + "/metrics").text)
    found = defaultdict(lambda: defaultdict(set))
    for series in scrape.series:
        for label, value in series.labels.items():
            found[series.name][label].add(value)
    return found


@pytest.mark.parametrize(("title", "expression", "text"), BOARD.queries, ids=lambda value: value[:30])
def test_what_is_read_is_shown(shown, title, expression, text):
    require_shown(shown, title, expression, text)


def test_every_metric_is_shown_and_on_the_dashboard_and_in_the_docs(shown):
    ends = {"histogram": ("_bucket", "_sum", "_count")}
    series = {name: [name + end for end in ends.get(spec.kind, ("",))] for name, spec in METRICS.items()}
    assert {name for names in series.values() for name in names} == set(shown)
    read = {
        reading.name for panel in BOARD.panels for target in panel["targets"] for reading in readings(target["expr"])
    }
    assert not [name for name, names in series.items() if not read.intersection(names)]
    for name, spec in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        row = f"| `{name}` | {spec.kind} | {labels} | {spec.help} |"
        assert row in BOARD.page, f"docs/monitoring.md misses the row\n{row}"


def test_the_dashboard_can_be_imported():
    require_importable(BOARD)


@pytest.mark.parametrize("rule", BOARD.alerts, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete_and_the_docs_say_what_to_do(rule):
    require_complete(rule, BOARD.page)


def test_alerts_have_names_of_their_own():
    names = [rule["alert"] for board in (BOARD, Board("training-", "monitoring-training.md")) for rule in board.alerts]
    assert len(set(names)) == len(names)
