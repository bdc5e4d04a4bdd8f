"""The stage judge: has a judge look at every file.

A judgement is kept with the sha256 of the file that it is about and with the judge's own words. It is not made again
while the file and the judge stay the same. A judgement that could not be read is made again; one that a content filter
refused is not (it would be refused again), unless the user asks for it. Judgements of other judges are kept as well.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from typing import Any

from blip3o import storage
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.errors import DataError, one_line
from blip3o.evaluate.benchmark.folder import SampleFile, SuiteFolder, sha256_of
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.rows import Rows, judge_of, read_judgement_rows, write_json, write_rows
from blip3o.evaluate.judges.options import JudgeOptions
from blip3o.evaluate.judges.replies import is_refusal
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner
from blip3o.evaluate.progress import progress_bar
from blip3o.evaluate.records import Item, Judge, Judgement
from blip3o.evaluate.suites.registry import SuiteSpec

logger = logging.getLogger(__name__)

WRITE_EVERY = 32  # judgements


def judge(plan: Plan) -> None:
    """Judges every file of every suite and of its controls.

    Raises `ConfigError` where a suite needs a judge that was not named, `DataError` where generate did not run.
    """
    for spec, runner in zip(plan.suites, find_judges(plan), strict=True):
        for control in ("", *plan.existing_controls(spec)):
            _judge(plan.folder(spec, control), runner, retry_refused=plan.retry_refused)


def find_judges(plan: Plan) -> list[JudgeRunner]:
    """The judge of each suite. Raises `ConfigError` where it needs one that was not named, or that does not exist."""
    return [spec.judge(_request(plan, spec)) for spec in plan.suites]


def _request(plan: Plan, spec: SuiteSpec) -> JudgeRequest:
    return JudgeRequest(
        spec=plan.judges.get(spec.name),
        items=plan.folder(spec).read_items(),
        source=plan.sources.get(spec.name),
        options=plan.judge_options.get(spec.name, JudgeOptions()),
    )


def _judge(folder: SuiteFolder, runner: JudgeRunner, *, retry_refused: bool) -> None:
    items = {item.key: item for item in folder.read_items()}
    now = folder.sums(list(items.values()))
    # The existing file is judged, whatever it was when generate described it.
    files = [replace(one, sha256=now[one.key, one.sample]) for one in folder.read_files() if _at(one) in now]
    identity = asdict(runner.judge)
    others, kept = _earlier(folder, runner.judge, retry_refused=retry_refused)
    rows = [kept[*_at(one), one.sha256] for one in files if (*_at(one), one.sha256) in kept]
    outdated = _outdated_imports(folder, runner, now)
    others += outdated
    skipped = {(row["key"], row["sample"]) for row in outdated}
    todo = [one for one in files if (*_at(one), one.sha256) not in kept and _at(one) not in skipped]
    write_json(folder.file("judge.json"), identity)
    uri = folder.file("judgements.jsonl")
    try:
        with progress_bar(f"judge: {folder.suite.name} {folder.control}".rstrip(), len(todo)) as advance:
            for one, judgement in _judgements(folder, runner, items, todo):
                advance(1)
                if judgement is None:  # imported judgements need not cover every file
                    continue
                rows.append({**_as_row(judgement), "sha256": one.sha256, "judge": identity})
                if len(rows) % WRITE_EVERY == 0:
                    write_rows(uri, [*others, *rows])
        _warn_of_faults(folder, rows)
        runner.finish()
    finally:  # judgements that were made before a failure are kept: they may have cost money
        write_rows(uri, [*others, *sorted(rows, key=lambda row: (row["key"], row["sample"]))])


def _at(one: SampleFile) -> tuple[str, int]:
    return one.key, one.sample


def _outdated_imports(folder: SuiteFolder, runner: JudgeRunner, now: Mapping[tuple[str, int], str]) -> Rows:
    """The rows that were imported earlier about files that have changed since.

    An imported judgement does not say which bytes it is about, so it is bound to the bytes that existed when it was
    first read. It is not taken for a judgement about the bytes that exist now.
    """
    uri = folder.file("judgements.jsonl")
    if not (runner.imported and storage.exists(uri)):
        return []
    own = [row for row in read_judgement_rows(uri) if judge_of(row["judge"], uri) == runner.judge]
    outdated = [row for row in own if now.get((row["key"], row["sample"]), row["sha256"]) != row["sha256"]]
    if outdated:
        why = "were imported before, about files that have changed since: import judgements of the new files"
        logger.warning("%s: %d judgements %s", uri, len(outdated), why)
    return outdated


def _as_row(judgement: Judgement) -> dict[str, Any]:
    row = asdict(judgement)
    return row if judgement.sources else {name: value for name, value in row.items() if name != "sources"}


def _warn_of_faults(folder: SuiteFolder, rows: Rows) -> None:
    """Logs how many judgements have no value, and why the first of them has none."""
    faults = [row["fault"] for row in rows if row["value"] is None]
    if faults:
        counts = f"{len(faults)} of {len(rows)} judgements are unread, {sum(map(is_refusal, faults))} of them refused"
        logger.warning("%s: %s; the first: %s", folder.file("judgements.jsonl"), counts, one_line(faults[0]))


def _earlier(
    folder: SuiteFolder, by: Judge, *, retry_refused: bool
) -> tuple[Rows, dict[tuple[str, int, str], dict[str, Any]]]:
    """All rows of other judges, and the rows of this judge that are still valid, by key, sample and sha256.

    The rows of other judges stay as they are: they may have cost hours, and their judge may be asked again. Of this
    judge, readable judgements and refusals are valid, unless they depend on another file (a reference image) which has
    changed since.
    """
    uri = folder.file("judgements.jsonl")
    rows: Rows = read_judgement_rows(uri) if storage.exists(uri) else []
    own: Rows = []
    others: Rows = []
    for row in rows:
        (own if judge_of(row["judge"], uri) == by else others).append(row)
    sources = sha256_of(source for row in own for source in row.get("sources", {}))
    valid = {}
    for row in own:
        settled = row["value"] is not None or (is_refusal(row["fault"]) and not retry_refused)
        if settled and row.get("sources", {}).items() <= sources.items():
            valid[row["key"], row["sample"], row["sha256"]] = row
    return others, valid


def _judgements(
    folder: SuiteFolder, runner: JudgeRunner, items: dict[str, Item], todo: Sequence[SampleFile]
) -> Iterator[tuple[SampleFile, Judgement | None]]:
    def judge_file(file: SampleFile) -> Judgement | None:
        data = storage.read_bytes(folder.file(file.path))
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DataError(f"{folder.file(file.path)} changed while it was judged: judge again")
        try:
            return runner.judge_sample(items[file.key], file.sample, data)
        except DamagedSampleError as damage:  # a fault of this file only: the others can still be judged
            return Judgement(key=file.key, sample=file.sample, value=None, fault=damage.reason)

    # Not a `with` block: leaving one after an error would wait for requests that have not even started.
    pool = ThreadPoolExecutor(runner.threads)
    yield from _as_completed(pool, {pool.submit(judge_file, file): file for file in todo})


def _as_completed(
    pool: ThreadPoolExecutor, asked: dict[Future[Judgement | None], SampleFile]
) -> Iterator[tuple[SampleFile, Judgement | None]]:
    """Judgements as they come. After an error no new file is started; the error is raised once running calls ended."""
    failed: BaseException | None = None
    left = dict(asked)  # what is not yet yielded
    try:
        for future in as_completed(asked):
            failed = future.exception()
            if failed is not None:
                break
            yield left.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    if failed is not None:
        for future, file in left.items():
            if not future.cancelled() and future.exception() is None:
                yield file, future.result()
        raise failed
