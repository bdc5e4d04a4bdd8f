"""What the job has to know of each suite beside its items, layout and score: who may judge it, which true pictures
belong to its items, and what the report says of one finding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.judges import Maker, by_words, exact, of_dpg, of_geneval, of_mjhq, of_ocr, of_wise
from blip3o.evaluate.suites import scenes
from blip3o.evaluate.suites.mjhq import Mjhq
from blip3o.evaluate.suites.ocr import similarity
from blip3o.evaluate.suites.questions import mme
from blip3o.evaluate.suites.registry import suites
from blip3o.evaluate.suites.suite import Item, Judgement, Suite
from blip3o.evaluate.suites.wise.suite import WISE, WISE_VERIFIED, Wise

Value = Mapping[str, Any]
MJHQ = Mjhq()
PARTS = {"mme": mme.BEST}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A suite of the job.

    `finder` makes its judge; `grade` is a finding's grade, 0 to
    1 (None: the suite grades wholes alone), `reason` the judge's words. A closed world has the true pictures of its
    items (`truth`), and findings that can be judged by other captions (`shuffled`). `part` is the best that a category
    can have where that is not the best overall.
    """

    suite: Suite
    finder: Maker
    grade: Callable[[Item, Value], float | None]
    reason: Callable[[Value], str]
    truth: Callable[[Item], Image.Image] | None = None
    shuffled: Callable[[Sequence[Item], Iterable[Judgement]], list[Judgement]] | None = None
    part: float | None = None

    @property
    def asks(self) -> bool:
        """Whether its items are questions about pictures."""
        return self.suite.kind == "ask"


def _correct(item: Item, value: Value) -> float:
    return float(value["correct"])


def _reason(value: Value) -> str:
    return str(value["reason"]) or "as asked"


def _ungraded(item: Item, value: Value) -> None:
    return None


def _answers_yes(item: Item, value: Value) -> float | None:
    answers = list(value["answers"].values())
    return sum(answer == "yes" for answer in answers) / len(answers) if answers else None


def _noes(value: Value) -> str:
    noes = [number for number, answer in value["answers"].items() if answer != "yes"]
    return f"no to question {', '.join(noes)}" if noes else "yes to every question"


def _pairs(value: Value) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {grade}" for name, grade in value.items())


def _said(value: Value) -> str:
    return str(value["reply"])


def _likeness(item: Item, value: Value) -> float:
    return similarity(item.record["text"], value["lines"])


def _read(value: Value) -> str:
    return f"read: {' / '.join(value['lines']) or 'nothing'}"


def _nothing(value: Value) -> str:
    return ""


def _wise_entry(suite: Wise) -> Entry:
    return Entry(suite=suite, finder=of_wise(suite), grade=lambda _, value: suite.item_score(value), reason=_pairs)


def entries() -> dict[str, Entry]:
    """Every suite by name."""
    known = suites()
    found = {
        "scenes": Entry(
            suite=known["scenes"],
            finder=exact,
            grade=_correct,
            reason=_reason,
            truth=scenes.true_picture,
            shuffled=scenes.shuffled,
        ),
        "geneval": Entry(suite=known["geneval"], finder=of_geneval, grade=_correct, reason=_reason),
        "dpg": Entry(suite=known["dpg"], finder=of_dpg, grade=_answers_yes, reason=_noes),
        "wise": _wise_entry(WISE),
        "wise-verified": _wise_entry(WISE_VERIFIED),
        "ocr": Entry(suite=known["ocr"], finder=of_ocr, grade=_likeness, reason=_read),
        "mjhq": Entry(suite=MJHQ, finder=of_mjhq(MJHQ), grade=_ungraded, reason=_nothing),
    }
    asked = {name: suite for name, suite in known.items() if suite.kind == "ask"}
    return found | {
        name: Entry(suite=suite, finder=by_words, grade=_ungraded, reason=_said, part=PARTS.get(name))
        for name, suite in asked.items()
    }


def entry(name: str) -> Entry:
    """A suite by name. Raises `ConfigError` for an unknown one."""
    known = entries()
    if name not in known:
        raise ConfigError(f"--suite {name} is unknown (suites: {', '.join(sorted(known))})")
    return known[name]
