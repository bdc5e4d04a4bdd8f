"""The stages that judge: judge asks a judge about every file, score counts the findings, report shows them.

A finding is kept with the sum of the file that it is about and with the judge's own words. It is not asked for again
while file and judge stay the same; a finding that could not be read is, but not one that a content filter refused (it
would again), unless the user says so. Another judge's findings stay beside it, and
the score counts those of the judge that judged last alone.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.errors import DataError, one_line
from blip3o.evaluate.benchmark.evidence import Evidence, read_evidence
from blip3o.evaluate.benchmark.files import (
    Made,
    Place,
    Rows,
    judge_of,
    read_json,
    read_judged,
    sums_of,
    write_json,
    write_rows,
)
from blip3o.evaluate.benchmark.judges import Finder, Wanted
from blip3o.evaluate.benchmark.making import shown
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.registry import Entry
from blip3o.evaluate.judges.options import JudgeOptions
from blip3o.evaluate.judges.replies import REFUSED
from blip3o.evaluate.reports.published_scores import PROTOCOLS, Peer, peers_of
from blip3o.evaluate.reports.suites import Example, Published, SuiteResult, number, render_suites
from blip3o.evaluate.suites.suite import Coverage, Item, Judge, Judgement, Score

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
    now = place.sums(list(items.values()))
    # What lies there is judged, whatever it was when generate described it.
    made = [replace(m, sha256=now[m.key, m.sample]) for m in place.read_made() if (m.key, m.sample) in now]
    identity = asdict(finder.judge)
    others, kept = _earlier(place, finder.judge, retry_refused=retry_refused)
    rows = [kept[at] for one in made if (at := (one.key, one.sample, one.sha256)) in kept]
    bound = _of_files_before(place, finder, now)
    others += bound
    elsewhere = {(row["key"], row["sample"]) for row in bound}
    todo = [
        one for one in made if (one.key, one.sample, one.sha256) not in kept and (one.key, one.sample) not in elsewhere
    ]
    write_json(place.file("judge.json"), identity)
    uri = place.file("judgements.jsonl")
    try:
        with shown(f"judge: {place.suite.name} {place.control}".rstrip(), len(todo)) as advance:
            for one, finding in _found(place, finder, items, todo):
                advance()
                if finding is None:  # made elsewhere, and not of this file
                    continue
                rows.append({**_kept(finding), "sha256": one.sha256, "judge": identity})
                if len(rows) % TOGETHER == 0:
                    write_rows(uri, [*others, *rows])
        _tell(place, rows)
        finder.finish()
    finally:  # what a judge has found before it failed is kept
        write_rows(uri, [*others, *sorted(rows, key=lambda row: (row["key"], row["sample"]))])


def _of_files_before(place: Place, finder: Finder, now: Mapping[tuple[str, int], str]) -> Rows:
    """The rows of findings that were imported before about files that have changed since; all of them stay.

    Such findings don't say which bytes they are about: those that lay there when they were first read. They are not
    taken for findings about what lies there now.
    """
    uri = place.file("judgements.jsonl")
    if not (finder.imported and storage.exists(uri)):
        return []
    own = [row for row in read_judged(uri) if judge_of(row["judge"], uri) == finder.judge]
    found = [row for row in own if now.get((row["key"], row["sample"]), row["sha256"]) != row["sha256"]]
    if found:
        told = "were read before, about other files than lie there now: have these judged, and name the new findings"
        logger.warning("%s: %d findings %s", uri, len(found), told)
    return found


def _kept(finding: Judgement) -> dict[str, Any]:
    row = asdict(finding)
    return row if finding.sources else {name: value for name, value in row.items() if name != "sources"}


def _tell(place: Place, rows: Rows) -> None:
    """Logs how many findings hold no grade, and why the first of them doesn't."""
    faults = [row["fault"] for row in rows if row["value"] is None]
    if faults:
        told = f"{len(faults)} of {len(rows)} findings are unread, {sum(map(_refused, faults))} of them refused"
        logger.warning("%s: %s; the first: %s", place.file("judgements.jsonl"), told, one_line(faults[0]))


def _earlier(
    place: Place, by: Judge, *, retry_refused: bool
) -> tuple[Rows, dict[tuple[str, int, str], dict[str, Any]]]:
    """All rows of other judges, and those of this very judge to be kept, by key, sample and sum of the file.

    Kept are the readable ones, and refusals. The others stay as they are: they may have cost hours, and their judge may
    be asked for again. Findings of this judge that rest on another file (a reference picture) which has changed since
    are dropped.
    """
    uri = place.file("judgements.jsonl")
    rows: Rows = read_judged(uri) if storage.exists(uri) else []
    of_this = [judge_of(row["judge"], uri) == by for row in rows]
    own, others = ([row for row, is_own in zip(rows, of_this, strict=True) if is_own is kind] for kind in (True, False))
    sources = sums_of(source for row in own for source in row.get("sources", {}))
    settled = [row for row in own if row["value"] is not None or (_refused(row["fault"]) and not retry_refused)]
    good = [row for row in settled if row.get("sources", {}).items() <= sources.items()]
    return others, {(row["key"], row["sample"], row["sha256"]): row for row in good}


