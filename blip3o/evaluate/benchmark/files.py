"""Where an evaluation's files lie, and how they are read. What a stage needs, it finds here.

<out>/target.json                 what was evaluated: results of another target are never mixed in
<out>/report.html, report.json
<out>/<suite>/items.jsonl         written by prepare
<out>/<suite>/truth/KEY.png       the true pictures, where the suite has them
<out>/<suite>/images/…            the official layout and nothing else; asking suites have replies/KEY.json instead
<out>/<suite>/files.jsonl         key, sample, seed, path, sha256 and fault of each (see `Made`)
<out>/<suite>/grids.jsonl         path of each grid, and the sha256 of it and of its tiles when it was made
<out>/<suite>/cost.json           how many files were made, and in what time
<out>/<suite>/judge.json          who judged last: the score counts this judge's findings alone
<out>/<suite>/judgements.jsonl    one row for each finding of every judge, with the judge's own words
<out>/<suite>/score.json
<out>/<suite>/controls/NAME/…     images, files and judgements of a control
<out>/partial/                    files that are being written
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from blip3o import storage
from blip3o.errors import DataError, one_line
from blip3o.evaluate.benchmark.work import json_bytes
from blip3o.evaluate.suites.files import json_lines, json_value, require, shown
from blip3o.evaluate.suites.suite import Item, Judge, Judgement, Suite, item_seed, only_sample
from blip3o.storage import MissingFileError

READERS = 16  # threads that read images for their sums
Rows = list[dict[str, Any]]
T = TypeVar("T")


def write_rows(uri: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, whole or not at all."""
    storage.write_bytes(uri, b"".join(json_bytes(row) + b"\n" for row in rows))


def read_rows(uri: str) -> Rows:
    """The rows of a file of JSON lines. Raises `DataError` where a line is no JSON object."""
    return json_lines(storage.read_bytes(uri), uri)


def parse_reply(data: bytes, where: str = "the reply") -> str:
    """The reply in a file of replies. Raises `DataError` where it is none."""
    value = json_value(data, where)
    require(value, ("reply",), where, texts=("reply",))
    assert isinstance(value, dict)  # `require` saw to it
    return str(value["reply"])


def read_json(uri: str) -> dict[str, Any]:
    """The JSON object of a file. Raises `DataError` where it holds none, `MissingFileError` where there is no file."""
    value = json_value(storage.read_bytes(uri), uri)
    if not isinstance(value, dict):
        raise DataError(f"{uri} holds no JSON object: remove it, and run the stage that writes it")
    return value


def sums_of(uris: Iterable[str]) -> dict[str, str]:
    """The sha256 of what lies at each URI now; those where nothing lies are left out."""

    def one(uri: str) -> tuple[str, str]:
        try:
            return uri, hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        except MissingFileError:
            return uri, ""

    with ThreadPoolExecutor(READERS) as readers:
        return {uri: found for uri, found in readers.map(one, dict.fromkeys(uris)) if found}


def write_json(uri: str, value: Mapping[str, Any]) -> None:
    """A JSON object, whole or not at all."""
    storage.write_bytes(uri, json_bytes(value, indent=1))


