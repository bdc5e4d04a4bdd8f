"""VQA accuracy (VQAv2, TextVQA): a reply is as right as annotators agree with it. Pure.

Programs differ in how they normalise the reply and the annotators' answers, so each is a suite of its own. `vqa` always
normalises both sides, as TextVQA's evaluator does. `vqav2` is the authors' `vqaEval.py`: it normalises both sides where
annotators differ, and compares texts verbatim where all agree. `vqa-lmms` is lmms-eval's VQAv2 until July 2025, for
figures that were made with it: it normalised the reply but not unanimous answers, so "two" did not match ten times
"two".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from blip3o.errors import DataError
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import text_list
from blip3o.evaluate.suites.questions.common import accuracy_score, read_questions, replies
from blip3o.evaluate.suites.questions.vqa_words import normalise_reply, normalise_words, vqa_eval_words
from blip3o.evaluate.suites.suite import Suite

AGREEING = 3  # annotators that make a reply fully right
MIN_ANSWERS = AGREEING + 1  # one is left out each time


# Maps a reply and the answers to the texts that are compared.
Reading = Callable[[str, Sequence[str]], tuple[str, list[str]]]


def both_sides(reply: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """Both sides after all steps of EvalAI's processor, whether annotators agree or not."""
    return normalise_reply(reply), [normalise_reply(answer) for answer in answers]


def vqa_eval(reply: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """As in the authors' program: both sides verbatim where all annotators agree, otherwise both normalised."""
    found, wanted = _on_one_line(reply), [_on_one_line(answer) for answer in answers]
    if len(set(wanted)) == 1:
        return found, wanted
    return vqa_eval_words(found), [vqa_eval_words(answer) for answer in wanted]


def lmms_before_fix(reply: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """The reply normalised (twice where annotators differ); answers by fewer steps, and verbatim where all agree."""
    found, wanted = normalise_reply(reply), [_on_one_line(answer) for answer in answers]
    if len(set(wanted)) == 1:
        return found, wanted
    return normalise_words(found), [normalise_words(answer) for answer in wanted]


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy(reply: str, answers: Sequence[str], reading: Reading = both_sides) -> float:
    """min(agreeing / 3, 1), averaged over leaving out each annotator (0 to 1)."""
    found, wanted = reading(reply, answers)
    # The official average: for each annotator, the accuracy against all the others.
    agreeing = [answer == found for answer in wanted]
    return sum(min((sum(agreeing) - own) / AGREEING, 1.0) for own in agreeing) / len(agreeing)


@dataclass(frozen=True, kw_only=True)
class Vqa(Suite):
    """Questions with several annotators' answers: {id, image, question, answers, category (optional)}.

    Answers are texts, or VQAv2's own {"answer": text, …}, from which the texts are taken.
    """

    name: str = "vqa"
    protocol: str = "VQA accuracy, both sides after EvalAI normalisation, one annotator left out"
    reading: Reading = both_sides
    samples: int = 1
    kind: Literal["draw", "ask"] = "ask"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The questions of a local file, asked verbatim. Raises `ConfigError`, `DataError`."""
        rows = read_questions(self.name, source, ("answers",))
        for number, row in enumerate(rows, start=1):
            row["answers"] = _texts(row["answers"], f"{source}, record {number}: answers")
        return tuple(Item(key=row["id"], prompt=row["question"], record=row, samples=1) for row in rows)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean accuracy over questions, from judgements {"reply": str}."""
        answered, coverage = replies(items, judgements)
        scored = [(item, accuracy(reply, item.record["answers"], self.reading)) for item, reply in answered]
        return accuracy_score(self, scored, coverage, units=[value for _, value in scored], details={})


VQAV2 = Vqa(
    name="vqav2",
    protocol="VQA accuracy of vqaEval.py: unanimous answers as written, one annotator left out",
    reading=vqa_eval,
)
VQA_LMMS = Vqa(
    name="vqa-lmms",
    protocol="VQA accuracy of lmms-eval's vqav2 until July 2025: unanimous answers as written, the reply normalised",
    reading=lmms_before_fix,
)


def _texts(answers: object, where: str) -> list[str]:
    if isinstance(answers, list):
        answers = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    found = text_list(answers, where)
    if len(found) < MIN_ANSWERS:
        raise DataError(f"{where} are fewer than {MIN_ANSWERS} answers ({len(found)}): none could ever be fully right")
    return found
