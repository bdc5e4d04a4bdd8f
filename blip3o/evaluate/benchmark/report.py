"""The stage report: writes report.html, and report.json with the same figures."""

from collections.abc import Iterable
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import DataError
from blip3o.evaluate.benchmark.folder import SuiteFolder, sha256_of
from blip3o.evaluate.benchmark.plan import Echo, Plan, silent
from blip3o.evaluate.benchmark.rows import read_json, write_json
from blip3o.evaluate.records import Item, Judgement
from blip3o.evaluate.reports.published_scores import PROTOCOLS, PublishedScore, scores_of
from blip3o.evaluate.reports.suites import Example, PublishedRow, SuiteResult, render_suites
from blip3o.evaluate.suites.registry import SuiteSpec

EXAMPLES = 6  # best and worst samples of a suite


def report(plan: Plan, echo: Echo = silent) -> None:
    """Writes the report and echoes where it is. Raises `DataError` where score did not run."""
    results = [_result(plan, spec) for spec in plan.suites]
    uri = storage.join(plan.out, "target.json")
    target = read_json(uri) if storage.exists(uri) else {}
    page = render_suites(results, target=target)
    storage.write_bytes(storage.join(plan.out, "report.html"), page.encode(errors="replace"))
    suites = {result.score["suite"]: {**result.score, "cost": result.cost} for result in results}
    write_json(storage.join(plan.out, "report.json"), {"target": target, "suites": suites})
    echo(f"written to {plan.out}: report.html, report.json")


def _result(plan: Plan, spec: SuiteSpec) -> SuiteResult:
    folder = plan.folder(spec)
    best, worst = _examples(folder, spec)
    return SuiteResult(
        score=_read_score(plan.out, spec),
        cost=read_json(folder.file("cost.json")),
        best=best,
        worst=worst,
        history=tuple((uri, _read_score(uri, spec)) for uri in plan.compare),
        published=tuple(map(_published, scores_of(spec.name))),
        best_category=spec.best_category,
    )


def _published(score: PublishedScore) -> PublishedRow:
    protocol = "; ".join((PROTOCOLS[score.suite], *score.flags))
    return PublishedRow(model=score.model, value=f"{score.value:g}", protocol=protocol, source=score.source)


def _read_score(out: str, spec: SuiteSpec) -> dict[str, Any]:
    uri = storage.join(out, spec.name, "score.json")
    if not storage.exists(uri):
        raise DataError(f"{uri} does not exist: run --stage score first")
    return read_json(uri)


_Graded = tuple[float, Judgement, str]  # grade, judgement, and sha256 of the file that it is about


def _examples(folder: SuiteFolder, spec: SuiteSpec) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The first samples with the highest grades, and the first with the lowest; none appears in both."""
    items = {item.key: item for item in folder.read_items()}
    graded = list(_graded(folder, spec, items))
    if not graded:
        return (), ()

    def examples(found: Iterable[_Graded], *, right: bool) -> tuple[Example, ...]:
        shown = (_example(folder, spec, items[one.key], one, sum_then, right=right) for _, one, sum_then in found)
        return tuple(one for one in shown if one is not None)

    # Sorting keeps equal grades in the order of the items. Where all grades are equal and between 0 and 1, no sample is
    # a best or a worst one.
    low, high = min(row[0] for row in graded), max(row[0] for row in graded)
    falling, rising = (sorted(graded, key=lambda row: sign * row[0]) for sign in (-1, 1))
    best = examples((row for row in falling[:EXAMPLES] if row[0] == 1 or row[0] > low), right=True)
    worst = examples((row for row in rising[:EXAMPLES] if row[0] == 0 or row[0] < high), right=False)
    return best, worst


def _graded(folder: SuiteFolder, spec: SuiteSpec, items: dict[str, Item]) -> Iterable[_Graded]:
    """The readable judgements on samples of these items that the suite can grade."""
    for sum_then, one in folder.read_judgements(folder.read_judge()):
        item = items.get(one.key)
        if item is None or one.value is None or one.sample not in range(item.samples):
            continue
        grade = spec.grade(item, one.value)
        if grade is not None:
            yield grade, one, sum_then


def _example(
    folder: SuiteFolder, spec: SuiteSpec, item: Item, one: Judgement, sum_then: str, *, right: bool
) -> Example | None:
    """A judgement with its image; None where the file has changed since."""
    file = folder.file(folder.path(item, one.sample))
    if sha256_of([file]).get(file) != sum_then or one.value is None:
        return None
    image = open_image(storage.read_bytes(item.record["image"] if folder.asks else file))
    return Example(prompt=item.prompt, reason=spec.reason(one.value), right=right, image=image)
