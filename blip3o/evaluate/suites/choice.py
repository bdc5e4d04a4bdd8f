"""Multiple choice (MMBench, SEED-Bench, RealWorldQA): an option's letter or exact words, and nothing guessed. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from blip3o.errors import DataError
from blip3o.evaluate.suite import Item, Judge, Judgement, Score, Suite, mean
from blip3o.evaluate.suites.asked import accuracy_score, read_questions, replies
from blip3o.evaluate.suites.files import text_list
from blip3o.evaluate.understanding import normalise

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def chosen(reply: str, options: Sequence[str]) -> int | None:
    """The number of the option that a reply names, or None.

    By its letter at the start ("B", "(b)", "B. a dog", "B: …"), or by its words alone. A letter that starts a word, an
    option that isn't there, and a reply that fits two options name none.
    """
    same = [number for number, option in enumerate(options) if normalise(option) == normalise(reply)]
    if same:
        return same[0] if len(same) == 1 else None
    match = re.match(r"\s*\(?([A-Za-z])(?:\)|[.:](?!\w)|\s*$)", reply)
    number = LETTERS.index(match.group(1).upper()) if match else len(options)
    return number if number < len(options) else None


class Choice(Suite):
    """Questions with options: {id, image, question, options, answer (a letter), category, group (both optional)}.

    Questions of one `group` are rotations of one another, and count as one that is right if all of them are.
    """

    name = "choice"
    protocol = "direct: option letter or exact option, all rotations right"
    samples = 1
    kind: Literal["draw", "ask"] = "ask"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The questions of a local file; options are listed below the question unless the record has a `prompt`.

        Raises `ConfigError`, and `DataError` for options that are no texts, or an answer that is no letter of one.
        """
        rows = read_questions(self.name, source, ("options", "answer"))
        for number, row in enumerate(rows, start=1):
            where = f"{source}, record {number}"
            options = text_list(row["options"], f"{where}: options")
            if row["answer"] not in tuple(LETTERS[: len(options)]):
                raise DataError(f"{where}: the answer is '{row['answer']}', expected an option's letter")
        return tuple(Item(key=row["id"], prompt=_prompt(row), record=row, samples=1) for row in rows)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The share of right groups (a question without one is its own), from findings {"reply": str}.

        `details`: `plain`, the share of right questions; `chance`, what drawing lots would give of those; `n_unparsed`,
        the replies that name no option and count as wrong.
        """
        answered, coverage = replies(items, judgements)
        picks = [(item, chosen(reply, item.record["options"])) for item, reply in answered]
        scored = [(item, float(pick == LETTERS.index(item.record["answer"]))) for item, pick in picks]
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for item, value in scored:
            groups[("group", str(item.record["group"])) if "group" in item.record else ("", item.key)].append(value)
        details = {
            "plain": mean(value for _, value in scored),
            "chance": mean(1 / len(item.record["options"]) for item, _ in scored),
            "n_unparsed": sum(pick is None for _, pick in picks),
        }
        units = [min(values) for values in groups.values()]
        return accuracy_score(self, scored, coverage, units=units, details=details)


def _prompt(row: dict[str, Any]) -> str:
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, row["options"], strict=False)]
    return row.get("prompt") or "\n".join([row["question"], *listed])
