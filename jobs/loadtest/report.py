"""A finished load test as text of 80 columns and as a page of HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.evaluate.reports.html import page, section, table, text
from jobs.loadtest.client import Outcome
from jobs.loadtest.plots import cumulative, legend, scatter

Result = Mapping[str, Any]

_COLUMNS = ("requests", "failed", "mean s", "p50", "p95", "p99", "1st p50")
_LABEL = 24
_WIDTHS = (9, 7, 8, 8, 8, 8, 8)
_KEPT = {"latency_s": "were answered", "first_s": "had their first part"}


def as_text(result: Result) -> str:
    """The figures, in lines of at most 80 columns."""
    load = result["load"]
    lines = ["", f"{result['url']}: {_counted(result)}", "", _line("", _COLUMNS)]
    rows = {"all": load, **result["kinds"], **{f"alone: {label}": row for label, row in result["alone"].items()}}
    lines += [_line(label, _cells(row)) for label, row in rows.items()]
    lines += ["", _throughput(load), *_objective(result)]
    lines += [f"failed: {count} x {error}" for error, count in load["errors"].items()]
    for stage, row in (result["stages"] or {}).get("passes", {}).items():
        lines.append(f"stage {stage}: {row['passes']} passes, {1000 * row['mean_s']:.1f} ms each")
    if result["stages"] and result["stages"]["rows_mean"]:
        lines.append(f"rows in a denoising step: {result['stages']['rows_mean']:g} on average")
    for kind, cache in (result["stages"] or {}).get("cache", {}).items():
        lines.append(f"cache of {kind}: {cache['hits']} hits, {cache['misses']} misses")
    if result["stages"] and not result["stages"]["complete"]:
        lines.append("a replica ended during the load: its passes are not counted")
    return "\n".join(lines)


def _counted(result: Result) -> str:
    load = result["load"]
    words = f"{load['requests']} requests in {result['seconds']:.1f} s, {load['failed']} failed"
    return f"{words}; interrupted, {result['unfinished']} unfinished" if result["interrupted"] else words


def _throughput(load: Result) -> str:
    rates = ("requests", "images", "tokens")
    return ", ".join(f"{load[f'{what}_per_s']:g} {what}/s" for what in rates if load[f"{what}_per_s"])


def _objective(result: Result) -> list[str]:
    asked = [f"{_KEPT[name]} within {value:g} s" for name, value in result["objectives"].items() if value is not None]
    if not asked or result["load"]["slo"] is None:
        return []
    return [f"{100 * result['load']['slo']:.1f} % of the requests {' and '.join(asked)}"]


def _line(label: str, cells: Sequence[str]) -> str:
    """A row; a label that is too long for its column has a line to itself."""
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return f"{label:{_LABEL}}{row}" if len(label) <= _LABEL else f"{label}\n{'':{_LABEL}}{row}"


def _cells(row: Result) -> list[str]:
    whole, first = row["latency_s"] or {}, row["first_s"] or {}
    values = [whole.get(name) for name in ("mean", "p50", "p95", "p99")] + [first.get("p50")]
    return [str(row["requests"]), str(row["failed"]), *("-" if value is None else f"{value:.3f}" for value in values)]


def as_page(result: Result, outcomes: Sequence[Outcome]) -> str:
    """The figures with plots; the page loads nothing from elsewhere."""
    labels = sorted({outcome.label for outcome in outcomes})
    answered = {label: [each for each in outcomes if each.label == label and not each.error] for label in labels}
    failed = [(each.sent, each.latency) for each in outcomes if each.error]
    names = legend(labels)
    whole = {label: [each.latency for each in found] for label, found in answered.items()}
    firsts = {
        label: [each.to_first for each in found if each.to_first is not None] for label, found in answered.items()
    }
    over_time = {label: [(each.sent, each.latency) for each in found] for label, found in answered.items()}
    objectives = result["objectives"]
    rows = {"all": result["load"], **result["kinds"]}
    alone = [[text(label), *_cells(row)] for label, row in result["alone"].items()]
    head = ["", *_COLUMNS]
    sections = [
        section("Latency", "From when a request was due to its last byte, seconds.", _table(head, rows)),
        section("Over time", "A dot is an answer, a cross an error.", names + _time_plot(over_time, failed)),
        section(
            "Answered within",
            "The share of the answers that came within x seconds.",
            names + _shares(whole, objectives["latency_s"]),
        ),
        section(
            "First preview or token",
            "The same for the first part of requests that stream.",
            names + _shares(firsts, objectives["first_s"]) if any(firsts.values()) else "",
        ),
        section(
            "Low load",
            "The same kinds of requests, one at a time, before the load.",
            table(head, alone) if alone else "",
        ),
        section("Stages", "From the server's /metrics, during the load.", _stages(result["stages"])),
        section("Errors", "By class.", _errors(result["load"]["errors"])),
        section("Options", "Those that have a value.", _options(result["options"])),
    ]
    note = f"{_counted(result)}. {_throughput(result['load'])}. {' '.join(_objective(result))}"
    return page(f"Load test of {result['url']}", note, sections)


def _table(head: Sequence[str], rows: Mapping[str, Result]) -> str:
    return table(head, [[text(label), *_cells(row)] for label, row in rows.items()])


def _time_plot(points: Mapping[str, Sequence[tuple[float, float]]], failed: Sequence[tuple[float, float]]) -> str:
    return scatter(points, "sent at, seconds", "latency, seconds", marks=failed)


def _shares(values: Mapping[str, Sequence[float]], mark: float | None) -> str:
    return cumulative(values, "seconds", mark=mark)


def _stages(stages: Result | None) -> str:
    if not stages or not stages["passes"]:
        return ""
    rows = [
        [text(name), str(row["passes"]), f"{1000 * row['mean_s']:.1f}", f"{row['seconds']:.1f}"]
        for name, row in stages["passes"].items()
    ]
    cache = [
        f"cache of {text(kind)}: {each['hits']} hits, {each['misses']} misses" for kind, each in stages["cache"].items()
    ]
    words = [*cache, f"{stages['rows_mean']:g} rows in a denoising step on average" if stages["rows_mean"] else ""]
    return table(["stage", "passes", "ms each", "seconds"], rows) + f"<p>{'; '.join(filter(None, words))}</p>"


def _errors(errors: Mapping[str, int]) -> str:
    return table(["error", "requests"], [[text(name), str(count)] for name, count in errors.items()]) if errors else ""


def _options(options: Mapping[str, Any]) -> str:
    rows = [[text(name), text(value)] for name, value in options.items() if value is not None]
    return table((), rows, words=True)
