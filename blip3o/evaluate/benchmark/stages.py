"""Runs the stages of a plan, each on the files that the one before it left."""

from collections.abc import Callable

from blip3o.evaluate.benchmark.generate import generate
from blip3o.evaluate.benchmark.judge import find_judges, judge
from blip3o.evaluate.benchmark.plan import Echo, Plan, silent
from blip3o.evaluate.benchmark.prepare import prepare
from blip3o.evaluate.benchmark.report import report
from blip3o.evaluate.benchmark.score import score

ACTIONS: dict[str, Callable[[Plan, Echo], None]] = {
    "prepare": lambda plan, _: prepare(plan),
    "generate": lambda plan, _: generate(plan),
    "judge": lambda plan, _: judge(plan),
    "score": score,
    "report": report,
}


def run(plan: Plan, echo: Echo = silent) -> None:
    """Runs the stages of a plan in order; `echo` gets the lines for the user. Raises the errors of the stages."""
    for stage in plan.stages:
        if stage == "generate" and "judge" in plan.stages:
            find_judges(plan)  # a missing judge is reported before anything is generated for it
        ACTIONS[stage](plan, echo)
