"""What the tests of the import share: pictures in a folder, and what an import of it holds."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from blip3o import storage
from blip3o.data.sets.imported import Imported, import_set
from blip3o.data.sets.importing.columns import TableOptions
from tests.data.shard_files import png

Sample = tuple[bytes, str, dict[str, Any]]  # picture, caption, record


def pictures(folder: Path) -> Path:
    """A folder of a.png, b.png and deep/c.png."""
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        storage.write_bytes(f"{folder}/{name}", png(number))
    return folder


def samples(done: Imported) -> list[Sample]:
    """The samples of an imported set, in order of their keys."""
    found = []
    for uri in (uri for shards in done.summary.shards.values() for uri in shards):
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
            parts = [tar.extractfile(member).read() for member in tar.getmembers()]  # type: ignore[union-attr]
        for image, text, record in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            found.append((image, text.decode(), json.loads(record, parse_constant=_refuse)))
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def import_table(folder: Path, name: str, data: bytes, **options: str) -> Imported:
    """An import of a table of this name and content in a folder of pictures."""
    storage.write_bytes(f"{pictures(folder / 'in')}/{name}", data)
    return import_set(f"{folder}/in/{name}", f"{folder}/out", options=TableOptions(**options))
