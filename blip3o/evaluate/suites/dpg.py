"""DPG-Bench: long prompts, four images each, and a graph of yes/no questions about every image.

One set of answers gives two scores. `official` reproduces the published scorer including its faults, because every
published figure has them; `fixed` does what the paper says. Source: the benchmark's paper
(https://arxiv.org/abs/2403.05135) and its scorer's behaviour.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.judges.replies import Reply, answer
from blip3o.evaluate.judges.runner import (
    CONCURRENT_REQUESTS,
    JudgeRequest,
    JudgeRunner,
    endpoint_client,
    load_plug_in,
    split_spec,
)
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Coverage, Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import json_value, read_text, require
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, mean, reasons
from blip3o.storage import list_files, read_bytes

TILES = 4
BEST = 100.0
OFFICIAL_ITEMS = 1065
OFFICIAL_JUDGE = Judge(id="mplug-large-vqa", version="modelscope")
PROMPT_VERSION = "blip3o-1"  # of the words in which this project asks a judge, and of how it reads the replies
_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
_YES_OR_NO = re.compile(r"(?:(?:the )?(?:final )?answer(?: is)?[\s*:]{1,9})?[*_`\"'(]{0,3}(yes|no)", re.IGNORECASE)
_AROUND = " \t\r\n*_`\"'().!"  # characters that may surround a yes or no
Question = Mapping[str, Any]
Scores = dict[int, float]  # of questions, by their number


class _Tile(NamedTuple):
    raw: Scores
    final: Scores  # a question whose parent is answered no counts as no


def read_questions(data: bytes, where: str) -> dict[str, list[dict[str, Any]]]:
    """The questions by item, from the benchmark's CSV.

    Each is {number, text, parents (0: none), category, broad, row (from 0, of the whole file), prompt}. Raises
    `DataError` for anything but CSV in UTF-8, missing columns, truncated rows, invalid or duplicate numbers, and
    parents that the item does not have.
    """
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    reader = csv.DictReader(io.StringIO(read_text(data, where)))
    try:
        columns = list(reader.fieldnames or ())
        require(dict.fromkeys(columns), _COLUMNS, where)
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{where} has two columns '{twice}': keep one of them")
        for row, line in enumerate(reader):
            found[line["item_id"]].append(_question(row, line, f"{where}, row {row + 1}"))
    except csv.Error as error:  # for example a quote that is never closed
        raise DataError(f"{where} is no CSV after line {reader.line_num}: {error}") from error
    for key, questions in found.items():
        _check_graph(key, questions)
    return dict(found)


def _question(row: int, line: Mapping[str, str | None], where: str) -> dict[str, Any]:
    there = {name: value for name, value in line.items() if value is not None}  # None: the row ended before it
    require(there, _COLUMNS, where)
    return _parsed(row, there, where)


def _parsed(row: int, line: Mapping[str, str], where: str) -> dict[str, Any]:
    category = line["tuple"].split("(")[0].strip()
    try:
        number = int(line["proposition_id"])
        parents = [int(parent) for parent in line["dependency"].split(",")]
    except ValueError as error:
        raise DataError(
            f"{where}: {error}: proposition_id and dependency are numbers, as '2' and '0' or '1,3'"
        ) from error
    return {
        "number": number,
        "text": line["question_natural_language"],
        "parents": parents,
        "category": category,
        "broad": category.split("-")[0].strip(),
        "row": row,
        "prompt": line["text"],
    }


def _check_graph(key: str, questions: Sequence[Question]) -> None:
    numbers = Counter(question["number"] for question in questions)
    duplicates = [number for number, times in numbers.items() if times > 1]
    if duplicates:
        raise DataError(f"item '{key}' has question {duplicates[0]} {numbers[duplicates[0]]} times: numbers are unique")
    for question in questions:
        unknown = [parent for parent in question["parents"] if parent not in (0, *numbers)]
        if unknown:
            raise DataError(f"item '{key}': question {question['number']} depends on {unknown[0]}, which isn't there")


def judgement(item: Item, sample: int, answers: Mapping[int, str]) -> Judgement:
    """The judgement of one tile: the judge's verbatim answer to each question, by its number.

    Only exactly `yes` counts as a yes. A question without an answer makes the tile unreadable.
    """
    unanswered = [q["number"] for q in item.record["questions"] if q["number"] not in answers]
    if unanswered:
        fault = f"no answer to {len(unanswered)} of the questions, the first is {unanswered[0]}"
        return Judgement(key=item.key, sample=sample, value=None, fault=fault)
    value = {"answers": {str(number): answer for number, answer in answers.items()}}
    return Judgement(key=item.key, sample=sample, value=value)


def question_text(question: Question) -> str:
    """The request to a chat model for one question about a tile."""
    return f"{question['text']}\nAnswer with a single word, yes or no, by what can be seen in the image."


def read_answer(reply: str) -> str | None:
    """The yes or no in a chat model's reply, in any formatting ("**Yes.**", "Answer: yes"); None if it says more."""
    match = _YES_OR_NO.fullmatch((answer(reply) or "").strip(_AROUND))
    return match.group(1).lower() if match else None


