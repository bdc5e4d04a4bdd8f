"""The stage score: counts the judgements of the judge that judged last, and writes score.json."""

from dataclasses import replace

from blip3o.evaluate.benchmark.evidence import Evidence, read_evidence
from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.plan import Echo, Plan, silent
from blip3o.evaluate.benchmark.rows import write_json
from blip3o.evaluate.judges.replies import is_refusal
from blip3o.evaluate.records import Coverage, Score
from blip3o.evaluate.reports.suites import number
from blip3o.evaluate.suites.registry import SuiteSpec


def score(plan: Plan, echo: Echo = silent) -> None:
    """Scores every suite and its controls into score.json, and echoes one line per suite and reason.

    Raises `DataError` where judge did not run.
    """
    for spec in plan.suites:
        scored, evidence = _score(plan.folder(spec), spec)
        controls = {name: _score(plan.folder(spec, name), spec)[0].overall for name in plan.existing_controls(spec)}
        if spec.shuffled is not None and len(evidence.items) > 1:
            shuffled = spec.shuffled(evidence.items, evidence.judgements)
            controls["shuffled"] = spec.suite.score(evidence.items, shuffled, evidence.judge).overall
        refused = sum(is_refusal(one.fault) for one in evidence.judgements)
        row = scored.as_json() | {"controls": controls, "digests": evidence.digests, "n_refused": refused}
        write_json(plan.folder(spec).file("score.json"), row)
        controlled = "".join(f", {name} {number(value, scored.best)}" for name, value in controls.items())
        echo(f"{spec.name}: {number(scored.overall, scored.best)}{controlled}; {_coverage(scored.coverage, refused)}")
        # A complete score without an overall says why; otherwise the counts above already do.
        refused_overall = scored.overall is None and scored.coverage.complete
        for reason in scored.why_not if refused_overall else evidence.why_not:
            echo(f"{spec.name}: {reason}")


def _score(folder: SuiteFolder, spec: SuiteSpec) -> tuple[Score, Evidence]:
    """The score of the judgements about the current files; comparable only if nothing that it rests on has changed."""
    evidence = read_evidence(folder)
    scored = spec.suite.score(evidence.items, evidence.judgements, evidence.judge)
    comparable = scored.comparable and not evidence.why_not
    return replace(scored, comparable=comparable, why_not=(*scored.why_not, *evidence.why_not)), evidence


def _coverage(coverage: Coverage, refused: int) -> str:
    counts = f"{coverage.n_scored} of {coverage.n_expected} scored"
    hint = f" ({refused} refused by the judge: --retry-refused asks again)" if refused else ""
    return f"{counts}, {coverage.n_missing} missing, {coverage.n_parse_failed} unread{hint}"
