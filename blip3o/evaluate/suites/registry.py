"""The table of suites: each row is everything that the benchmark job knows about one suite.

To add a suite, write one file (its items, layout, score and judge) and one row here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip3o.errors import ConfigError
from blip3o.evaluate.judges.runner import JudgeFactory
from blip3o.evaluate.records import Item, Judgement
from blip3o.evaluate.suites import dpg, mjhq, ocr
from blip3o.evaluate.suites.geneval import judge as geneval_judge
from blip3o.evaluate.suites.geneval import suite as geneval
from blip3o.evaluate.suites.questions import common as questions
from blip3o.evaluate.suites.questions import mme, vqa
from blip3o.evaluate.suites.questions.choice import Choice
from blip3o.evaluate.suites.scenes import suite as scenes
from blip3o.evaluate.suites.suite import Suite
from blip3o.evaluate.suites.wise import judge as wise_judge
from blip3o.evaluate.suites.wise import suite as wise

Value = Mapping[str, Any]  # of a judgement


def _ungraded(item: Item, value: Value) -> None:
    return None


def _no_reason(value: Value) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """A row of the table.

    `suite` has the items, the layout and the score; `judge` makes its judge from the command line's `--judge`. `grade`
    is the grade (0 to 1) of one judgement, by which the report picks its best and worst samples (None: the suite grades
    only the whole), and `reason` the judge's words about it. A closed world has the true image of every item (`truth`),
    and can judge its images by exchanged captions (`shuffled`). `best_category` is the best possible value of a
    category, where it is not the best possible overall.
    """

    suite: Suite
    judge: JudgeFactory
    grade: Callable[[Item, Value], float | None] = _ungraded
    reason: Callable[[Value], str] = _no_reason
    truth: Callable[[Item], Image.Image] | None = None
    shuffled: Callable[[Sequence[Item], Iterable[Judgement]], list[Judgement]] | None = None
    best_category: float | None = None

    @property
    def name(self) -> str:
        """The name by which `--suite` selects it."""
        return self.suite.name

    @property
    def asks(self) -> bool:
        """Whether its items are questions about images."""
        return self.suite.kind == "ask"


def _wise(suite: wise.Wise) -> SuiteSpec:
    return SuiteSpec(suite=suite, judge=wise_judge.judge_factory(suite), grade=suite.grade, reason=wise.reason)


def _questions(suite: Suite, best_category: float | None = None) -> SuiteSpec:
    return SuiteSpec(suite=suite, judge=questions.make_judge, reason=questions.reason, best_category=best_category)


_ROWS = (
    SuiteSpec(suite=geneval.GenEval(), judge=geneval_judge.make_judge, grade=geneval.grade, reason=geneval.reason),
    SuiteSpec(suite=dpg.Dpg(), judge=dpg.make_judge, grade=dpg.grade, reason=dpg.reason),
    _wise(wise.WISE),
    _wise(wise.WISE_VERIFIED),
    SuiteSpec(
        suite=scenes.Scenes(),
        judge=scenes.make_judge,
        grade=geneval.grade,
        reason=geneval.reason,
        truth=scenes.true_picture,
        shuffled=scenes.shuffled,
    ),
    SuiteSpec(suite=mjhq.Mjhq(), judge=mjhq.make_judge),
    SuiteSpec(suite=ocr.Ocr(), judge=ocr.make_judge, grade=ocr.grade, reason=ocr.reason),
    _questions(vqa.Vqa()),
    _questions(vqa.VQAV2),
    _questions(vqa.VQA_LMMS),
    _questions(mme.Mme(), best_category=mme.BEST),
    _questions(Choice()),
)
SUITES: dict[str, SuiteSpec] = {row.name: row for row in _ROWS}


def find_suite(name: str) -> SuiteSpec:
    """A suite by name. Raises `ConfigError` for an unknown one."""
    if name not in SUITES:
        raise ConfigError(f"--suite {name} is unknown (suites: {', '.join(sorted(SUITES))})")
    return SUITES[name]
