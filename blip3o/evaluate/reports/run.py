"""The report of one training run, finished or not: curves, speed, validations, drawings and events as one HTML file.

It shows what it is given, and computes only medians and sums over the rows.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from blip3o.config.load import flattened
from blip3o.evaluate.reports.curves import Panel, draw_panels
from blip3o.evaluate.reports.html import folded, page, percent, picture, section, table, text

Row = Mapping[str, Any]

_FLOW_BINS = "validation/flow/"
_MAX_POINTS = 2000  # of a curve: more would make the page larger but no line finer
_SHOWN_GRIDS = 6


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a run wrote: rows of steps, validations and drawings by step, events and attempts by time.

    `evaluation` are the figures of an evaluation of it; None without one.
    """

    name: str
    recipe: Mapping[str, Any]
    rows: Sequence[Row]
    validations: Sequence[Row]
    drawings: Mapping[int, Image.Image]
    events: Sequence[Row]
    attempts: Sequence[Row]
    finished: bool
    evaluation: Mapping[str, Any] | None = None


def render_run(run: RunRecord) -> str:
    """The page as HTML. A run without any row yet has no curves."""
    steps, stage = run.recipe["optim"]["steps"], run.recipe["stage"]["name"]
    done = run.rows[-1]["step"] + 1 if run.rows else 0
    state = "finished" if run.finished else "not finished"
    note = f"Stage {stage}, {done} of {steps} steps, {state}."
    return page(
        f"Run {run.name}",
        note,
        [
            section("Drawings", _DRAWINGS_NOTE, _drawings(run.drawings)),
            section("Training", _TRAINING_NOTE, wrapped(draw_panels(_training_panels(run.rows)))),
            section("Speed", _SPEED_NOTE, _speed(run.rows) + wrapped(draw_panels(_speed_panels(run.rows)))),
            section("Where the operations go", _PARTS_NOTE, _parts(run.rows)),
            section("Validation", _VALIDATION_NOTE, wrapped(draw_panels(_validation_panels(run.validations)))),
            section("Events", "Starts of the workers, and what went wrong.", _events(run)),
            folded("Recipe", "As it was resolved: every value.", _recipe(run.recipe)),
        ],
    )


_TRAINING_NOTE = "Every step, and the running mean. Losses are means over the global batch."
_SPEED_NOTE = "Of rank 0; the first step, which compiles and warms up, is left out of the medians."
_PARTS_NOTE = "Floating-point operations of a step's parts, forward and backward, with those on padding; medians."
_VALIDATION_NOTE = (
    "Held-out samples, always with the same noise and times. A flow's loss by bins of the noise level: from light "
    "(little noise) to dark (pure noise)."
)
_DRAWINGS_NOTE = "The same held-out prompts and seeds after each number of steps; the newest first."


