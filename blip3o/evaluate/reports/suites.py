"""The report of benchmarks: one self-contained HTML file, every score next to what it rests on.

It shows what it is given and computes nothing. A score over only some of the items is shown as a dash, never as a
number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip3o.evaluate.reports.curves import Panel, draw_panels
from blip3o.evaluate.reports.html import bar, page, percent, picture, section, table, text

ScoreRow = Mapping[str, Any]  # what score.json holds


@dataclass(frozen=True, kw_only=True)
class Example:
    """One judged sample: the prompt, what the judge said, and the image (None: a question without one)."""

    prompt: str
    reason: str
    right: bool
    image: Image.Image | None


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published figure of another model: `value` as printed, how it was measured, and where it was published."""

    model: str
    value: str
    protocol: str
    source: str


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Everything that the report shows of a suite.

    `score` is its score.json; `history` the scores of other evaluations by label, in their order; `cost` its cost.json;
    `best_category` the best possible value of a category (None: that of the overall).
    """

    score: ScoreRow
    cost: Mapping[str, float]
    best: tuple[Example, ...] = ()
    worst: tuple[Example, ...] = ()
    history: tuple[tuple[str, ScoreRow], ...] = ()
    published: tuple[PublishedRow, ...] = ()
    best_category: float | None = None


def render_suites(results: Sequence[SuiteResult], *, target: Mapping[str, Any]) -> str:
    """The page as HTML; `target` is target.json."""
    sections = [
        section("Scores", _SCORES_NOTE, table(_SCORE_COLUMNS, [_score_row(result.score) for result in results])),
        section("Judges", "", table(_GROUND_COLUMNS, [_ground_row(result.score) for result in results], words=True)),
        *[_categories(result) for result in results],
        *[_examples(result) for result in results],
        section("Over checkpoints", _HISTORY_NOTE, _history(results)),
        section("Cost", _COST_NOTE, _costs(results)),
        *[_published(result) for result in results],
        section("Target", "What was evaluated.", _pairs(target)),
    ]
    return page("BLIP3-o: benchmarks", _INTRO, sections)


_INTRO = (
    "Every figure with its judge, its protocol and its coverage; what is not comparable with published ones says why."
)
_SCORES_NOTE = (
    "The tick on a bar is the control with exchanged captions where there is one. A dash is a score that is refused: "
    "some judgements are missing or could not be read, or for the reason in the last column under Judges."
)
_HISTORY_NOTE = "Overall scores of the evaluations named by --compare, in their order; the last one is this."
_COST_NOTE = "Seconds of workers, all together, and of the wall clock. What a killed run spent is not in it."
_SCORE_COLUMNS = ("", "overall", "", "95 % interval", "scored", "missing", "unread")
_GROUND_COLUMNS = ("", "judge", "protocol", "comparable with published figures")


def number(value: float | None, best: float | None = 1.0) -> str:
    """A score as text: a percentage if 1 is the best, otherwise four significant digits; a dash for None."""
    return percent(value) if value is None or best == 1 else f"{value:.4g}"


def _bar(value: float | None, best: float | None, mark: float | None = None) -> str:
    """A bar of the share of the best; none where lower is better."""
    if value is None or not best:
        return ""
    return bar(min(value / best, 1.0), None if mark is None else mark / best)


def _score_row(score: ScoreRow) -> list[str]:
    coverage, controls, best = score["coverage"], score.get("controls", {}), score["best"]
    interval = score.get("interval")
    low, high = interval or (None, None)
    notes = ", ".join(f"{name.replace('_', ' ')} {number(value, best)}" for name, value in controls.items())
    return [
        f"{text(score['suite'])}<br><small>{text(notes)}</small>",
        f"<strong>{number(score['overall'], best)}</strong>",
        _bar(score["overall"], best, controls.get("shuffled")),
        f"{number(low, best)} to {number(high, best)}" if interval else "–",
        f"{coverage['n_scored']} of {coverage['n_expected']}",
        str(coverage["n_missing"]),
        str(coverage["n_parse_failed"]),
    ]


def _ground_row(score: ScoreRow) -> list[str]:
    judge, why = score["judge"], "; ".join(score["why_not"])
    comparable = "yes" if score["comparable"] else f"no<br><small>{text(why)}</small>"
    who = " ".join(str(judge[name]) for name in ("id", "version", "source") if judge.get(name))
    return [text(score["suite"]), text(who), text(score["protocol"]), comparable]


def _categories(result: SuiteResult) -> str:
    score = result.score
    best = score["best"] if result.best_category is None else result.best_category
    rows = [[text(name), number(value, best), _bar(value, best)] for name, value in score["categories"].items()]
    return section(f"{score['suite']} by category", "", table(("", "score", ""), rows)) if rows else ""


def _examples(result: SuiteResult) -> str:
    cards = "".join(_card(example) for example in (*result.best, *result.worst))
    note = "The best-judged and the worst-judged of all, the first of each in the order of the items."
    content = f'<div class="cards">{cards}</div>' if cards else ""
    return section(f"{result.score['suite']}: best and worst", note, content)


def _card(example: Example) -> str:
    mark = "right" if example.right else "wrong"
    shown = "" if example.image is None else picture(example.image, alt=example.prompt)
    return (
        f'<div class="card">{shown}<div><div class="asked">{text(example.prompt)}</div>'
        f'<div class="{mark}">{text(example.reason)}</div></div></div>'
    )


def _history(results: Sequence[SuiteResult]) -> str:
    panels = []
    for result in results:
        rows = [*result.history, ("this", result.score)]
        points = [(float(place), row["overall"]) for place, (_, row) in enumerate(rows, start=1)]
        known = [(place, value) for place, value in points if value is not None]
        if result.history and known:
            panels.append(Panel(title=result.score["suite"], unit="overall", lines={"": known}, x="evaluation"))
    svg = draw_panels(panels)
    names = "; ".join(label for label, _ in next((result.history for result in results if result.history), ()))
    return f'<div class="curves">{svg}</div><p><small>{text(names)}</small></p>' if svg else ""


def _costs(results: Sequence[SuiteResult]) -> str:
    rows = []
    for result in results:
        files, seconds, wall = (result.cost.get(name, 0) for name in ("files", "seconds", "wall_seconds"))
        each = f"{seconds / files:.2f}" if files else "–"
        rows.append([text(result.score["suite"]), str(int(files)), f"{seconds:.1f}", each, f"{wall:.1f}"])
    return table(("", "files", "worker seconds", "seconds each", "wall seconds"), rows)


def _published(result: SuiteResult) -> str:
    rows = [[text(p.model), text(p.value), text(p.protocol), text(p.source)] for p in result.published]
    note = "As published, under the protocol named. Figures of different judges or protocols do not compare."
    content = table(("model", "score", "protocol", "source"), rows, words=True) if rows else ""
    return section(f"{result.score['suite']}: published by others", note, content)


def _pairs(values: Mapping[str, Any]) -> str:
    return table([], [[text(name), text(value)] for name, value in values.items()], words=True)
