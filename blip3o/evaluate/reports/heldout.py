"""The report of a held-out evaluation: one self-contained HTML file, every figure next to chance and its controls.

It opens with what was learned, in words and pictures, then comes how it was trained; recipes are folded away. It shows
what it is given and computes nothing: the figures of evaluation.json, and curves of the runs' metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from blip3o.evaluate.metrics.understanding import AnswerRecord
from blip3o.evaluate.reports.curves import loss_curves
from blip3o.evaluate.reports.html import bar, folded, page, percent, picture, section, statements, table, text

EXAMPLES = 12
Scores = Mapping[str, Any]
Metrics = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class AnsweredPicture:
    """One question with its reply, and the image that it is about."""

    record: AnswerRecord
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class ReportImages:
    """The images of a report: the grid of drawings, and answered questions (the first dozen are shown)."""

    grid: Image.Image
    answered: tuple[AnsweredPicture, ...]


def write_report(
    path: Path, *, summary: Scores, metrics: Metrics, images: ReportImages, recipes: Mapping[str, str] | None = None
) -> None:
    """Writes the page of `render_report` to a local file, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page_text = render_report(summary=summary, metrics=metrics, images=images, recipes=recipes)
    path.write_text(page_text, encoding="utf-8")


def render_report(
    *, summary: Scores, metrics: Metrics, images: ReportImages, recipes: Mapping[str, str] | None = None
) -> str:
    """The page as HTML.

    `summary` is what evaluation.json holds (`understanding`, `generation`, `scenes`, `provenance`, and if it has them
    `held_out` and `reasons`); its `scenes` may be
    a suite's figures (`jobs.evaluation.demo_scores`) that hold those as `by_parts`. It may add `stages`: {name: a
    stage's summary}. `metrics` are each stage's rows with `step` and `loss`; without rows there are no curves.
    `recipes` are the resolved recipes as text, by stage.
    """
    stages = summary.get("stages", {})
    parts = [
        statements(_learned(summary)),
        section("Drawings", _DRAWINGS_NOTE, picture(images.grid, alt="grid of drawings", css="grid")),
        section("Answers", _ANSWERS_NOTE, _cards(images.answered[:EXAMPLES])),
        section("Figures", _FIGURES_NOTE, _headline(summary)),
        section("By kind, source and family", _DETAILS_NOTE, _details(summary)),
        section("Not measured", "Figures without a value, and why.", _reasons(summary.get("reasons", {}))),
        section("Training", _TRAINING_NOTE, _curves(metrics) + _stage_table(stages)),
        folded("Provenance", "What these figures were made from.", _provenance(summary.get("provenance", {}))),
        folded("Recipes", "As they were resolved: every value.", _recipes(recipes or {})),
    ]
    note = summary.get("held_out", {}).get("note", "")
    return page("BLIP3-o: what was trained, and what it can do", f"{_INTRO} {note}", parts)


def _learned(summary: Scores) -> list[tuple[str, str]]:
    """The main figures as sentences, each with its chance and its controls."""
    answers, retrieval, scenes = summary.get("understanding"), summary["generation"], summary.get("scenes")
    lines = []
    if answers is not None and answers["accuracy"] is not None:
        line = (
            f"{_bold(answers['accuracy'])} of {answers['n']} answers about pictures (three or more choices) are right."
        )
        lines.append((line, _compared({"by chance": answers["chance"], "about other pictures": answers["shuffled"]})))
    if scenes is not None:
        exact = scenes["overall" if "by_parts" in scenes else "all_correct"]
        others = {"for other prompts": scenes["shuffled"], "an untrained model": scenes.get("untrained")}
        line = f"{_bold(exact)} of {scenes['n']} drawings show exactly what was asked."
        lines.append((line, _compared({**others, "the decoder allows": scenes["upper_bound"]})))
    for k, place in ((5, "among the nearest five"), (1, "before all others")):
        if retrieval.get(f"r{k}") is not None:
            line = f"{_bold(retrieval[f'r{k}'])} of {retrieval['n']} drawings find their own picture {place}."
            others = {"by chance": retrieval[f"chance_r{k}"], "for other prompts": retrieval[f"shuffled_r{k}"]}
            lines.append((line, _compared(others)))
    return lines


def _bold(share: float | None) -> str:
    return f"<strong>{percent(share)}</strong>"


def _compared(figures: Mapping[str, float | None]) -> str:
    return "; ".join(f"{text(name)} {percent(value)}" for name, value in figures.items() if value is not None)


_INTRO = "Understanding and generation by one model, scored on samples that are held out from training."
_FIGURES_NOTE = (
    "The tick on a bar is the control (the same questions with other pictures, the same drawings with other captions), "
    "or chance where there is none. The limit is what true features give through the decoder. "
    "Retrieval is in the model's own feature space and scenes have their own judge, so these figures compare with "
    "chance and between runs, not with published benchmarks."
)
_DRAWINGS_NOTE = (
    "The first held-out prompts in the order of the draw; of scenes, one of each family. A set of whose drawings fewer "
    "than half find their own image first shows its questions instead. Within a set, nothing is chosen by its result."
)
_ANSWERS_NOTE = "The first held-out questions in the order of the draw, one of each kind in turn."
_DETAILS_NOTE = (
    "Closed questions with at least three choices, then two-way and open ones; retrieval within each source."
)
_TRAINING_NOTE = (
    "Loss of every step, and its running mean. Data wait is the share of step time spent waiting for samples."
)


def _headline(summary: Scores) -> str:
    rows = [
        *_answer_rows(summary.get("understanding")),
        *_retrieval_rows(summary["generation"]),
        *_scene_rows(summary.get("scenes")),
    ]
    return table(_COLUMNS, rows)


_COLUMNS = ("", "model", "", "chance", "control", "limit", "n")


