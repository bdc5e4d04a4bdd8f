"""The stages that judge: judge asks a judge about every file, score counts the findings, report shows them.

A finding is kept with the sum of the file that it is about and with the judge's own words. It is not asked for again
while file and judge stay the same; a finding that could not be read is, but not one that a content filter refused (it
would again), unless the user says so. Another judge's findings stay beside it, and
the score counts those of the judge that judged last alone.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

from blip3o.data import storage
from blip3o.data.decode import open_image
from blip3o.errors import DataError, one_line
from blip3o.evaluate.judge_options import JudgeOptions
from blip3o.evaluate.peers import PROTOCOLS, Peer, peers_of
from blip3o.evaluate.replies import REFUSED
from blip3o.evaluate.suite import Coverage, Item, Judgement
from blip3o.evaluate.suite_report import Example, Published, SuiteResult, number, render_suites
from jobs.evaluation.files import Made, Place, Rows, read_rows, write_json, write_rows
from jobs.evaluation.judges import Finder, Wanted
from jobs.evaluation.making import shown
from jobs.evaluation.plan import Plan
from jobs.evaluation.registry import Entry

logger = logging.getLogger(__name__)

TOGETHER = 32  # findings between two writings
SHOWN = 6  # best files of a suite in the report, and worst ones


def judge(plan: Plan) -> None:
    """Judges every file of every suite and of its controls.

    Raises `ConfigError` where a suite needs a judge that was not named, `DataError` where generate did not run.
    """
    for entry, finder in zip(plan.entries, find_judges(plan), strict=True):
        for control in ("", *_controls(plan, entry)):
            _judge(plan.place(entry, control), finder, retry_refused=plan.retry_refused)


def find_judges(plan: Plan) -> list[Finder]:
    """The judge of each suite. Raises `ConfigError` where it needs one that was not named, or that is not there."""
    return [entry.finder(_wanted(plan, entry)) for entry in plan.entries]


def _wanted(plan: Plan, entry: Entry) -> Wanted:
    name = entry.suite.name
    return Wanted(
        spec=plan.judges.get(name),
        items=plan.place(entry).read_items(),
        source=plan.sources.get(name),
        options=plan.judge_options.get(name, JudgeOptions()),
    )


def _controls(plan: Plan, entry: Entry) -> list[str]:
    """The controls that were drawn."""
    return storage.list_folders(plan.place(entry).file("controls"))


def _judge(place: Place, finder: Finder, *, retry_refused: bool) -> None:
    items = {item.key: item for item in place.read_items()}
    made = [one for one in place.read_made() if one.sha256]
    identity = asdict(finder.judge)
    others, kept = _earlier(place, identity, retry_refused=retry_refused)
    rows = [kept[place_of] for one in made if (place_of := (one.key, one.sample, one.sha256)) in kept]
    todo = [one for one in made if (one.key, one.sample, one.sha256) not in kept]
    write_json(place.file("judge.json"), identity)
    uri = place.file("judgements.jsonl")
    try:
        with shown(f"judge: {place.suite.name} {place.control}".rstrip(), len(todo)) as advance:
            for one, finding in _found(place, finder, items, todo):
                advance()
                if finding is None:  # made elsewhere, and not of this file
                    continue
                rows.append({**asdict(finding), "sha256": one.sha256, "judge": identity})
                if len(rows) % TOGETHER == 0:
                    write_rows(uri, [*others, *rows])
        _tell(place, rows)
        finder.finish()
    finally:  # what a judge has found before it failed is kept
        write_rows(uri, [*others, *sorted(rows, key=lambda row: (row["key"], row["sample"]))])


def _tell(place: Place, rows: Rows) -> None:
    """Logs how many findings hold no grade, and why the first of them doesn't."""
    faults = [row["fault"] for row in rows if row["value"] is None]
    if faults:
        told = f"{len(faults)} of {len(rows)} findings are unread, {sum(map(_refused, faults))} of them refused"
        logger.warning("%s: %s; the first: %s", place.file("judgements.jsonl"), told, one_line(faults[0]))


def _earlier(
    place: Place, identity: dict[str, Any], *, retry_refused: bool
) -> tuple[Rows, dict[tuple[str, int, str], dict[str, Any]]]:
    """All rows of other judges, and those of this very judge to be kept, by key, sample and sum of the file.

    Kept are the readable ones, and refusals. The others stay as they are: they may have cost hours, and their judge may
    be asked for again.
    """
    uri = place.file("judgements.jsonl")
    rows: Rows = read_rows(uri) if storage.exists(uri) else []
    others = [row for row in rows if row["judge"] != identity]
    own = [row for row in rows if row["judge"] == identity]
    good = [row for row in own if row["value"] is not None or (_refused(row["fault"]) and not retry_refused)]
    return others, {(row["key"], row["sample"], row["sha256"]): row for row in good}


def _refused(fault: str) -> bool:
    return fault.startswith(REFUSED)


def _found(
    place: Place, finder: Finder, items: dict[str, Item], todo: Sequence[Made]
) -> Iterator[tuple[Made, Judgement | None]]:
    def one(made: Made) -> Judgement | None:
        data = storage.read_bytes(place.file(made.path))
        return finder.find(items[made.key], made.sample, data)

    pool = ThreadPoolExecutor(finder.threads)
    yield from _as_found(pool, {pool.submit(one, made): made for made in todo})


