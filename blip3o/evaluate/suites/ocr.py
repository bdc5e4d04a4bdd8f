"""Text rendering: a text recogniser reads an image of quoted words, and the result is compared letter by letter.

The prompts are this project's own, so the score compares runs and models under one recogniser, never with published
figures.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner, load_plug_in, split_spec
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import json_lines, require, text_id
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, mean, reasons
from blip3o.storage import read_bytes

_TEXTS = {
    "word": ("OPEN", "HELLO", "Bakery", "COFFEE", "Library", "EXIT"),
    "words": ("NO PARKING", "Happy Birthday", "FRESH FRUIT", "Mind the gap", "WET PAINT", "Welcome home"),
    "number": ("2026", "No 7", "19:45", "42 km", "3.50", "Gate 12"),
}
_PLACES = (
    "a wooden sign that says",
    "a white mug with the print",
    "a chalkboard with the words",
    "a poster that reads",
)


def letters(text: str) -> str:
    """The text that is compared: only letters and digits, with case and accents folded (recognisers drop spaces)."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in folded if letter.isalnum())


def edit_distance(a: str, b: str) -> int:
    """The smallest number of insertions, deletions and substitutions between two texts (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def similarity(wanted: str, lines: Sequence[str]) -> float:
    """1 - edit distance over the longer text, of `letters`; 1 for a perfect match, 0 where nothing matches.

    All lines count, in their reading order: words that nobody asked for cost as much as missing ones.
    """
    expected, read = letters(wanted), letters("".join(lines))
    return 1 - edit_distance(expected, read) / max(len(expected), len(read), 1)


class Ocr(Suite):
    """Quoted texts of one word, several words, and digits; a judgement is {"lines": [str]}, read from top to bottom."""

    name = "ocr"
    protocol = "own: 1 - edit distance over the longer text, spaces and case aside"
    samples = 2

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The 18 built-in prompts, or those of a JSONL file {id, prompt, text, category (optional)}."""
        rows = _read(source) if source else _built_in()
        return tuple(Item(key=row["id"], prompt=row["prompt"], record=row, samples=self.samples) for row in rows)

    def image_path(self, item: Item, sample: int) -> str:
        """`images/<id>/<sample>.png`."""
        return f"images/{item.key}/{sample}.png"

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean similarity over images; `details["exact"]` is the share of images read without an error."""
        values, coverage = collect_values(items, judgements)
        by_key = {item.key: item for item in items}
        of_item: dict[str, list[float]] = {}
        by_category: dict[str, list[float]] = {}
        for (key, _), value in values.items():
            record = by_key[key].record
            found = similarity(record["text"], value["lines"])
            of_item.setdefault(key, []).append(found)
            by_category.setdefault(str(record.get("category", "all")), []).append(found)
        pictures = [found for group in by_category.values() for found in group]
        means = [sum(group) / len(group) for group in of_item.values()]
        whole = coverage.complete
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=judge,
            coverage=coverage,
            overall=mean(pictures) if whole else None,
            categories={name: mean(group) for name, group in by_category.items()},
            comparable=False,
            why_not=reasons({"prompts and score are this project's own": True, INCOMPLETE: not whole}),
            interval=bootstrap([means], self.name) if whole else None,
            details={"exact": mean(found == 1 for found in pictures)},
        )


def _built_in() -> list[dict[str, Any]]:
    texts = [(category, text) for category, group in _TEXTS.items() for text in group]
    return [
        {
            "id": f"{number:03d}",
            "prompt": f'{_PLACES[number % len(_PLACES)]} "{text}"',
            "text": text,
            "category": category,
        }
        for number, (category, text) in enumerate(texts)
    ]


def _read(source: str) -> list[dict[str, Any]]:
    rows = json_lines(read_bytes(source), source)
    for number, row in enumerate(rows, start=1):
        where = f"{source}, record {number}"
        require(row, ("id", "prompt", "text"), where, texts=("prompt", "text"))
        row["id"] = text_id(row, where)
    return rows


class RapidOcr:
    """The recogniser of the package `rapidocr-onnxruntime` (the extra `ocr`), which ships its models.

    Raises `ConfigError` if the package is not installed.
    """

    def __init__(self) -> None:
        try:
            import rapidocr_onnxruntime
        except ImportError as error:
            raise ConfigError("rapidocr-onnxruntime is not installed: pip install 'blip3o[ocr]'") from error
        self._read = rapidocr_onnxruntime.RapidOCR()
        self.judge = Judge(id="rapidocr-onnxruntime", version=version("rapidocr-onnxruntime"))

    def lines(self, png: bytes) -> list[str]:
        """The lines of text in an image, in the recogniser's order, top to bottom."""
        pixels = np.asarray(open_image(png))
        found, _ = self._read(np.ascontiguousarray(pixels[:, :, ::-1]))  # the recogniser takes BGR
        return [line[1] for line in found or []]


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """A plug-in `f(image) -> [line]`, or by default `RapidOcr`. Raises `ConfigError` if that is not installed."""
    if request.spec is None:
        recogniser = RapidOcr()
        read, judge = recogniser.lines, recogniser.judge
    else:
        plug_in, judge = load_plug_in(*split_spec("ocr", request.spec, "MODULE:FUNCTION"))

        def read(png: bytes) -> list[str]:
            return [str(line) for line in plug_in(open_image(png))]

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        return Judgement(key=item.key, sample=sample, value={"lines": read(data)})

    return JudgeRunner(judge=judge, judge_sample=judge_sample)


def grade(item: Item, value: Mapping[str, Any]) -> float:
    """The grade of one image: the `similarity` of what was read."""
    return similarity(item.record["text"], value["lines"])


def reason(value: Mapping[str, Any]) -> str:
    """What was read in an image, in a line."""
    return f"read: {' / '.join(value['lines']) or 'nothing'}"
