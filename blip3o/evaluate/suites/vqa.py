"""VQA accuracy (VQAv2, TextVQA): a reply is as right as annotators agree with it. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

from blip3o.errors import DataError
from blip3o.evaluate.suite import Item, Judge, Judgement, Score, Suite
from blip3o.evaluate.suites.asked import accuracy_score, read_questions, replies
from blip3o.evaluate.suites.files import text_list
from blip3o.evaluate.suites.vqa_words import normalise_reply, normalise_words

AGREEING = 3  # annotators that make a reply fully right
MIN_ANSWERS = AGREEING + 1  # one is left out each time


def accuracy(reply: str, answers: Sequence[str]) -> float:
    """min(agreeing / 3, 1), averaged over leaving out each annotator (0 to 1).

    As officially, unanimous answers are compared as they were written, and only others are normalised like the reply.
    """
    wanted = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    found = normalise_reply(reply)
    if len(set(wanted)) > 1:
        wanted, found = [normalise_words(answer) for answer in wanted], normalise_words(found)
    agreeing = [answer == found for answer in wanted]
    return sum(min((sum(agreeing) - own) / AGREEING, 1.0) for own in agreeing) / len(agreeing)


class Vqa(Suite):
    """Questions with several annotators' answers: {id, image, question, answers, category (optional)}.

    Answers are texts, or VQAv2's own {"answer": text, …}, of which the texts are taken.
    """

    name = "vqa"
    protocol = "VQA accuracy after EvalAI normalisation, one annotator left out"
    samples = 1
    kind: Literal["draw", "ask"] = "ask"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The questions of a local file, asked as they stand there. Raises `ConfigError`, `DataError`."""
        rows = read_questions(self.name, source, ("answers",))
        for number, row in enumerate(rows, start=1):
            row["answers"] = _texts(row["answers"], f"{source}, record {number}: answers")
        return tuple(Item(key=row["id"], prompt=row["question"], record=row, samples=1) for row in rows)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean accuracy over questions, from findings {"reply": str}."""
        answered, coverage = replies(items, judgements)
        scored = [(item, accuracy(reply, item.record["answers"])) for item, reply in answered]
        return accuracy_score(self, scored, coverage, units=[value for _, value in scored], details={})


def _texts(answers: object, where: str) -> list[str]:
    if isinstance(answers, list):
        answers = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    found = text_list(answers, where)
    if len(found) < MIN_ANSWERS:
        raise DataError(f"{where} are fewer than {MIN_ANSWERS} answers ({len(found)}): none could ever be fully right")
    return found