def line(rows: Sequence[Row], column: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """A column over steps as points of a curve, `_MAX_POINTS` of them at most."""
    points = [(float(row["step"]), row[column] * scale) for row in rows if column in row]
    return points[:: -(-len(points) // _MAX_POINTS) or 1]


def _single(title: str, unit: str, points: list[tuple[float, float]]) -> Panel:
    return Panel(title=title, unit=unit, lines={"": points})


def _training_panels(rows: Sequence[Row]) -> list[Panel]:
    terms = sorted({name for row in rows for name in row if name.startswith("loss/")})
    shown = terms if len(terms) > 1 else []  # a single term is the loss
    columns = {"loss": "loss", **{name.removeprefix("loss/"): name for name in shown}}
    columns |= {"gradient norm": "grad_norm", "learning rate": "lr"}
    return [_single(title, "", line(rows, column)) for title, column in columns.items()]


def _speed_panels(rows: Sequence[Row]) -> list[Panel]:
    rows = rows[1:]
    return [
        _single("samples a second", "1/s", line(rows, "samples_per_second")),
        _single("data wait", "s", line(rows, "data_wait")),
        _single("MFU", "share of peak", line(rows, "mfu")),
        _single("padding", "share of operations", line(rows, "padding")),
        _single("memory", "GB", line(rows, "memory_bytes", 1e-9)),
    ]


def _validation_panels(validations: Sequence[Row]) -> list[Panel]:
    names = sorted({name for row in validations for name in row if name.startswith("validation/")})
    plain = [name for name in names if not name.startswith(_FLOW_BINS) and name != "validation/loss"]
    bins = sorted((name for name in names if name.startswith(_FLOW_BINS)), key=_lower_edge)
    panels = [_single(name.removeprefix("validation/"), "loss", line(validations, name)) for name in plain]
    lines = {name.removeprefix(_FLOW_BINS): line(validations, name) for name in bins}
    return [*panels, Panel(title="flow by noise level", unit="loss", lines=lines)] if bins else panels


def _lower_edge(name: str) -> float:
    return float(name.removeprefix(_FLOW_BINS).split("-")[0])


def _speed(rows: Sequence[Row]) -> str:
    cells = speed_figures(rows)
    return table(list(cells), [list(cells.values())]) if cells else ""


def speed_figures(rows: Sequence[Row]) -> dict[str, str]:
    """How fast a run was, by name; empty before its second step. The first step is left out."""
    rows = rows[1:]
    if not rows:
        return {}
    seconds = sum(row["seconds"] for row in rows)
    stall = sum(row.get("checkpoint_stall", 0.0) for row in rows)
    return {
        "seconds a step": f"{statistics.median(row['seconds'] for row in rows):.3f}",
        "samples a second": f"{statistics.median(row['samples_per_second'] for row in rows):.1f}",
        "tokens a second": _median(rows, "tokens_per_second", "{:.0f}"),
        "MFU": _median(rows, "mfu", "{:.1%}"),
        "padding": _median(rows, "padding", "{:.1%}"),
        "data wait": percent(sum(row["data_wait"] for row in rows) / seconds),
        "checkpoint stall": percent(stall / (seconds + stall)),
        "peak memory": f"{max(row['memory_bytes'] for row in rows) / 1e9:.2f} GB",
    }


def _median(rows: Sequence[Row], column: str, form: str) -> str:
    values = [row[column] for row in rows if column in row]
    return form.format(statistics.median(values)) if values else "–"


def _parts(rows: Sequence[Row]) -> str:
    names = sorted({name for row in rows for name in row if name.startswith("flops/")})
    if not names:
        return ""
    flops = {name: statistics.median(row.get(name, 0) for row in rows) for name in names}
    whole = sum(flops.values())
    ordered = sorted(names, key=lambda name: -flops[name])
    shown = [
        [text(name.removeprefix("flops/")), f"{flops[name] / 1e9:.3g}", percent(flops[name] / whole)]
        for name in ordered
    ]
    return table(["part", "GFLOP a step", "share"], shown)


def _drawings(drawings: Mapping[int, Image.Image]) -> str:
    newest = sorted(drawings, reverse=True)[:_SHOWN_GRIDS]
    return "".join(
        f"<p>after {step} steps</p>" + picture(drawings[step], alt=f"drawings after {step} steps", css="grid")
        for step in newest
    )


def _events(run: RunRecord) -> str:
    started = [
        (
            it["began"],
            "start",
            f"{it['workers']} workers; step {it['step']} done {it['first_step'] - it['began']:.1f} s later",
        )
        for it in run.attempts
    ]
    noted = [(it["time"], it["kind"], f"step {it['step']}: {it['message']}") for it in run.events]
    rows = [[_moment(time), text(kind), text(words)] for time, kind, words in sorted(started + noted)]
    return table(["time (UTC)", "what", ""], rows, words=True) if rows else ""


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _recipe(recipe: Mapping[str, Any]) -> str:
    return table([], [[text(key), text(value)] for key, value in flattened(recipe).items()], words=True)


def wrapped(svg: str) -> str:
    """Curves as an element of the page; "" without any."""
    return f'<div class="curves">{svg}</div>' if svg else ""
