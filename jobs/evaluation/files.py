"""Where an evaluation's files lie, and how they are read. What a stage needs, it finds here.

<out>/target.json                 what was evaluated: results of another target are never mixed in
<out>/report.html, report.json
<out>/<suite>/items.jsonl         written by prepare
<out>/<suite>/truth/KEY.png       the true pictures, where the suite has them
<out>/<suite>/images/…            the official layout and nothing else; asking suites have replies/KEY.json instead
<out>/<suite>/files.jsonl         key, sample, seed, path, sha256 and fault of each
<out>/<suite>/cost.json           how many files were made, and in what time
<out>/<suite>/judge.json          who judged last: the score counts this judge's findings alone
<out>/<suite>/judgements.jsonl    one row for each finding of every judge, with the judge's own words
<out>/<suite>/score.json
<out>/<suite>/controls/NAME/…     images, files and judgements of a control
<out>/partial/                    files that are being written
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from blip3o.data import storage
from blip3o.errors import DataError
from blip3o.evaluate.suite import Item, Judge, Judgement, Suite, item_seed
from blip3o.evaluate.suites.files import json_lines

READERS = 16  # threads that read images for their sums
Rows = list[dict[str, Any]]


def write_rows(uri: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    storage.write_bytes(uri, "".join(f"{line}\n" for line in lines).encode())


def read_rows(uri: str) -> Rows:
    """The rows of a file of JSON lines. Raises `DataError` where a line is no JSON object."""
    return json_lines(storage.read_bytes(uri), uri)


def parse_reply(data: bytes) -> str:
    """The reply in a file of replies."""
    return str(json.loads(data)["reply"])


def write_json(uri: str, value: Mapping[str, Any]) -> None:
    """A JSON object, whole or not at all."""
    storage.write_bytes(uri, json.dumps(value, indent=1, ensure_ascii=False).encode())


@dataclass(frozen=True, kw_only=True)
class Made:
    """One file that was asked for: where it is below its place, and what it holds; a `fault` where it is lacking."""

    key: str
    sample: int
    seed: int
    path: str
    sha256: str
    fault: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """The files of one suite at `uri`, or of its control `control`."""

    out: str
    suite: Suite
    asks: bool
    control: str = ""

    @property
    def uri(self) -> str:
        """The folder."""
        folder = storage.join(self.out, self.suite.name)
        return storage.join(folder, "controls", self.control) if self.control else folder

    @property
    def aside(self) -> str:
        """Where local files grow: what a killed process leaves must not lie among finished images."""
        return storage.join(self.out, "partial")

    @property
    def items_uri(self) -> str:
        """The items, which controls share with their suite."""
        return storage.join(self.out, self.suite.name, "items.jsonl")

    def file(self, name: str) -> str:
        """The URI of one of the place's files."""
        return storage.join(self.uri, name)

    def truth(self, item: Item) -> str:
        """The URI of an item's true picture."""
        return storage.join(self.out, self.suite.name, "truth", f"{item.key}.png")

    def path(self, item: Item, sample: int) -> str:
        """Where, below the place, the file of a sample lies."""
        if self.asks:
            return f"replies/{item.key}-{sample}.json"
        return self.suite.image_path(item, sample)

    def seed(self, item: Item, sample: int) -> int:
        """The seed of a sample; a control that draws has the seeds of what it is a control of."""
        return item_seed(self.suite.name, item.key, sample)

    def read_items(self) -> list[Item]:
        """The items that prepare wrote. Raises `DataError` if it did not."""
        if not storage.exists(self.items_uri):
            raise DataError(f"{self.items_uri} does not exist: run --stage prepare first")
        return [Item(**row) for row in read_rows(self.items_uri)]

    def present(self, items: Sequence[Item]) -> set[str]:
        """The paths of the files that are finished, in all folders where files of these items lie."""
        folders = {self.path(item, 0).partition("/")[0] for item in items}
        root = storage.normalize(self.uri)
        listed = [file.uri for folder in folders for file in storage.list_files(storage.join(root, folder))]
        return {uri.removeprefix(f"{root}/") for uri in listed}

    def describe(self, items: Sequence[Item], faults: Mapping[str, str]) -> list[Made]:
        """What is there of what was asked for; `faults` by URI. Reads every file for its sum."""
        present = self.present(items)
        wanted = [(item, sample) for item in items for sample in range(item.samples)]

        def one(pair: tuple[Item, int]) -> Made:
            item, sample = pair
            path = self.path(item, sample)
            there = path in present
            return Made(
                key=item.key,
                sample=sample,
                seed=self.seed(item, sample),
                path=path,
                sha256=hashlib.sha256(storage.read_bytes(self.file(path))).hexdigest() if there else "",
                fault="" if there else faults.get(self.file(path), "not made yet"),
            )

        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(one, wanted))

    def write_made(self, made: Iterable[Made]) -> None:
        """Writes files.jsonl."""
        write_rows(self.file("files.jsonl"), map(asdict, made))

    def read_made(self) -> list[Made]:
        """The rows of files.jsonl. Raises `DataError` if generate did not run."""
        uri = self.file("files.jsonl")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage generate first")
        return [Made(**row) for row in read_rows(uri)]

    def read_judge(self) -> Judge:
        """Who judged last. Raises `DataError` if judge did not run."""
        uri = self.file("judge.json")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage judge first")
        return Judge(**json.loads(storage.read_bytes(uri)))

    def read_judgements(self) -> list[Judgement]:
        """The findings of the judge that judged last. Raises `DataError` if judge did not run."""
        by = asdict(self.read_judge())
        uri = self.file("judgements.jsonl")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage judge first")
        names = [field.name for field in fields(Judgement)]
        rows = [row for row in read_rows(uri) if row["judge"] == by]
        return [Judgement(**{name: row[name] for name in names}) for row in rows]