def _row(name: str, value: float | None, *, n: int, **others: float | None) -> list[str]:
    chance, control, limit = (others.get(key) for key in ("chance", "control", "limit"))
    mark = chance if control is None else control
    return [
        name,
        f"<strong>{percent(value)}</strong>",
        bar(value, mark),
        *map(percent, (chance, control, limit)),
        str(n),
    ]


def _answer_rows(scores: Scores | None) -> list[list[str]]:
    if scores is None:
        return []
    low, high = scores["interval"] or (None, None)
    notes = f"95 % interval {percent(low)} to {percent(high)}; {scores['n_unparsed']} replies outside the choices"
    name = f"Answers, three or more choices<br><small>{notes}</small>"
    two_way, free = scores["two_way"], scores["open"]
    return [
        _row(name, scores["accuracy"], chance=scores["chance"], control=scores["shuffled"], n=scores["n"]),
        _row("Answers, two choices", two_way["accuracy"], chance=two_way["chance"], n=two_way["n"]),
        _row("Answers, open", free["accuracy"], n=free["n"]),
    ]


def _retrieval_rows(scores: Scores) -> list[list[str]]:
    return [
        _row(
            f"Own image found {place}",
            scores[f"r{k}"],
            chance=scores[f"chance_r{k}"],
            control=scores[f"shuffled_r{k}"],
            n=scores["n"],
        )
        for k, place in ((1, "first (R@1)"), (5, "among five (R@5)"))
        if scores[f"r{k}"] is not None
    ]


def _scene_rows(scores: Scores | None) -> list[list[str]]:
    if scores is None:
        return []
    proved, scores = ([_proved_row(scores)], scores["by_parts"]) if "by_parts" in scores else ([], scores)
    whole = _row(
        f"Scenes exactly as asked<br><small>the judge accepts {percent(scores['judge'])} of the true pictures</small>",
        scores["all_correct"],
        control=scores["shuffled"],
        limit=scores["upper_bound"],
        n=scores["n"],
    )
    return [
        *proved,
        whole,
        _row("Scenes: shapes", scores["shape"], n=scores["n"]),
        _row("Scenes: number of objects", scores["count"], n=scores["n"]),
        _row("Scenes: colors, where stated", scores["color"], n=scores["n_color"]),
        _row("Scenes: relation, where stated", scores["relation"], n=scores["n_relation"]),
    ]


def _proved_row(scores: Scores) -> list[str]:
    note = f"mean of six families; untrained {percent(scores['untrained'])}"
    return _row(
        f"Scenes by GenEval's rules<br><small>{note}</small>",
        scores["overall"],
        control=scores["shuffled"],
        limit=scores["upper_bound"],
        n=scores["n"],
    )


def _details(summary: Scores) -> str:
    rows: list[list[str]] = []
    answers = summary.get("understanding")
    if answers is not None:
        groups = {"by kind": answers["by_kind"], "by source": answers["by_source"]}
        groups |= {"two choices": answers["two_way"]["by_kind"], "open": answers["open"]["by_kind"]}
        rows += [
            _row(f"Answers {group}: {text(name)}", tally["accuracy"], chance=tally["chance"], n=tally["n"])
            for group, tallies in groups.items()
            for name, tally in tallies.items()
        ]
    for name, figures in summary["generation"]["by_source"].items():
        found = {"chance": figures["chance_r1"], "control": figures["shuffled_r1"]}
        if figures["r1"] is not None:
            rows.append(_row(f"R@1 within {text(name)}", figures["r1"], n=figures["n"], **found))
    scenes = summary.get("scenes")
    families = {} if scenes is None else scenes.get("by_parts", scenes)["families"]
    rows += [_row(f"Scenes: {text(name)}", family["all_correct"], n=family["n"]) for name, family in families.items()]
    return table(_COLUMNS, rows)


def _cards(answered: Sequence[AnsweredPicture]) -> str:
    cards = "".join(_card(item) for item in answered)
    return f'<div class="cards">{cards}</div>' if cards else ""


def _card(item: AnsweredPicture) -> str:
    record = item.record
    mark = "right" if record.correct else "wrong"
    truth = "" if record.correct else f'<div class="truth">true answer: {text(record.answer)}</div>'
    return (
        f'<div class="card">{picture(item.image, alt=record.uid)}<div><div class="asked">{text(record.question)}</div>'
        f'<div class="{mark}">{text(record.reply)}</div>{truth}</div></div>'
    )


def _curves(metrics: Metrics) -> str:
    svg = loss_curves(metrics)
    return f'<div class="curves">{svg}</div>' if svg else ""


def _stage_table(stages: Scores) -> str:
    if not stages:
        return ""
    head = ["stage", "steps", "first loss", "last loss", "samples/s", "data wait", "seconds", "workers", "ZeRO"]
    return table(head, [_stage_row(name, stage) for name, stage in stages.items()])


def _stage_row(name: str, stage: Scores) -> list[str]:
    losses = [f"{stage[key]:.4g}" for key in ("first_loss", "last_loss")]
    times = [f"{stage['samples_per_second']:.1f}", percent(stage["data_wait_fraction"]), f"{stage['seconds']:.0f}"]
    return [text(name), str(stage["steps"]), *losses, *times, str(stage["workers"]), str(stage["zero_stage"])]


def _reasons(reasons: Mapping[str, str]) -> str:
    return table([], [[text(name), text(reason)] for name, reason in reasons.items()], words=True) if reasons else ""


def _provenance(values: Scores) -> str:
    return table([], [[text(name), text(value)] for name, value in values.items()], words=True)


def _recipes(recipes: Mapping[str, str]) -> str:
    return "".join(folded(name, "", f"<pre>{text(recipe)}</pre>") for name, recipe in recipes.items())
