"""WISE: prompts that only world knowledge resolves, graded by a vision-language model. Two suites and a third reading.

`wise` is the first list with three grades a picture (weighted to the WiScore; `details` also hold the unweighted mean
that BAGEL reports), `wise-verified` the revised list with a single one. Their figures never belong in one column.
The authors' instructions to the judge are not part of this project: the ones here are its own, and a user may hand in
others. Source: the paper (https://arxiv.org/abs/2503.07265) and its calculators' behaviour.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip3o.data.storage import join, read_bytes
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.suite import (
    INCOMPLETE,
    Item,
    Judge,
    Judgement,
    Score,
    Suite,
    bootstrap,
    findings,
    mean,
    only_sample,
    reasons,
)
from blip3o.evaluate.suites.files import json_lines, json_value, require

FILES = ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json")
OFFICIAL_ITEMS = 1000
GRADES = ("consistency", "realism", "aesthetic_quality")  # 0 to 2 each
WEIGHTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
CATEGORIES = ("culture", "time", "space", "biology", "physics", "chemistry")

LEGACY_PROMPT = """\
You grade one generated image. It was drawn from this prompt:
{prompt}
What the prompt implies to someone who knows the subject:
{explanation}

Give three grades, each 0 (not met), 1 (met in part) or 2 (fully met):
- Consistency: the image shows what the prompt implies, not merely the words in it.
- Realism: objects, light and materials look as they would in the world or in the style that is asked for.
- Aesthetic Quality: composition and finish are pleasing.
Be strict: give 2 only where you see nothing to object to.
Answer with exactly three lines and nothing else:
Consistency: <grade>
Realism: <grade>
Aesthetic Quality: <grade>
"""
VERIFIED_PROMPT = """\
You check one generated image. It was drawn from this prompt:
{prompt}
What a correct image must show:
{explanation}

Answer 1 if the image shows all of that, 0 if any of it is missing, wrong or cannot be made out.
Answer with exactly one line and nothing else:
Score: <0 or 1>
"""


@dataclass(frozen=True)
class Wise(Suite):
    """One of the two lists.

    `last` are the last ids of the six categories, `weights` the categories' share of the overall, `template` the
    instructions to the judge, with {prompt} and {explanation} in their places.
    """

    name: str
    protocol: str
    last: tuple[int, ...]
    weights: tuple[float, ...]
    grades: tuple[str, ...]
    highest: int
    official_judge: str
    template: str
    samples: int = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The items of the user's copy: one JSON list, or a folder with the three official files.

        Raises `ConfigError` without a source, `DataError` for another format or ids that are not 1 to 1000.
        """
        if source is None:
            raise ConfigError(
                f"{self.name} ships no prompts, as their licence is unknown: name your copy of its JSON files"
            )
        uris = [source] if source.endswith(".json") else [join(source, name) for name in FILES]
        rows = [row for uri in uris for row in _read(uri)]
        rows.sort(key=lambda row: row["prompt_id"])
        return tuple(Item(key=str(row["prompt_id"]), prompt=row["Prompt"], record=row, samples=1) for row in rows)

    def image_path(self, item: Item, sample: int) -> str:
        """`images/<id>.png`. Raises `ConfigError` for a second sample."""
        only_sample(self.name, sample)
        return f"images/{item.key}.png"

    def question(self, item: Item, template: str | None = None) -> str:
        """What the judge is asked about an item's picture; `template` replaces the project's own words.

        Raises `ConfigError` for a template without {prompt}.
        """
        text = self.template if template is None else template
        if "{prompt}" not in text:
            raise ConfigError(f"the judge's template of {self.name} has no {{prompt}}: say where the prompt belongs")
        return text.replace("{explanation}", str(item.record["Explanation"])).replace("{prompt}", item.prompt)

    def judgement(self, item: Item, sample: int, reply: str) -> Judgement:
        """The finding in a judge's reply: its grades, or the fault if they cannot be told for certain."""
        value, fault = read_grades(reply, self.grades, highest=self.highest)
        return Judgement(key=item.key, sample=sample, value=value, fault=fault, reply=reply)

    def import_judgements(self, data: bytes, *, where: str) -> list[Judgement]:
        """The findings in the rows that the official calculators read: `prompt_id` and the grades."""
        rows = json_lines(data, where)
        return [self._imported(row, f"{where}, record {number}") for number, row in enumerate(rows, start=1)]

    def _imported(self, row: Mapping[str, Any], where: str) -> Judgement:
        require(row, ("prompt_id",), where)
        value = {grade: row.get(grade) for grade in self.grades}
        good = all(type(grade) is int and 0 <= grade <= self.highest for grade in value.values())
        fault = "" if good else f"{where}: {value}, expected whole numbers from 0 to {self.highest}"
        return Judgement(key=str(row["prompt_id"]), sample=0, value=value if good else None, fault=fault)

    def category(self, item: Item) -> str:
        """The category of an item, by its id."""
        number = int(item.key)
        return next(name for name, last in zip(CATEGORIES, self.last, strict=True) if number <= last)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The weighted mean of the categories (0 to 1); no overall unless all of the 1000 ids were graded."""
        values, coverage = findings(items, judgements)
        by_category: dict[str, list[float]] = {name: [] for name in CATEGORIES}
        for item in items:
            if (item.key, 0) in values:
                by_category[self.category(item)].append(self.item_score(values[item.key, 0]))
        categories = {name: mean(scores) for name, scores in by_category.items()}
        whole = coverage.complete and len(items) == OFFICIAL_ITEMS
        parts = [value for value in categories.values() if value is not None]
        weighted = sum(weight * part for weight, part in zip(self.weights, parts, strict=True)) if whole else None
        why_not = {
            f"{len(items)} prompts instead of {OFFICIAL_ITEMS}": len(items) != OFFICIAL_ITEMS,
            "the official texts' digest is not on record, so neither prompts nor judge's template can be checked": True,
            f"the judge is not {self.official_judge}": judge.id != self.official_judge,
            INCOMPLETE: not coverage.complete,
        }
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=judge,
            coverage=coverage,
            overall=weighted,
            categories=categories,
            comparable=False,
            why_not=reasons(why_not),
            interval=bootstrap([[x for scores in by_category.values() for x in scores]], self.name) if whole else None,
            details={"unweighted": mean(parts) if whole else None},
        )

    def item_score(self, value: Mapping[str, int]) -> float:
        """One picture's score, 0 to 1: the WiScore of three grades, or the single one."""
        if len(self.grades) == 1:
            return value[self.grades[0]] / self.highest
        return sum(WEIGHTS[grade] * value[grade] for grade in self.grades) / self.highest


