"""Several runs on one page: their last figures side by side, their curves over each other, and what differs in recipes.

Like the page of a run, it shows what it is given, and computes only means, medians and sums over the rows.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.errors import ConfigError
from blip3o.evaluate.reports.curves import COLORS, Panel, draw_panels
from blip3o.evaluate.reports.html import page, percent, section, table, text
from blip3o.evaluate.reports.run import Row, RunRecord, line, speed_figures, wrapped
from blip3o.runs.recipes import diff_values

Figures = Mapping[str, str]

_FLOW_BINS = "validation/flow/"
_MISSING = "–"
# Where evaluation.json has the figures that are shown.
_EVALUATED = {
    "answers, three or more choices": ("understanding", "accuracy"),
    "answers, two choices": ("understanding", "two_way", "accuracy"),
    "own image found first (R@1)": ("generation", "r1"),
    "own image among five (R@5)": ("generation", "r5"),
    "scenes exactly as asked": ("scenes", "all_correct"),
}
# Columns of the rows that are drawn: title, unit, scale.
_CURVES = {
    "loss": ("loss", "", 1.0),
    "grad_norm": ("gradient norm", "", 1.0),
    "lr": ("learning rate", "", 1.0),
    "samples_per_second": ("samples a second", "1/s", 1.0),
    "data_wait": ("data wait", "s", 1.0),
    "mfu": ("MFU", "share of peak", 1.0),
    "memory_bytes": ("memory", "GB", 1e-9),
}
_REPRODUCIBLE = ("loss", "grad_norm", "lr")  # of these columns; the others are times


def render_comparison(runs: Sequence[RunRecord]) -> str:
    """The page as HTML. Raises `ConfigError` for more runs than there are colors, or a run that is named twice."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names) or len(names) > len(COLORS):
        raise ConfigError(f"{', '.join(names)}: name each run once, and {len(COLORS)} at most")
    return page(
        f"Runs {', '.join(names)}",
        "Several runs side by side.",
        [
            section("Figures", _FIGURES_NOTE, _figure_table(runs)),
            section("Training", _CURVES_NOTE, _legend(names) + wrapped(draw_panels(_training_panels(runs)))),
            section("Validation", _VALIDATION_NOTE, wrapped(draw_panels(_validation_panels(runs)))),
            section("Recipes", "The values that differ; all others are the same.", _differing(runs)),
        ],
    )


_FIGURES_NOTE = (
    "Losses are means over the last tenth of the steps. Speed is the median of rank 0 without the first step, seconds "
    "are those of all steps. Validations are the last ones. Scores are those in each run's own folder of evaluation."
)
_CURVES_NOTE = "Every step, and the running mean. Losses of different stages or objectives do not compare."
_VALIDATION_NOTE = "Held-out samples, always with the same noise and times. The colors are those above."


def _figure_table(runs: Sequence[RunRecord]) -> str:
    """A row for each figure that a run has, a column for each run."""
    columns = [_figures(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[text(name), *(text(column.get(name, _MISSING)) for column in columns)] for name in names]
    return table(["", *(run.name for run in runs)], rows)


def _figures(run: RunRecord) -> Figures:
    done = run.rows[-1]["step"] + 1 if run.rows else 0
    state = "finished" if run.finished else "not finished"
    workers = {"workers": str(run.attempts[-1]["workers"])} if run.attempts else {}
    seconds = {"seconds of all steps": f"{sum(row['seconds'] for row in run.rows):.0f}"} if run.rows else {}
    return {
        "stage": run.recipe["stage"]["name"],
        "steps": f"{done} of {run.recipe['optim']['steps']}, {state}",
        **_losses(run.rows),
        **seconds,
        **{name: value for name, value in speed_figures(run.rows).items() if value != _MISSING},
        **workers,
        **_validated(run.validations),
        **_evaluated(run.evaluation or {}),
    }


def _losses(rows: Sequence[Row]) -> Figures:
    if not rows:
        return {}
    last = rows[-max(len(rows) // 10, 1) :]
    terms = sorted(name for name in last[-1] if name.startswith("loss/"))
    shown = ["loss", *(terms if len(terms) > 1 else [])]  # a single term is the loss
    return {name: f"{statistics.mean(row[name] for row in last if name in row):.4g}" for name in shown}


def _validated(validations: Sequence[Row]) -> Figures:
    if not validations:
        return {}
    last = validations[-1]
    names = [name for name in last if name.startswith("validation/") and not name.startswith(_FLOW_BINS)]
    return {name: f"{last[name]:.4g} after {last['step']} steps" for name in sorted(names)}


def _evaluated(scores: Mapping[str, Any]) -> Figures:
    found = {name: _at(scores, path) for name, path in _EVALUATED.items()}
    return {name: percent(value) for name, value in found.items() if value is not None}


def _at(scores: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = scores
    for key in path:
        found = (found or {}).get(key)
    return found


def _legend(names: Sequence[str]) -> str:
    marks = zip(names, COLORS, strict=False)
    return "<p>" + " ".join(f'<b style="color:{color}">&#9632;</b> {text(name)}' for name, color in marks) + "</p>"


def _training_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    panels = []
    for column, (title, unit, scale) in _CURVES.items():
        # The first step compiles and warms up: its speed says nothing.
        first = 0 if column in _REPRODUCIBLE else 1
        lines = {run.name: line(run.rows[first:], column, scale) for run in runs}
        panels.append(Panel(title=title, unit=unit, lines=lines, runs=True))
    return panels


def _validation_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    found = {name for run in runs for row in run.validations for name in row if name.startswith("validation/")}
    shown = sorted(name for name in found if not name.startswith(_FLOW_BINS) and name != "validation/loss")
    curves = {name: {run.name: line(run.validations, name) for run in runs} for name in shown}
    return [
        Panel(title=name.removeprefix("validation/"), unit="loss", lines=lines, runs=True)
        for name, lines in curves.items()
    ]


def _differing(runs: Sequence[RunRecord]) -> str:
    found = diff_values(*(run.recipe for run in runs))
    rows = [[text(key), *map(text, values)] for key, values in found.items() if key != "run.name"]
    return table(["", *(run.name for run in runs)], rows, words=True) if rows else ""
