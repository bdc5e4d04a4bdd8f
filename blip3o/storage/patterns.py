"""The files that a shard pattern matches: wildcards (`*`, `?`, `[…]`) in its last part, and WebDataset's braces.

A file of exactly that name wins over the pattern. Every name that braces expand to must exist.
"""

import fnmatch
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence

from blip3o import storage
from blip3o.errors import DataError

SHOWN = 3  # names that an error lists
MAX_NAMES = 100_000  # that braces may expand to
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", re.ASCII)
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")
_WILDCARD = re.compile(r"[*?[]")


def find_shards(shards_uri: str) -> list[storage.FileInfo]:
    """The files that a URI or a pattern names, sorted by URI, each once.

    Raises `DataError` if there is none, or if one that braces name is missing; `StorageError` as listings do.
    """
    if storage.exists(shards_uri):
        return [storage.stat(shards_uri)]
    names = list(itertools.islice(_expanded(shards_uri), MAX_NAMES + 1))
    if len(names) > MAX_NAMES:
        raise DataError(f"the braces of {storage.shown(shards_uri)} stand for more than {MAX_NAMES} names: write fewer")
    folders: dict[str, list[storage.FileInfo]] = {}
    folder = pattern = ""
    found: dict[str, storage.FileInfo] = {}
    missing = []
    for name in names:
        folder, pattern = _parted(storage.normalize(name))
        if folder not in folders:
            folders[folder] = storage.list_files(folder, recursive=False)
        matching = _matching(folders[folder], folder, pattern)
        if not matching:
            missing.append(pattern)
        found |= {file.uri: file for file in matching}
    if missing and len(names) > 1:
        listed = _some(missing)
        raise DataError(
            f"{len(missing)} of the {len(names)} files that {storage.shown(shards_uri)} names are missing: {listed}"
        )
    if missing:
        raise DataError(_nothing(shards_uri, folder, pattern, folders[folder]))
    return [found[uri] for uri in sorted(found)]


def _parted(uri: str) -> tuple[str, str]:
    """The folder and the last part; a bucket has none."""
    return (uri, "") if re.fullmatch("s3://[^/]*", uri) else posixpath.split(uri)


def _matching(files: Sequence[storage.FileInfo], folder: str, pattern: str) -> list[storage.FileInfo]:
    """The file of that name, else those that match it as a pattern."""
    same = [file for file in files if file.uri == posixpath.join(folder, pattern)]
    return same or [file for file in files if fnmatch.fnmatchcase(posixpath.basename(file.uri), pattern)]


def _nothing(shards_uri: str, folder: str, pattern: str, files: Sequence[storage.FileInfo]) -> str:
    """Why a pattern matches nothing, judging by the files in its folder."""
    asked = storage.shown(shards_uri)
    if below := storage.list_files(storage.join(folder, pattern), recursive=False):
        ending = posixpath.splitext(below[0].uri)[1] or ".tar"
        return f"{asked} is a folder, of {len(below)} files: name the shards in it, as {asked.rstrip('/')}/*{ending}"
    if _WILDCARD.search(posixpath.basename(folder)):
        return f"no file matches {asked}: only the last part of a path may hold wildcards"
    names = _some([posixpath.basename(file.uri) for file in files])
    lie = f"{len(files)} files lie in {storage.shown(folder)}{': ' if names else ''}{names}"
    hint = "; a [ in a name is written [[]" if "[" in pattern else ""
    fix = f"check the pattern{hint}" if files else "check the place, or write shards there with `blip3o data`"
    return f"no file matches {asked} ({lie}): {fix}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(storage.shown, names[:SHOWN])) + more


def _expanded(text: str) -> Iterator[str]:
    """The names that braces expand to, as in a shell: `{000..012}`, `{0..10..5}`, `{a..c}`, `{train,test}`, nested."""
    for start in (found.start() for found in re.finditer("{", text)):
        end = _closing(text, start)
        choices = None if end is None else _choices(text[start + 1 : end])
        if end is not None and choices is not None:
            for choice in choices:
                for rest in _expanded(text[end + 1 :]):
                    yield text[:start] + choice + rest
            return
    yield text


def _closing(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None


def _choices(body: str) -> Iterator[str] | None:
    """What braces around `body` expand to; None if they are part of the name, as around a single word."""
    if found := _NUMBERS.fullmatch(body):
        return _numbers(*found.groups())
    if found := _LETTERS.fullmatch(body):
        first, last = map(ord, found.groups())
        step = 1 if first <= last else -1
        return (chr(code) for code in range(first, last + step, step))
    parts = _split_at_commas(body)
    return None if len(parts) == 1 else itertools.chain.from_iterable(map(_expanded, parts))


def _numbers(first: str, last: str, stride: str | None) -> Iterator[str]:
    """As wide as the wider bound, if one of them begins with a zero."""
    padded = any(re.match("-?0.", bound) for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = abs(int(stride or 1)) or 1
    low, high = int(first), int(last)
    numbers = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)


def _split_at_commas(body: str) -> list[str]:
    """`body` split at the commas outside inner braces."""
    parts, depth = [""], 0
    for char in body:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