def _refused(fault: str) -> bool:
    return fault.startswith(REFUSED)


def _found(
    place: Place, finder: Finder, items: dict[str, Item], todo: Sequence[Made]
) -> Iterator[tuple[Made, Judgement | None]]:
    def one(made: Made) -> Judgement | None:
        data = storage.read_bytes(place.file(made.path))
        if hashlib.sha256(data).hexdigest() != made.sha256:
            raise DataError(f"{place.file(made.path)} changed while it was judged: judge again")
        try:
            return finder.find(items[made.key], made.sample, data)
        except DamagedSampleError as damage:  # of this picture: the others can still be judged
            return Judgement(key=made.key, sample=made.sample, value=None, fault=damage.reason)

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
        scored, evidence = _scored(plan.place(entry), entry)
        controls = {name: _scored(plan.place(entry, name), entry)[0].overall for name in _controls(plan, entry)}
        if entry.shuffled is not None and len(evidence.items) > 1:
            others = entry.shuffled(evidence.items, evidence.judgements)
            controls["shuffled"] = entry.suite.score(evidence.items, others, evidence.judge).overall
        refused = sum(_refused(one.fault) for one in evidence.judgements)
        row = scored.as_json() | {"controls": controls, "digests": evidence.digests, "n_refused": refused}
        write_json(plan.place(entry).file("score.json"), row)
        told = "".join(f", {name} {number(value, scored.best)}" for name, value in controls.items())
        print(f"{entry.suite.name}: {number(scored.overall, scored.best)}{told}; {_coverage(scored.coverage, refused)}")
        incomparable = scored.overall is None and scored.coverage.complete  # for another reason than what is missing
        for reason in scored.why_not if incomparable else evidence.why_not:
            print(f"{entry.suite.name}: {reason}")


def _scored(place: Place, entry: Entry) -> tuple[Score, Evidence]:
    """The score of the findings about what lies there now: comparable only if nothing that it rests on has changed."""
    evidence = read_evidence(place)
    scored = entry.suite.score(evidence.items, evidence.judgements, evidence.judge)
    comparable = scored.comparable and not evidence.why_not
    return replace(scored, comparable=comparable, why_not=(*scored.why_not, *evidence.why_not)), evidence


def _coverage(coverage: Coverage, refused: int) -> str:
    counts = f"{coverage.n_scored} of {coverage.n_expected} scored"
    told = f" ({refused} refused by the judge: --retry-refused asks again)" if refused else ""
    return f"{counts}, {coverage.n_missing} missing, {coverage.n_parse_failed} unread{told}"


def report(plan: Plan) -> None:
    """Writes report.html, and report.json with the same figures. Raises `DataError` where score did not run."""
    results = [_result(plan, entry) for entry in plan.entries]
    uri = storage.join(plan.out, "target.json")
    target = read_json(uri) if storage.exists(uri) else {}
    page = render_suites(results, target=target)
    storage.write_bytes(storage.join(plan.out, "report.html"), page.encode(errors="replace"))
    suites = {result.score["suite"]: {**result.score, "cost": result.cost} for result in results}
    write_json(storage.join(plan.out, "report.json"), {"target": target, "suites": suites})
    print(f"written to {plan.out}: report.html, report.json")


def _result(plan: Plan, entry: Entry) -> SuiteResult:
    place = plan.place(entry)
    best, worst = _examples(place, entry)
    return SuiteResult(
        score=_read_score(plan.out, entry),
        cost=read_json(place.file("cost.json")),
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
    return read_json(uri)


def _examples(place: Place, entry: Entry) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The first files with the highest grade, and the first ones with the lowest; none twice."""
    items = {item.key: item for item in place.read_items()}
    graded = [
        (grade, one, sum_then)
        for sum_then, one in place.read_findings(place.read_judge())
        if one.value is not None
        and one.sample in range(items[one.key].samples if one.key in items else 0)
        and (grade := entry.grade(items[one.key], one.value)) is not None
    ]
    if not graded:
        return (), ()

    def examples(found: Iterable[tuple[float, Judgement, str]], *, right: bool) -> tuple[Example, ...]:
        shown = (_example(place, entry, items[one.key], one, sum_then, right=right) for _, one, sum_then in found)
        return tuple(one for one in shown if one is not None)

    # Sorting keeps equals in the order of the items. A middling file is neither a best nor a worst one.
    low, high = min(row[0] for row in graded), max(row[0] for row in graded)
    falling, rising = (sorted(graded, key=lambda row: sign * row[0]) for sign in (-1, 1))
    best = examples((row for row in falling[:SHOWN] if row[0] == 1 or row[0] > low), right=True)
    worst = examples((row for row in rising[:SHOWN] if row[0] == 0 or row[0] < high), right=False)
    return best, worst


def _example(place: Place, entry: Entry, item: Item, one: Judgement, sum_then: str, *, right: bool) -> Example | None:
    """A finding with its picture; None where another file lies there now."""
    file = place.file(place.path(item, one.sample))
    if sums_of([file]).get(file) != sum_then or one.value is None:
        return None
    image = open_image(storage.read_bytes(item.record["image"] if place.asks else file))
    return Example(prompt=item.prompt, reason=entry.reason(one.value), right=right, image=image)