WISE = Wise(
    name="wise",
    protocol="legacy: WiScore by three grades, category weights .4 .167 .133 .1 .1 .1",
    last=(400, 567, 700, 800, 900, 1000),
    weights=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    grades=GRADES,
    highest=2,
    official_judge="gpt-4o-2024-05-13",
    template=LEGACY_PROMPT,
)
WISE_VERIFIED = Wise(
    name="wise-verified",
    protocol="verified: one grade 0 or 1, category weights .4 and five of .12",
    last=(400, 520, 640, 760, 880, 1000),
    weights=(0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    grades=("score",),
    highest=1,
    official_judge="Qwen3.5-35B-A3B",
    template=VERIFIED_PROMPT,
)


def read_grades(reply: str, grades: Sequence[str], *, highest: int) -> tuple[dict[str, int] | None, str]:
    """The grades in a reply and "", or None and what is wrong with it.

    They are read from labels in any case ("**Aesthetic Quality**: 2/2"), the number on the same line or the next; three
    lines of one digit each will do for three grades. A label that is missing, that is given two different numbers, or
    whose number isn't a whole one from 0 to `highest`, is a fault: nothing is taken for the likelier of two.
    """
    bare = [line.strip() for line in reply.splitlines() if line.strip()]
    if len(grades) > 1 and len(bare) == len(grades) and all(re.fullmatch(f"[0-{highest}]", line) for line in bare):
        return dict(zip(grades, map(int, bare), strict=True)), ""
    found: dict[str, int] = {}
    for grade in grades:
        numbers = set(_numbers(reply, grade))
        if not numbers:
            return None, f"no {grade.replace('_', ' ')} in {_shown(reply)}"
        if len(numbers) > 1 or not numbers <= {str(number) for number in range(highest + 1)}:
            return None, f"{grade.replace('_', ' ')} is {' and '.join(sorted(numbers))} in {_shown(reply)}"
        found[grade] = int(numbers.pop())
    return found, ""


def _numbers(reply: str, grade: str) -> list[str]:
    """What stands where the label's number belongs, each time; "1-2" and "1.5" are one piece."""
    label = grade.replace("_", r"[\s_]+")
    after = r"(?:\s+score)?[\s*_`\"']*[:=][\s*_`\"']*"
    number = r"(-?\d+(?:\s*(?:[.,–-]|to|or)\s*\d+)*)"
    return re.findall(rf"(?<![a-z]){label}{after}{number}", reply, re.IGNORECASE)


def _shown(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def _read(uri: str) -> list[dict[str, Any]]:
    rows = json_value(read_bytes(uri), uri)
    if not isinstance(rows, list):
        raise DataError(f"{uri} is a {type(rows).__name__}: expected a list of prompts")
    for number, row in enumerate(rows, start=1):
        where = f"{uri}, record {number}"
        require(row, ("Prompt", "Explanation", "prompt_id"), where, texts=("Prompt",))
        if not (type(row["prompt_id"]) is int and 1 <= row["prompt_id"] <= OFFICIAL_ITEMS):
            raise DataError(f"{where}: prompt_id {row['prompt_id']!r}, expected a number from 1 to {OFFICIAL_ITEMS}")
    return rows
