"""Where the files of an evaluation are, and how they are described. Every stage finds its input here.

<out>/target.json                 what was evaluated: results of another target are never mixed in
<out>/report.html, report.json
<out>/<suite>/items.jsonl         written by prepare
<out>/<suite>/truth/KEY.png       the true images, where the suite has them
<out>/<suite>/images/…            the official layout and nothing else; suites that ask have replies/KEY.json instead
<out>/<suite>/files.jsonl         key, sample, seed, path, sha256 and fault of each file (see `SampleFile`)
<out>/<suite>/grids.jsonl         path of each grid, its sha256, and the sha256 of its tiles when it was joined
<out>/<suite>/cost.json           how many files were made, and in what time
<out>/<suite>/judge.json          who judged last: the score counts only this judge's judgements
<out>/<suite>/judgements.jsonl    one row for each judgement of every judge, with the judge's own words
<out>/<suite>/score.json
<out>/<suite>/controls/NAME/…     images, files and judgements of a control
<out>/partial/                    files that are being written
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields

from blip3o import storage
from blip3o.errors import DataError
from blip3o.evaluate.benchmark.rows import (
    from_row,
    judge_of,
    read_json,
    read_judgement_rows,
    read_rows,
    write_rows,
)
from blip3o.evaluate.records import Item, Judge, Judgement
from blip3o.evaluate.suites.suite import Suite, item_seed, only_sample
from blip3o.storage import MissingFileError

READERS = 16  # threads that read files for their sha256


def sha256_of(uris: Iterable[str]) -> dict[str, str]:
    """The sha256 of the current content of each URI; URIs without a file are left out."""

    def digest(uri: str) -> tuple[str, str]:
        try:
            return uri, hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        except MissingFileError:
            return uri, ""

    with ThreadPoolExecutor(READERS) as readers:
        return {uri: found for uri, found in readers.map(digest, dict.fromkeys(uris)) if found}


@dataclass(frozen=True, kw_only=True)
class SampleFile:
    """A row of files.jsonl: one file that was asked for, and what it holds; a `fault` where it is missing.

    `path` is relative to the folder. `original` is the sha256 of the file when it was first described, right after it
    was made; `picture` is that of the image that a reply is about ("" for a generated image).
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
class SuiteFolder:
    """The files of one suite below `out`, or of its control `control`. `asks`: they are replies and not images."""

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
    def partial(self) -> str:
        """Where local files grow: leftovers of a killed process must not be among finished images."""
        return storage.join(self.out, "partial")

    @property
    def items_uri(self) -> str:
        """The items, which a suite shares with its controls."""
        return storage.join(self.out, self.suite.name, "items.jsonl")

    def file(self, name: str) -> str:
        """The URI of one of the folder's files."""
        return storage.join(self.uri, name)

    def truth(self, item: Item) -> str:
        """The URI of an item's true image, which a suite shares with its controls."""
        return storage.join(self.out, self.suite.name, "truth", f"{item.key}.png")

    def path(self, item: Item, sample: int) -> str:
        """The path of a sample's file, relative to the folder. Raises `ConfigError` where the layout has none."""
        if self.asks:
            only_sample(self.suite.name, sample)
            return f"replies/{item.key}-{sample}.json"
        return self.suite.image_path(item, sample)

    def seed(self, item: Item, sample: int) -> int:
        """The seed of a sample. A control has the same seeds as the suite that it controls."""
        return item_seed(self.suite.name, item.key, sample)

    def read_items(self) -> list[Item]:
        """The items that prepare wrote. Raises `DataError` if it did not run."""
        self._require(self.items_uri, "prepare")
        return [from_row(Item, row, self.items_uri) for row in read_rows(self.items_uri)]

    def present(self, items: Sequence[Item]) -> set[str]:
        """The paths of all finished files, in every folder that holds files of these items."""
        folders = {self.path(item, 0).partition("/")[0] for item in items}
        root = storage.normalize(self.uri)
        listed = [file.uri for folder in folders for file in storage.list_files(storage.join(root, folder))]
        return {uri.removeprefix(f"{root}/") for uri in listed}

    def sums(self, items: Sequence[Item]) -> dict[tuple[str, int], str]:
        """The sha256 of each file that exists now, by key and sample."""
        present = self.present(items)
        uris: dict[tuple[str, int], str] = {}
        for item in items:
            for sample in range(item.samples):
                path = self.path(item, sample)
                if path in present:
                    uris[item.key, sample] = self.file(path)
        found = sha256_of(uris.values())
        return {at: found[uri] for at, uri in uris.items() if uri in found}

    def pictures(self, items: Sequence[Item]) -> dict[str, str]:
        """The sha256 of the images that are asked about, by key; missing images are left out."""
        uris = {item.key: str(item.record["image"]) for item in items} if self.asks else {}
        found = sha256_of(uris.values())
        return {key: found[uri] for key, uri in uris.items() if uri in found}

    def describe(
        self, items: Sequence[Item], faults: Mapping[str, str], made: AbstractSet[str] = frozenset()
    ) -> list[SampleFile]:
        """A row for every file that was asked for; `faults` are by URI. Reads every file for its sha256.

        `original` and `picture` are carried over from an earlier description, except for the files that were `made`
        since then (by URI).
        """
        before = {(one.key, one.sample): one for one in self.read_files()} if self.described else {}
        now, pictures = self.sums(items), self.pictures(items)

        def row(item: Item, sample: int) -> SampleFile:
            path, sum_now = self.path(item, sample), now.get((item.key, sample), "")
            earlier = None if self.file(path) in made else before.get((item.key, sample))
            return SampleFile(
                key=item.key,
                sample=sample,
                seed=self.seed(item, sample),
                path=path,
                sha256=sum_now,
                fault="" if sum_now else faults.get(self.file(path), "not made yet"),
                original=(earlier and (earlier.original or earlier.sha256)) or sum_now,
                picture=(earlier and earlier.picture) or pictures.get(item.key, ""),
            )

        return [row(item, sample) for item in items for sample in range(item.samples)]

    def outdated(self, items: Sequence[Item]) -> set[str]:
        """The paths of replies about an image that has changed since: these questions are asked again."""
        if not (self.asks and self.described):
            return set()
        now = self.pictures(items)
        return {one.path for one in self.read_files() if one.picture and one.picture != now.get(one.key, one.picture)}

    @property
    def described(self) -> bool:
        """Whether files.jsonl exists."""
        return storage.exists(self.file("files.jsonl"))

    def write_files(self, rows: Iterable[SampleFile]) -> None:
        """Writes files.jsonl."""
        write_rows(self.file("files.jsonl"), map(asdict, rows))

    def read_files(self) -> list[SampleFile]:
        """The rows of files.jsonl. Raises `DataError` if generate did not run."""
        uri = self.file("files.jsonl")
        self._require(uri, "generate")
        return [from_row(SampleFile, row, uri) for row in read_rows(uri)]

    def read_judge(self) -> Judge:
        """Who judged last. Raises `DataError` if judge did not run."""
        uri = self.file("judge.json")
        self._require(uri, "judge")
        return judge_of(read_json(uri), uri)

    def read_judgements(self, by: Judge) -> list[tuple[str, Judgement]]:
        """A judge's judgements, each with the sha256 of the file that it is about.

        Raises `DataError` if judge did not run.
        """
        uri = self.file("judgements.jsonl")
        self._require(uri, "judge")
        names = [field.name for field in fields(Judgement)]
        rows = [row for row in read_judgement_rows(uri) if judge_of(row["judge"], uri) == by]
        return [(row["sha256"], from_row(Judgement, {k: row[k] for k in names if k in row}, uri)) for row in rows]

    def _require(self, uri: str, stage: str) -> None:
        if not storage.exists(uri):
            raise DataError(f"{uri} does not exist: run --stage {stage} first")