def tile_scores(questions: Sequence[Question], answers: Mapping[str, str]) -> tuple[Scores, Scores]:
    """The questions' scores by number: as answered, and after every question with a parent of 0 has become 0.

    Questions are processed in their order, so a no propagates down a chain; a parent that comes later still counts as
    answered. Raises `KeyError` for a parent that is not among the questions.
    """
    raw = {q["number"]: float(answers[str(q["number"])] == "yes") for q in questions}
    final = dict(raw)
    for question in questions:
        if any(final[parent] == 0 for parent in question["parents"] if parent != 0):
            final[question["number"]] = 0.0
    return raw, final


class Dpg(Suite):
    """The benchmark, from the user's files. The headline is the `official` score; `details` hold both."""

    name = "dpg"
    protocol = "official: with the published scorer's faults"
    samples = TILES

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The items of a questions CSV, a JSON file {name: prompt}, or a folder of `<name>.txt` (and at most one CSV).

        Without the CSV, the items can be drawn but not scored. Raises `ConfigError` without a source, `DataError` for
        another format.
        """
        if source is None:
            raise ConfigError("dpg needs its prompts: name the questions CSV, or a JSON file or folder of prompts")
        if source.endswith(".csv"):
            questions = read_questions(read_bytes(source), source)
            prompts = [(key, of_item[0]["prompt"]) for key, of_item in questions.items()]
        elif source.endswith(".json"):
            prompts, questions = _json_prompts(json_value(read_bytes(source), source), source), {}
        else:
            prompts, questions = _folder(source)
        return tuple(
            Item(key=key, prompt=prompt, record={"questions": questions.get(key, [])}, samples=self.samples)
            for key, prompt in prompts
        )

    def image_path(self, item: Item, sample: int) -> str:
        """`tiles/<name>/<sample>.png`, because the official folder holds only the grids."""
        return f"tiles/{item.key}/{sample}.png"

    def grids(self, items: Sequence[Item]) -> dict[str, tuple[str, str, str, str]]:
        """`images/<name>.png` of each item, from its four tiles."""
        paths = {item.key: [self.image_path(item, number) for number in range(TILES)] for item in items}
        return {f"images/{key}.png": (a, b, c, d) for key, (a, b, c, d) in paths.items()}

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """Scores (0 to 100) of judgements {"answers": {number: answer}}. Raises `ConfigError` without questions."""
        silent = [item.key for item in items if not item.record["questions"]]
        if silent:
            raise ConfigError(f"{len(silent)} items have no questions, the first is '{silent[0]}': give dpg the CSV")
        values, coverage = collect_values(items, judgements)
        official, fixed = (_mode(items, values, coverage, faults=faults) for faults in (True, False))
        why_not = reasons(
            {
                f"{len(items)} prompts instead of {OFFICIAL_ITEMS}": len(items) != OFFICIAL_ITEMS,
                f"not {TILES} tiles of each prompt": any(item.samples != TILES for item in items),
                "the official texts' digest is not on record, so the prompts cannot be checked": True,
                f"the judge is not {OFFICIAL_JUDGE.id}": not judge.same(OFFICIAL_JUDGE),
                INCOMPLETE: not coverage.complete,
            }
        )
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=judge,
            coverage=coverage,
            overall=official["overall"],
            categories=official["broad"],
            comparable=False,
            why_not=why_not,
            best=BEST,
            interval=_interval(official.pop("prompts")) if coverage.complete else None,
            details={"official": official, "fixed": {k: v for k, v in fixed.items() if k != "prompts"}},
        )


def _interval(prompts: Sequence[float]) -> tuple[float, float] | None:
    return bootstrap([prompts], "dpg", best=BEST)


def _mode(items: Sequence[Item], values: Mapping[tuple[str, int], Any], coverage: Coverage, *, faults: bool) -> dict:
    """The figures (0 to 100) of one mode; `survivors` is the mean over the prompts that could be scored."""
    prompts: list[float] = []
    categories: dict[str, list[float]] = defaultdict(list)
    broad: dict[str, list[float]] = defaultdict(list)
    for item in items:
        tiles = _tiles(item, values, faults=faults)
        if tiles is None:
            continue
        prompts.append(100 * sum(sum(t.final.values()) / len(t.final) for t in tiles) / len(tiles))
        # The official scorer keeps only the last tile's answers for the categories, from before a no has propagated.
        seen = [tiles[-1].raw] if faults else [tile.final for tile in tiles]
        for question in item.record["questions"]:
            found = [100 * scores[question["number"]] for scores in seen if question["number"] in scores]
            categories[question["category"]] += found
            broad[question["broad"]] += found
    survivors = mean(prompts)
    return {
        "overall": survivors if coverage.complete else None,
        "survivors": survivors,
        "n_prompts": len(prompts),
        "broad": {name: mean(found) for name, found in sorted(broad.items())},
        "categories": {name: mean(found) for name, found in sorted(categories.items())},
        "prompts": prompts,
    }


def _tiles(item: Item, values: Mapping[tuple[str, int], Any], *, faults: bool) -> list[_Tile] | None:
    """The item's tiles, or None where one is missing, or where the official scorer drops the item."""
    answers = [values[item.key, n]["answers"] for n in range(item.samples) if (item.key, n) in values]
    questions = item.record["questions"]
    if any(str(q["number"]) not in of_tile for q in questions for of_tile in answers):
        raise DataError(f"the answers on '{item.key}' are not to its questions: judge it again")
    if len(answers) < item.samples:
        return None
    if not faults:
        return [_Tile(*tile_scores(questions, of_tile)) for of_tile in answers]
    # The official reader skips the first row of the file as if it were a second header.
    questions = [question for question in questions if question["row"] > 0]
    try:
        return [_Tile(*tile_scores(questions, of_tile)) for of_tile in answers] if questions else None
    except KeyError:  # a child of the skipped question: the official scorer prints the error and continues
        return None


