"""What the suites of questions share: their local files, the accuracy score, and the judge. Pure.

A file is JSON Lines with one question per line: {id, image, question, …}. The image's path is relative to the file.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.judges.replies import answer
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner, refuse_other_judge
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Coverage, Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import json_lines, parse_reply, require, text_id
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, mean, reasons
from blip3o.storage import read_bytes, within

EXACT_MATCH = Judge(id="exact-match", version="1")
BY_WORDS = Judge(id="words of the reply", version="2")  # version 1 took truncated reasoning for a reply
UNCHECKED = "the official questions' digest is not on record, so they cannot be checked"


def read_questions(suite: str, source: str | None, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a question file, with `image` as a URI.

    Raises `ConfigError` without a source, `DataError` for records that miss id, image, question or one of `fields`,
    whose image or question is no text, or that share an id.
    """
    if source is None:
        raise ConfigError(f"{suite} needs a local file of questions: name a .jsonl of {{id, image, question, …}}")
    rows = json_lines(read_bytes(source), source)
    folder = source.rpartition("/")[0] or "."
    for number, row in enumerate(rows, start=1):
        where = f"{source}, record {number}"
        require(row, ("id", "image", "question", *fields), where, texts=("image", "question"))
        row["id"] = text_id(row, where)
        row["image"] = within(folder, row["image"])
    if len({row["id"] for row in rows}) < len(rows):
        raise DataError(f"{source} has two questions of one id: ids are unique")
    return rows


def replies(items: Sequence[Item], judgements: Iterable[Any]) -> tuple[list[tuple[Item, str]], Coverage]:
    """The answered items with their replies, in the items' order, and the coverage.

    A model's reasoning is not part of its reply; a model whose reply ends within its reasoning has replied nothing,
    which is wrong.
    """
    values, coverage = collect_values(items, judgements)
    there = [item for item in items if (item.key, 0) in values]
    return [(item, answer(values[item.key, 0]["reply"]) or "") for item in there], coverage


def by_category(scored: Iterable[tuple[Item, float]]) -> dict[str, list[float]]:
    """The scores of items by their record's `category`, sorted by name; items without a category are left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for item, value in scored:
        if "category" in item.record:
            found[str(item.record["category"])].append(value)
    return dict(sorted(found.items()))


def accuracy_score(
    suite: Suite,
    scored: Sequence[tuple[Item, float]],
    coverage: Coverage,
    *,
    units: Sequence[float],
    details: Mapping[str, Any],
) -> Score:
    """A score whose categories are mean accuracies of questions, and whose overall is the mean of `units`."""
    whole = coverage.complete
    return Score(
        suite=suite.name,
        protocol=suite.protocol,
        judge=EXACT_MATCH,
        coverage=coverage,
        overall=mean(units) if whole else None,
        categories={name: mean(values) for name, values in by_category(scored).items()},
        comparable=False,
        why_not=reasons({UNCHECKED: True, INCOMPLETE: not whole}),
        interval=bootstrap([units], suite.name) if whole else None,
        details=details,
    )


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """Takes every reply as it is: these suites compare replies themselves. Raises `ConfigError` if a judge is named."""
    refuse_other_judge("questions", request.spec)

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        reply = parse_reply(data)
        if answer(reply) is None:  # written by a version that still kept such replies
            return Judgement(key=item.key, sample=sample, value=None, fault="ends within its reasoning", reply=reply)
        return Judgement(key=item.key, sample=sample, value={"reply": reply}, reply=reply)

    return JudgeRunner(judge=BY_WORDS, judge_sample=judge_sample)


def reason(value: Mapping[str, Any]) -> str:
    """The reply itself."""
    return str(value["reply"])
