"""WISE: prompts that require world knowledge, graded by a vision-language model. Two suites.

`wise` is the first list with three grades per image (weighted to the WiScore; `details` also hold the unweighted mean
that BAGEL reports). `wise-verified` is the revised list with a single grade. Their figures never belong in one column.
The authors' instructions to the judge are not part of this project: it has its own, and a user may pass others. Source:
the paper (https://arxiv.org/abs/2503.07265) and its calculators' behaviour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import json_value, require
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, mean, only_sample, reasons
from blip3o.evaluate.suites.wise.grades import VOID, file_rows, prompt_number, read_grades, whole_grade
from blip3o.storage import exists, join, read_bytes

FILES = ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json")
VERIFIED_FILES = tuple(name.replace(".json", "_verified.json") for name in FILES)
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

    `last` are the last ids of the six categories, `weights` the categories' shares of the overall, and `template` the
    instructions to the judge with the placeholders {prompt} and {explanation}. `layouts` are the folders below a source
    that may hold the prompts, with their files in the official order.
    """

    name: str
    protocol: str
    last: tuple[int, ...]
    weights: tuple[float, ...]
    grades: tuple[str, ...]
    highest: int
    official_judge: str
    template: str
    layouts: tuple[tuple[str, tuple[str, ...]], ...]
    samples: int = 1

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The items of the user's copy: one JSON list, or a folder with the three official files (or the repository's).

        Raises `ConfigError` without a source, `DataError` for another format or ids that are not 1 to 1000.
        """
        if source is None:
            raise ConfigError(
                f"{self.name} ships no prompts, as their licence is unknown: name your copy of its JSON files"
            )
        rows = [row for uri in self._files(source) for row in _read(uri)]
        rows.sort(key=lambda row: row["prompt_id"])
        return tuple(Item(key=str(row["prompt_id"]), prompt=row["Prompt"], record=row, samples=1) for row in rows)

    def _files(self, source: str) -> list[str]:
        if source.lower().endswith(".json"):
            return [source]
        for folder, names in self.layouts:
            uris = [join(source, folder, name) if folder else join(source, name) for name in names]
            if exists(uris[0]):
                return uris
        names = self.layouts[0][1]
        raise DataError(f"{source} holds no {names[0]}: name a JSON list, or the folder of {', '.join(names)}")

    def image_path(self, item: Item, sample: int) -> str:
        """`images/<id>.png`. Raises `ConfigError` for a second sample."""
        only_sample(self.name, sample)
        return f"images/{item.key}.png"

    def question(self, item: Item, template: str | None = None) -> str:
        """The instructions to the judge about an item's image; `template` replaces the project's own.

        Raises `ConfigError` for a template without {prompt}.
        """
        text = self.template if template is None else template
        if "{prompt}" not in text:
            raise ConfigError(f"the judge's template of {self.name} has no {{prompt}}: say where the prompt belongs")
        return text.replace("{explanation}", str(item.record["Explanation"])).replace("{prompt}", item.prompt)

    def judgement(self, item: Item, sample: int, reply: str) -> Judgement:
        """The judgement in a judge's reply: its grades, or the fault if they are ambiguous."""
        value, fault = read_grades(reply, self.grades, highest=self.highest)
        return Judgement(key=item.key, sample=sample, value=value, fault=fault, reply=reply)

    def import_judgements(self, data: bytes, *, where: str) -> list[Judgement]:
        """The judgements in one file of the official evaluators; see `import_files`."""
        return self.import_files([(where, data)])

    def import_files(self, files: Sequence[tuple[str, bytes]]) -> list[Judgement]:
        """The judgements in files (name, content) of the official evaluators, each JSON Lines or a JSON list.

        A row has `prompt_id` and the grades, or the judge's words in `evaluation`; words count only where no row has
        the grades of that id. Raises `DataError` for rows with neither, and for invalid ids.
        """
        graded: list[Judgement] = []
        worded: list[Judgement] = []
        for where, data in files:
            for number, row in enumerate(file_rows(data, where), start=1):
                place = f"{where}, record {number}"
                require(row, ("prompt_id",), place)
                (graded if any(grade in row for grade in self.grades) else worded).append(self._imported(row, place))
        done = {one.key for one in graded}
        return [*graded, *(one for one in worded if one.key not in done)]

    def _imported(self, row: Mapping[str, Any], where: str) -> Judgement:
        number = prompt_number(row["prompt_id"], where, last=OFFICIAL_ITEMS)
        item = Item(key=str(number), prompt="", record=row, samples=1)
        if not any(grade in row for grade in self.grades):
            require(row, ("evaluation",), where, texts=("evaluation",))
            return self.judgement(item, 0, row["evaluation"])
        grades = {grade: whole_grade(row.get(grade), highest=self.highest) for grade in self.grades}
        invalid = {grade: row.get(grade) for grade, value in grades.items() if value is None}
        fault = f"{where}: {invalid}, expected whole numbers from 0 to {self.highest}" if invalid else ""
        if any(value in VOID for value in invalid.values() if isinstance(value, int | float)):
            fault = f"{where}: {invalid}: the evaluator marks this reply as unread"
        return Judgement(key=item.key, sample=0, value=None if invalid else grades, fault=fault)

    def category(self, item: Item) -> str:
        """The category of an item, by its id."""
        number = int(item.key)
        return next(name for name, last in zip(CATEGORIES, self.last, strict=True) if number <= last)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The weighted mean of the categories (0 to 1); no overall unless all 1000 ids were graded."""
        values, coverage = collect_values(items, judgements)
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
        """One image's score, 0 to 1: the WiScore of three grades, or the single grade."""
        if len(self.grades) == 1:
            return value[self.grades[0]] / self.highest
        return sum(WEIGHTS[grade] * value[grade] for grade in self.grades) / self.highest

    def grade(self, item: Item, value: Mapping[str, Any]) -> float:
        """The grade of one image: its `item_score`."""
        return self.item_score(value)


def reason(value: Mapping[str, Any]) -> str:
    """The grades of an image, in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {grade}" for name, grade in value.items())


WISE = Wise(
    name="wise",
    protocol="legacy: WiScore by three grades, category weights .4 .167 .133 .1 .1 .1",
    last=(400, 567, 700, 800, 900, 1000),
    weights=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    grades=GRADES,
    highest=2,
    official_judge="gpt-4o-2024-05-13",
    template=LEGACY_PROMPT,
    layouts=(("", FILES), ("data", FILES), ("WISE_legacy/data", FILES)),
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
    layouts=(("", VERIFIED_FILES), ("data_verified", VERIFIED_FILES), ("", FILES)),
)


def _read(uri: str) -> list[dict[str, Any]]:
    rows = json_value(read_bytes(uri), uri)
    if not isinstance(rows, list):
        raise DataError(f"{uri} is a {type(rows).__name__}: expected a list of prompts")
    for number, row in enumerate(rows, start=1):
        where = f"{uri}, record {number}"
        require(row, ("Prompt", "Explanation", "prompt_id"), where, texts=("Prompt",))
        row["prompt_id"] = prompt_number(row["prompt_id"], where, last=OFFICIAL_ITEMS)
    return rows