def _json_prompts(value: object, where: str) -> list[tuple[str, str]]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DataError(f"{where} is no object of prompts: expected {{name: prompt}}")
    return [(name.removesuffix(".txt"), text) for name, text in value.items()]


def _folder(uri: str) -> tuple[list[tuple[str, str]], dict[str, list[dict[str, Any]]]]:
    texts = list_files(uri, suffix=".txt")
    if not texts:
        raise DataError(f"no prompts below {uri}: expected one <name>.txt each")
    prompts = [(PurePosixPath(file.uri).stem, read_text(read_bytes(file.uri), file.uri).strip()) for file in texts]
    tables = list_files(uri, suffix=".csv")
    if len(tables) > 1:
        raise DataError(f"{len(tables)} CSV files below {uri}: leave one, that of the questions")
    return prompts, read_questions(read_bytes(tables[0].uri), tables[0].uri) if tables else {}


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """An endpoint, or a plug-in `f(image, question) -> "yes" or "no"`, asked about one tile at a time.

    Raises `ConfigError` without either.
    """
    kind, rest = split_spec("dpg", request.spec, "openai:BASE_URL:MODEL or MODULE:FUNCTION")
    if kind == "openai":
        client = endpoint_client(rest, request.options, PROMPT_VERSION)

        def ask_endpoint(data: bytes, question: Question) -> Reply:
            return client.ask(question_text(question), [data])

        return JudgeRunner(
            judge=client.judge,
            judge_sample=_tile_judge(ask_endpoint),
            threads=CONCURRENT_REQUESTS,
            finish=client.finish,
        )
    answerer, judge = load_plug_in(kind, rest)

    def ask_plug_in(data: bytes, question: Question) -> Reply:
        return Reply(text=str(answerer(open_image(data), question["text"])))

    return JudgeRunner(judge=judge, judge_sample=_tile_judge(ask_plug_in))


def _tile_judge(ask: Callable[[bytes, Question], Reply]) -> Callable[[Item, int, bytes], Judgement]:
    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        read: dict[int, str | None] = {}
        for question in item.record["questions"]:
            reply = ask(data, question)
            if reply.fault:  # the tile cannot be judged any more, so its other questions need not be paid for
                fault = f"{reply.fault} (question {question['number']})"
                return Judgement(key=item.key, sample=sample, value=None, fault=fault, reply=reply.verbatim)
            read[question["number"]] = read_answer(reply.text)
        # A reply that is neither yes nor no is left out. That makes the tile unreadable; it does not count as a no.
        return judgement(item, sample, {number: word for number, word in read.items() if word is not None})

    return judge_sample


def grade(item: Item, value: Mapping[str, Any]) -> float | None:
    """The grade of one tile: the share of its questions that were answered yes."""
    answers = list(value["answers"].values())
    return sum(answer == "yes" for answer in answers) / len(answers) if answers else None


def reason(value: Mapping[str, Any]) -> str:
    """The questions about a tile that were answered no, in a line."""
    noes = [number for number, answer in value["answers"].items() if answer != "yes"]
    return f"no to question {', '.join(noes)}" if noes else "yes to every question"