def _as_found(
    pool: ThreadPoolExecutor, asked: dict[Future[Judgement | None], Made]
) -> Iterator[tuple[Made, Judgement | None]]:
    """What was found, as it comes. After an error the rest is not tried, and it is raised after what was under way."""
    failed: BaseException | None = None
    left = dict(asked)
    try:
        for future in as_completed(asked):
            failed = future.exception()
            if failed is not None:
                break
            yield left.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    if failed is not None:
        for future, made in left.items():
            if not future.cancelled() and future.exception() is None:
                yield made, future.result()
        raise failed


def score(plan: Plan) -> None:
    """Scores the findings of every suite, with its controls beside them, into score.json.

    Raises `DataError` where judge did not run.
    """
    for entry in plan.entries:
        place = plan.place(entry)
        items = place.read_items()
        judgements, by = place.read_judgements(), place.read_judge()
        refused = sum(_refused(one.fault) for one in judgements)
        scored = entry.suite.score(items, judgements, by)
        controls = {name: _overall(plan.place(entry, name), entry) for name in _controls(plan, entry)}
        if entry.shuffled is not None and len(items) > 1:
            controls["shuffled"] = entry.suite.score(items, entry.shuffled(items, judgements), by).overall
        write_json(place.file("score.json"), scored.as_json() | {"controls": controls, "n_refused": refused})
        told = "".join(f", {name} {number(value, scored.best)}" for name, value in controls.items())
        print(f"{entry.suite.name}: {number(scored.overall, scored.best)}{told}; {_coverage(scored.coverage, refused)}")


def _overall(place: Place, entry: Entry) -> float | None:
    return entry.suite.score(place.read_items(), place.read_judgements(), place.read_judge()).overall


def _coverage(coverage: Coverage, refused: int) -> str:
    counts = f"{coverage.n_scored} of {coverage.n_expected} scored"
    told = f" ({refused} refused by the judge: --retry-refused asks again)" if refused else ""
    return f"{counts}, {coverage.n_missing} missing, {coverage.n_parse_failed} unread{told}"


def report(plan: Plan) -> None:
    """Writes report.html, and report.json with the same figures. Raises `DataError` where score did not run."""
    results = [_result(plan, entry) for entry in plan.entries]
    uri = storage.join(plan.out, "target.json")
    target = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    page = render_suites(results, target=target)
    storage.write_bytes(storage.join(plan.out, "report.html"), page.encode())
    suites = {result.score["suite"]: {**result.score, "cost": result.cost} for result in results}
    write_json(storage.join(plan.out, "report.json"), {"target": target, "suites": suites})
    print(f"written to {plan.out}: report.html, report.json")


def _result(plan: Plan, entry: Entry) -> SuiteResult:
    place = plan.place(entry)
    best, worst = _examples(place, entry)
    return SuiteResult(
        score=_read_score(plan.out, entry),
        cost=json.loads(storage.read_bytes(place.file("cost.json"))),
        best=best,
        worst=worst,
        history=tuple((uri, _read_score(uri, entry)) for uri in plan.compare),
        published=tuple(map(_published, peers_of(entry.suite.name))),
        part=entry.part,
    )


def _published(peer: Peer) -> Published:
    protocol = "; ".join((PROTOCOLS[peer.suite], *peer.flags))
    return Published(model=peer.model, value=f"{peer.value:g}", protocol=protocol, source=peer.source)


def _read_score(out: str, entry: Entry) -> dict[str, Any]:
    uri = storage.join(out, entry.suite.name, "score.json")
    if not storage.exists(uri):
        raise DataError(f"{uri} does not exist: run --stage score first")
    return dict(json.loads(storage.read_bytes(uri)))


def _examples(place: Place, entry: Entry) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The first files with the highest grade, and the first ones with the lowest; none twice."""
    items = {item.key: item for item in place.read_items()}
    paths = {(made.key, made.sample): made.path for made in place.read_made()}
    graded = [
        (grade, one)
        for one in place.read_judgements()
        if one.value is not None and (grade := entry.grade(items[one.key], one.value)) is not None
    ]
    if not graded:
        return (), ()

    def example(one: Judgement, *, right: bool) -> Example:
        item = items[one.key]
        uri = item.record["image"] if place.asks else place.file(paths[one.key, one.sample])
        image = None if uri is None else open_image(storage.read_bytes(uri))
        assert one.value is not None  # those without were left out
        return Example(prompt=item.prompt, reason=entry.reason(one.value), right=right, image=image)

    # Sorting keeps equals in the order of the items. A middling file is neither a best nor a worst one.
    low, high = min(grade for grade, _ in graded), max(grade for grade, _ in graded)
    falling, rising = (sorted(graded, key=lambda pair: sign * pair[0])[:SHOWN] for sign in (-1, 1))
    best = [example(one, right=True) for grade, one in falling if grade == 1 or grade > low]
    worst = [example(one, right=False) for grade, one in rising if grade == 0 or grade < high]
    return tuple(best), tuple(worst)
