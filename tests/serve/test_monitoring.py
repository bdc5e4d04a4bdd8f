"""The dashboard and the alerts read metrics that a real server shows, by labels that they have; docs say the same."""

import json
import re
from collections import defaultdict

import pytest
import yaml
from promql_parser import parse_duration

from serve.metrics import METRICS
from tests.docs_commands import ROOT
from tests.serve.client import question, raw, serving
from tests.serve.prometheus import parse
from tests.serve.promql import readings

FOLDER = ROOT / "serve" / "monitoring"
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [
    *((panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]),
    *((rule["alert"], rule["expr"], json.dumps(rule["annotations"])) for rule in ALERTS),
]


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


@pytest.mark.parametrize(("title", "expression", "text"), QUERIES, ids=lambda value: value[:30])
def test_what_is_read_is_shown(shown, title, expression, text):
    kept = set()
    for reading in readings(expression):
        assert reading.name in shown, f"{title}: no server shows {reading.name}"
        labels = shown[reading.name]
        assert {label for label, *_ in reading.matchers} <= labels.keys(), title
        assert (reading.kept or set()) <= labels.keys(), title
        assert all(value in labels[label] for label, kind, value in reading.matchers if kind == "Equal"), title
        kept |= labels.keys() if reading.kept is None else reading.kept
    assert {*re.findall(r"{{(\w+)}}", text), *re.findall(r"\$labels\.(\w+)", text)} <= kept, title


def test_every_metric_is_shown_and_on_the_dashboard_and_in_the_docs(shown):
    ends = {"histogram": ("_bucket", "_sum", "_count")}
    series = {name: [name + end for end in ends.get(spec.kind, ("",))] for name, spec in METRICS.items()}
    assert {name for names in series.values() for name in names} == set(shown)
    read = {reading.name for panel in PANELS for target in panel["targets"] for reading in readings(target["expr"])}
    assert not [name for name, names in series.items() if not read.intersection(names)]
    for name, spec in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        row = f"| `{name}` | {spec.kind} | {labels} | {spec.help} |"
        assert row in PAGE, f"docs/monitoring.md misses the row\n{row}"


def test_the_dashboard_can_be_imported():
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] and DASHBOARD["title"]
    source, *variables = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    own = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == own for each in (*variables, *PANELS))
    places = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not places & cells, panel["title"]
        places |= cells
    for panel in PANELS:
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"] == own for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete_and_the_docs_say_what_to_do(rule):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Blip3o\w+", rule["alert"])
    assert "for" not in rule or parse_duration(rule["for"]).total_seconds() >= 60
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert all(text.endswith(".") for text in rule["annotations"].values())
    assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in PAGE


def test_alerts_have_names_of_their_own():
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