@dataclass(frozen=True, kw_only=True)
class Made:
    """One file that was asked for: where it is below its place, and what it holds; a `fault` where it is lacking.

    `original` is the sha256 with which the file was described first, after it was made; `picture` that of the picture
    that a reply is about ("" for a drawing).
    """

    key: str
    sample: int
    seed: int
    path: str
    sha256: str
    fault: str
    original: str = ""
    picture: str = ""


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
        """Where, below the place, the file of a sample lies. Raises `ConfigError` where there is no place for it."""
        if self.asks:
            only_sample(self.suite.name, sample)
            return f"replies/{item.key}-{sample}.json"
        return self.suite.image_path(item, sample)

    def seed(self, item: Item, sample: int) -> int:
        """The seed of a sample; a control that draws has the seeds of what it is a control of."""
        return item_seed(self.suite.name, item.key, sample)

    def read_items(self) -> list[Item]:
        """The items that prepare wrote. Raises `DataError` if it did not."""
        if not storage.exists(self.items_uri):
            raise DataError(f"{self.items_uri} does not exist: run --stage prepare first")
        return [_as(Item, row, self.items_uri) for row in read_rows(self.items_uri)]

    def present(self, items: Sequence[Item]) -> set[str]:
        """The paths of the files that are finished, in all folders where files of these items lie."""
        folders = {self.path(item, 0).partition("/")[0] for item in items}
        root = storage.normalize(self.uri)
        listed = [file.uri for folder in folders for file in storage.list_files(storage.join(root, folder))]
        return {uri.removeprefix(f"{root}/") for uri in listed}

    def sums(self, items: Sequence[Item]) -> dict[tuple[str, int], str]:
        """The sha256 of each file that lies there now, by key and sample."""
        present = self.present(items)
        wanted = {(item.key, sample): self.path(item, sample) for item in items for sample in range(item.samples)}
        found = sums_of(self.file(path) for path in wanted.values() if path in present)
        return {place: found[uri] for place, path in wanted.items() if (uri := self.file(path)) in found}

    def pictures(self, items: Sequence[Item]) -> dict[str, str]:
        """The sha256 of the pictures that are asked about, by key; those that are not there are left out."""
        uris = {item.key: str(item.record["image"]) for item in items} if self.asks else {}
        found = sums_of(uris.values())
        return {key: found[uri] for key, uri in uris.items() if uri in found}

    def describe(
        self, items: Sequence[Item], faults: Mapping[str, str], made: AbstractSet[str] = frozenset()
    ) -> list[Made]:
        """What is there of what was asked for; `faults` by URI. Reads every file for its sum.

        What an earlier description says of the original and of the picture holds, but for files that were `made` since
        (by URI).
        """
        before = {(one.key, one.sample): one for one in self.read_made()} if self.described else {}
        now, pictures = self.sums(items), self.pictures(items)

        def one(item: Item, sample: int) -> Made:
            path, sum_now = self.path(item, sample), now.get((item.key, sample), "")
            earlier = None if self.file(path) in made else before.get((item.key, sample))
            return Made(
                key=item.key,
                sample=sample,
                seed=self.seed(item, sample),
                path=path,
                sha256=sum_now,
                fault="" if sum_now else faults.get(self.file(path), "not made yet"),
                original=(earlier and (earlier.original or earlier.sha256)) or sum_now,
                picture=(earlier and earlier.picture) or pictures.get(item.key, ""),
            )

        return [one(item, sample) for item in items for sample in range(item.samples)]

    def outdated(self, items: Sequence[Item]) -> set[str]:
        """The paths of replies about a picture that has changed since: they are asked for again."""
        if not (self.asks and self.described):
            return set()
        now = self.pictures(items)
        return {one.path for one in self.read_made() if one.picture and one.picture != now.get(one.key, one.picture)}

    @property
    def described(self) -> bool:
        """Whether there is a files.jsonl."""
        return storage.exists(self.file("files.jsonl"))

    def write_made(self, made: Iterable[Made]) -> None:
        """Writes files.jsonl."""
        write_rows(self.file("files.jsonl"), map(asdict, made))

    def read_made(self) -> list[Made]:
        """The rows of files.jsonl. Raises `DataError` if generate did not run."""
        uri = self.file("files.jsonl")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage generate first")
        return [_as(Made, row, uri) for row in read_rows(uri)]

    def read_judge(self) -> Judge:
        """Who judged last. Raises `DataError` if judge did not run."""
        uri = self.file("judge.json")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage judge first")
        return judge_of(read_json(uri), uri)

    def read_findings(self, by: Judge) -> list[tuple[str, Judgement]]:
        """The findings of a judge, each with the sha256 of the file that it is about.

        Raises `DataError` if judge did not run.
        """
        uri = self.file("judgements.jsonl")
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage judge first")
        names = [field.name for field in fields(Judgement)]
        rows = [row for row in read_judged(uri) if judge_of(row["judge"], uri) == by]
        return [(row["sha256"], _as(Judgement, {k: row[k] for k in names if k in row}, uri)) for row in rows]


def read_judged(uri: str) -> Rows:
    """The rows of a judgements.jsonl. Raises `DataError` where one is no finding."""
    rows = read_rows(uri)
    for number, row in enumerate(rows, start=1):
        where = f"{uri}, record {number}"
        require(row, ("key", "sample", "value", "sha256", "judge", "fault"), where, texts=("key", "sha256", "fault"))
        if type(row["sample"]) is not int:
            raise DataError(f"{where}: sample is {shown(row['sample'])}, expected a number")
    return rows


def _as(kind: Callable[..., T], row: Mapping[str, Any], uri: str) -> T:
    try:
        made = kind(**row)
    except TypeError as error:
        raise DataError(f"{uri} has a row of another kind ({one_line(error)}): give another --out") from error
    for field in fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        if not _fits(value, field.type):
            raise DataError(
                f"{uri} has a row whose {field.name} is {shown(value)}: give another --out, or restore the file"
            )
    return made


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Whether a value of a JSON file may be that of a field; fields of other types than these are not looked at."""
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping)
    return type(value) is kind if kind in (str, int, NoneType) else True


def judge_of(row: Mapping[str, Any], where: str) -> Judge:
    """The judge of a row. Raises `DataError` where it names none."""
    require(row, ("id", "version"), where)
    return Judge(**{field.name: row[field.name] for field in fields(Judge) if field.name in row})
