"""What holds for every dashboard of Grafana and every alert of Prometheus in the repository."""

import json
import re

import yaml
from promql_parser import parse_duration

from tests.docs_commands import ROOT
from tests.serve.promql import readings

FOLDER = ROOT / "serve" / "monitoring"


class Board:
    """A dashboard and the alerts that belong to it: `prefix` begins the names of both files."""

    def __init__(self, prefix, page):
        self.page = (ROOT / "docs" / page).read_text()
        self.dashboard = json.loads((FOLDER / f"{prefix}dashboard.json").read_text())
        self.panels = [panel for panel in self.dashboard["panels"] if panel["type"] != "row"]
        groups = yaml.safe_load((FOLDER / f"{prefix}alerts.yaml").read_text())["groups"]
        self.alerts = [rule for group in groups for rule in group["rules"]]
        self.queries = [
            *((it["title"], target["expr"], target["legendFormat"]) for it in self.panels for target in it["targets"]),
            *((rule["alert"], rule["expr"], json.dumps(rule["annotations"])) for rule in self.alerts),
        ]


def require_shown(shown, title, expression, text):
    """Asserts that an expression reads series and labels that are shown, and that its text uses labels that it keeps.

    `shown` has the values of each label by series' name.
    """
    kept = set()
    for reading in readings(expression):
        assert reading.name in shown, f"{title}: nothing shows {reading.name}"
        labels = shown[reading.name]
        assert {label for label, *_ in reading.matchers} <= labels.keys(), title
        assert (reading.kept or set()) <= labels.keys(), title
        assert all(value in labels[label] for label, kind, value in reading.matchers if kind == "Equal"), title
        kept |= labels.keys() if reading.kept is None else reading.kept
    assert {*re.findall(r"{{(\w+)}}", text), *re.findall(r"\$labels\.(\w+)", text)} <= kept, title


def require_importable(board):
    """Asserts that Grafana can import the dashboard, and that each panel has its place, a unit and a description."""
    dashboard, panels = board.dashboard, board.panels
    everything = dashboard["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert dashboard["id"] is None and dashboard["uid"] and dashboard["title"]
    source, *variables = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    own = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == own for each in (*variables, *panels))
    places = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not places & cells, panel["title"]
        places |= cells
    for panel in panels:
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"] == own for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


def require_complete(rule, page):
    """Asserts that an alert has a name, a severity and sentences, and that the page has a row on it."""
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Blip3o\w+", rule["alert"])
    assert "for" not in rule or parse_duration(rule["for"]).total_seconds() >= 60
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert all(text.endswith(".") for text in rule["annotations"].values())
    assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in page
